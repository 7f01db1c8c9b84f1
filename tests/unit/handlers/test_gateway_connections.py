"""The worker's end of a gateway connection, at a real socket."""

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from handlers.contract.shm_layout import Memory, Refused
from handlers.contract.worker_protocol import ANSWERED, FAILED, REPLY, REQUEST
from handlers.gateway_connections import GatewayConnections

FOLDER = "mobilevision-shm-test"
NAME = f"{FOLDER}/m.calls"


class Bench:
    def __init__(self, base: Path) -> None:
        self.folder = base / FOLDER
        self.folder.mkdir(mode=0o700)
        self.memory = Memory(base)
        self.connections = GatewayConnections(self.answer)
        self.server = socket.socket(socket.AF_UNIX)
        self.server.bind(str(self.folder / "m.calls"))
        self.server.listen()
        self.server.settimeout(5)

    def answer(self, request: bytearray) -> bytes:
        if request == b"bad":
            raise ValueError("the frame is bad")
        return bytes(request).upper()

    def open(self) -> None:
        self.connections.open(NAME, self.memory.connect)

    def accept(self) -> socket.socket:
        connection, _ = self.server.accept()
        connection.settimeout(5)
        return connection


def ask(connection: socket.socket, request: bytes) -> tuple[int, bytes]:
    connection.sendall(REQUEST.pack(len(request)) + request)
    answer = connection.makefile("rb")
    status, length = REPLY.unpack(answer.read(REPLY.size))
    return status, answer.read(length)


def until_over() -> None:
    for thread in threading.enumerate():
        if thread.name == "gateway connection":
            thread.join(5)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.server.close()


def test_frames_are_answered_in_turn_and_a_failure_says_why(bench: Bench) -> None:
    bench.open()
    with bench.accept() as gateway:
        assert ask(gateway, b"one") == (ANSWERED, b"ONE")
        assert ask(gateway, b"bad") == (FAILED, b"the frame is bad")
        assert ask(gateway, b"x" * 1_000_000) == (ANSWERED, b"X" * 1_000_000)
    until_over()


def test_one_gateway_is_connected_once_until_it_disconnects(bench: Bench) -> None:
    bench.open()
    first = bench.accept()
    bench.open()
    bench.server.settimeout(0.05)
    with pytest.raises(TimeoutError):
        bench.accept()
    first.sendall(b"\0")  # an incomplete request
    first.close()
    until_over()
    bench.server.settimeout(5)
    bench.open()
    with bench.accept() as again:
        assert ask(again, b"two") == (ANSWERED, b"TWO")
    until_over()


def test_only_sockets_of_private_gateway_folders_are_connected(bench: Bench) -> None:
    (bench.folder / "m.file").touch()
    for name in (f"{FOLDER}/../m.calls", f"{FOLDER}/other.calls", f"{FOLDER}/m.file", "elsewhere/m.calls"):
        with pytest.raises(Refused):
            bench.connections.open(name, bench.memory.connect)
    bench.folder.chmod(0o755)
    with pytest.raises(Refused, match="not private"):
        bench.open()
    with pytest.raises(Refused, match="SHM_DIR"):
        bench.connections.open(NAME, Memory(None).connect)
