"""A DNS server for one name. It behaves as the DNS of a Kubernetes cluster does for a headless Service.

In: a name and its addresses, which may change at any time. Out: `target`, with which a gRPC client resolves the name
through this server. Every answer contains all addresses and a TTL of `TTL_SECONDS`, as CoreDNS answers for a headless
Service. The server has A records (RFC 1035) only. For another record type the answer is empty.
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
    """Answers on loopback from a thread. Use as a context manager."""

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
        # Closing the socket does not wake the thread that reads from it. An empty datagram does.
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as waker:
            waker.sendto(b"", self._socket.getsockname())
        self._thread.join()
        self._socket.close()

    def target(self, port: int) -> str:
        """Target for a gRPC client: this server as authority, the name, and the port shared by all addresses."""
        host, own_port = self._socket.getsockname()
        return f"dns://{host}:{own_port}/{self._name}:{port}"

    def point(self, addresses: Sequence[str]) -> None:
        """Replace the addresses of the name."""
        self._addresses = tuple(addresses)

    def _run(self) -> None:
        while True:
            query, asker = self._socket.recvfrom(512)
            if not query:
                return
            self._socket.sendto(self.answer(query), asker)

    def answer(self, query: bytes) -> bytes:
        """The reply, in wire format, to a query with one question."""
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
    """The name in the question, in lower case, and the offset behind it."""
    labels, at = [], _HEADER.size
    while length := query[at]:
        labels.append(query[at + 1 : at + 1 + length].decode("ascii"))
        at += 1 + length
    return ".".join(labels).lower(), at + 1
