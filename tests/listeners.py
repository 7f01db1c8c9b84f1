"""Where the processes of a server listen, as the kernel says (Linux)."""

import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil

_LISTEN = "0A"  # state in /proc/net/tcp
_ACCEPTS = 0x10000  # flag in /proc/net/unix of a socket that listens


@dataclass(frozen=True)
class Listener:
    """One listening socket: its process, and `host:port` or the path of a Unix socket."""

    process: str
    address: str

    @property
    def is_tcp(self) -> bool:
        return not self.address.startswith(("/", "@"))


def of(processes: Iterable[psutil.Process]) -> set[Listener]:
    """All listening sockets of the processes."""
    addresses = _tcp("tcp", socket.AF_INET) | _tcp("tcp6", socket.AF_INET6) | _unix()
    found = set()
    for process in processes:
        for link in Path(f"/proc/{process.pid}/fd").iterdir():
            try:
                target = str(link.readlink())
            except OSError:  # closed meanwhile
                continue
            inode = target.removeprefix("socket:[").removesuffix("]")
            if target.startswith("socket:[") and inode in addresses:
                found.add(Listener(process.name(), addresses[inode]))
    return found


def _tcp(table: str, family: int) -> dict[str, str]:
    addresses = {}
    for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == _LISTEN:
            host, port = fields[1].split(":")
            words = [int(host[at : at + 8], 16) for at in range(0, len(host), 8)]
            name = socket.inet_ntop(family, struct.pack(f"={len(words)}I", *words))
            # An IPv6 socket shows an IPv4 address as ::ffff:127.0.0.1.
            addresses[fields[9]] = f"{name.removeprefix('::ffff:')}:{int(port, 16)}"
    return addresses


def _unix() -> dict[str, str]:
    addresses = {}
    for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
        fields = line.split(maxsplit=7)
        if int(fields[3], 16) & _ACCEPTS:
            addresses[fields[6]] = fields[7] if len(fields) > 7 else "@"
    return addresses
