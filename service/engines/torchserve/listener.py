"""Whose process listens at a local TCP port, from Linux's tables of sockets.

TorchServe's gRPC listens on TCP, where any local user may listen once TorchServe has ended. In: a port. Out: user
numbers. Elsewhere than on Linux nothing is known. Never connects.
"""

from pathlib import Path

TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
_LISTEN = "0A"  # include/net/tcp_states.h
_PORT_DIGITS = 4


def listening_users(port: int, tables: tuple[Path, ...] = TABLES) -> frozenset[int] | None:
    """The users whose sockets listen at the port, at any address. None where the system does not tell.

    The kernel notes the user when the socket is made; another user cannot change it.
    """
    users: set[int] = set()
    readable = False
    for table in tables:
        try:
            lines = table.read_text().splitlines()[1:]
        except OSError:
            continue
        readable = True
        for line in lines:
            fields = line.split()  # number, local address, remote address, state, queues, timer, retransmits, user
            if len(fields) > 7 and fields[3] == _LISTEN and int(fields[1][-_PORT_DIGITS:], 16) == port:
                users.add(int(fields[7]))
    return frozenset(users) if readable else None
