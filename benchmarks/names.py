"""A DNS server of one name: what a headless Service looks like to a client, on this machine.

In: a name, and the addresses it stands for, which may change at any time. Out: `target`, by which a gRPC client asks
this server with its own resolver. Every answer has all addresses and a life of `TTL_SECONDS`, as CoreDNS gives a
headless Service. It knows A records (RFC 1035) and nothing else; whoever asks for another type is told there is none.
"""

import ipaddress
import socket
import struct
import threading
from collections.abc import Sequence
from typing import Self

TTL_SECONDS = 5  # of CoreDNS's kubernetes plugin
_HEADER = struct.Struct(">6H")  # id, flags, questions, answers, authorities, additionals
_TYPE_A, _CLASS_IN = 1, 1
_RESPONSE, _NO_SUCH_NAME = 0x8180, 3  # with recursion desired and available, as stub resolvers expect it
_POINTER_TO_QUESTION = 0xC00C


class NameServer:
    """Answers on loopback from a thread of its own. Use as a context manager."""

    def __init__(self, name: str) -> None:
        self._name = name.lower()
        self._addresses: tuple[str, ...] = ()
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.asked = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        # Closing does not wake a thread that reads; a datagram does.
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as bell:
            bell.sendto(b"", self._socket.getsockname())
        self._thread.join()
        self._socket.close()

    def target(self, port: int) -> str:
        """What a gRPC client is given: this server as authority, the name, the port all addresses share."""
        host, own_port = self._socket.getsockname()
        return f"dns://{host}:{own_port}/{self._name}:{port}"

    def point(self, addresses: Sequence[str]) -> None:
        """From now on the name stands for these."""
        self._addresses = tuple(addresses)

    def _run(self) -> None:
        while True:
            query, asker = self._socket.recvfrom(512)
            if not query:
                return
            self._socket.sendto(self.answer(query), asker)

    def answer(self, query: bytes) -> bytes:
        """The reply to a query of one question."""
        number = struct.unpack_from(">H", query)[0]
        name, end = _question(query)
        kind, _ = struct.unpack_from(">2H", query, end)
        question = query[_HEADER.size : end + 4]
        known = name == self._name
        addresses = self._addresses if known and kind == _TYPE_A else ()
        self.asked += known and kind == _TYPE_A
        flags = _RESPONSE if known else _RESPONSE | _NO_SUCH_NAME
        records = b"".join(
            struct.pack(">3HIH", _POINTER_TO_QUESTION, _TYPE_A, _CLASS_IN, TTL_SECONDS, 4)
            + ipaddress.IPv4Address(address).packed
            for address in addresses
        )
        return _HEADER.pack(number, flags, 1, len(addresses), 0, 0) + question + records


def _question(query: bytes) -> tuple[str, int]:
    """The name asked for, in lower case, and where it ends."""
    labels, at = [], _HEADER.size
    while length := query[at]:
        labels.append(query[at + 1 : at + 1 + length].decode("ascii"))
        at += 1 + length
    return ".".join(labels).lower(), at + 1
