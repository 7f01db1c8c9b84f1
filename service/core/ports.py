"""Finds ports to listen on, and reserves a port for several processes.

In: the port that the operator asked for, if any. Out: a number, or `PortTaken` with a message for the operator. Never
listens.
"""

import contextlib
import errno
import socket
from collections.abc import Iterator


class PortTaken(Exception):
    """A port that the operator asked for cannot be used. The message names the port."""


def address(host: str, port: int) -> str:
    """Return host:port, with the brackets that an IPv6 address needs."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def choose(host: str, port: int | None, default: int) -> int:
    """Return `port`. If it is None: `default`, or 0 (any free port) if the default is in use. Raises `PortTaken`."""
    with _bound(host, port, default) as bound:
        found: int = bound.getsockname()[1]
    return found if found in {port, default} else 0


@contextlib.contextmanager
def reserved(host: str, port: int | None, default: int) -> Iterator[int]:
    """Reserve a port for processes of this user that listen on it with SO_REUSEPORT. Raises `PortTaken`.

    The reserving socket is bound but does not listen. So it gets no connections, and it keeps the port while processes
    restart.
    """
    with _bound(host, port, default) as bound:
        # Set after binding: binding must fail if another program uses the port.
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        yield int(bound.getsockname()[1])


def _bound(host: str, port: int | None, default: int) -> socket.socket:
    """Return a socket bound to `port`. If it is None: to `default`, or to a free port if the default is in use."""
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        bound.setsockopt(
            socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
        )  # lets a port be used again right after it was closed
        try:
            bound.bind((host, default if port is None else port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise PortTaken(f"cannot listen on {host}:{port or default}: {error.strerror}") from error
            if port is not None:
                raise PortTaken(f"port {port} on {host} is taken; choose another, or 0 for a free one") from error
            bound.bind((host, 0))
    except BaseException:
        bound.close()
        raise
    return bound
