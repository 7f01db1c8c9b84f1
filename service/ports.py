"""Ports to listen on: one that was asked for, or the default, or any free one, and one held for several processes.

In: what the operator asked for. Out: a number, or `PortTaken` with the words for the operator. Never listens.
"""

import contextlib
import errno
import socket
from collections.abc import Iterator


class PortTaken(Exception):
    """A port the operator asked for is in use; the message names it."""


def choose(host: str, port: int | None, default: int) -> int:
    """The port asked for, or the default, or 0 (any) where the default is taken. Raises `PortTaken`."""
    with _bound(host, port, default) as probe:
        found: int = probe.getsockname()[1]
    return found if found in {port, default} else 0


@contextlib.contextmanager
def reserved(host: str, port: int | None, default: int) -> Iterator[int]:
    """Hold a port for processes of this user that listen on it with SO_REUSEPORT. Raises `PortTaken`.

    A socket that is bound and does not listen gets no connections, and keeps the port while the processes come and go.
    """
    with _bound(host, port, default) as held:
        # Only now: binding itself has to fail where anyone else has the port.
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        yield int(held.getsockname()[1])


def _bound(host: str, port: int | None, default: int) -> socket.socket:
    """A socket bound to the port asked for, or to the default, or to a free one where the default is taken."""
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # one that was closed just now is free
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
