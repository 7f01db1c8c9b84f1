"""WorkerConnections over real sockets, to workers that are threads here."""

import asyncio
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from handlers.contract.worker_protocol import ANSWERED, REPLY
from handlers.gateway_connections import GatewayConnections
from service.core.errors import BackendFault, BackendTimeout, BackendUnavailable
from service.transport.patience import Patience
from service.transport.worker_connections import WorkerConnections


class Worker:
    """Answers with its name, once `free` is set."""

    def __init__(self, name: bytes) -> None:
        self.name = name
        self.free = threading.Event()
        self.free.set()
        self.frames: list[bytes] = []
        self.connection: socket.socket | None = None
        self._connections = GatewayConnections(self._answer)

    def call(self, path: Path) -> None:
        def connect(_: str) -> socket.socket:
            self.connection = socket.socket(socket.AF_UNIX)
            self.connection.connect(str(path))
            return self.connection

        self._connections.open("gateway", connect)

    def die(self) -> None:
        assert self.connection is not None
        self.connection.shutdown(socket.SHUT_RDWR)

    def _answer(self, request: bytearray) -> bytes:
        self.frames.append(bytes(request))
        self.free.wait(5)
        if request == b"bad":
            raise ValueError("no")
        return self.name


class Bench:
    def __init__(self, folder: Path) -> None:
        self.path = folder / "calls"
        self.connections = WorkerConnections("m", wanted=2)
        self.workers = [Worker(b"one"), Worker(b"two")]

    async def open(self) -> None:
        calls = socket.socket(socket.AF_UNIX)
        calls.bind(str(self.path))
        calls.listen()
        await self.connections.listen(calls)
        for count, worker in enumerate(self.workers, 1):
            worker.call(self.path)
            await self.until(count)

    async def until(self, count: int) -> None:
        async with asyncio.timeout(5):
            while len(self.connections) != count:
                await asyncio.sleep(0.001)

    async def ask(self, frame: bytes = b"x", timeout_seconds: float = 5) -> bytes:
        return await self.connections.infer(frame, timeout_seconds=timeout_seconds)


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    made = Bench(tmp_path)
    await made.open()
    yield made
    for worker in made.workers:
        worker.free.set()
    await made.connections.close()
    assert len(made.connections) == 0


async def test_a_worker_has_one_batch_at_a_time_and_the_next_when_it_answers(bench: Bench) -> None:
    assert bench.connections.complete
    for worker in bench.workers:
        worker.free.clear()
    asked = [asyncio.ensure_future(bench.ask(b"%d" % number)) for number in range(4)]
    await asyncio.sleep(0.05)
    assert [worker.frames for worker in bench.workers] == [[b"0"], [b"1"]]  # the others wait their turn
    for worker in bench.workers:
        worker.free.set()
    answers = await asyncio.gather(*asked)
    assert answers[:2] == [b"one", b"two"]
    assert sum(len(worker.frames) for worker in bench.workers) == 4


async def test_a_failing_batch_says_why_and_keeps_the_connection(bench: Bench) -> None:
    with pytest.raises(BackendFault, match="its worker failed: no"):
        await bench.ask(b"bad")
    assert await bench.ask() in (b"one", b"two")
    assert bench.connections.complete


async def test_a_worker_that_dies_loses_its_batches_as_unavailable(bench: Bench) -> None:
    first, second = bench.workers
    first.free.clear()
    lost = asyncio.ensure_future(bench.ask())
    await asyncio.sleep(0.05)
    first.die()
    with pytest.raises(BackendUnavailable, match="ended"):
        await lost
    assert not bench.connections.complete
    assert await bench.ask() == second.name


async def test_after_a_timeout_late_answers_are_dropped(bench: Bench) -> None:
    for worker in bench.workers:
        worker.free.clear()
    late = asyncio.ensure_future(bench.ask(b"late", timeout_seconds=0.05))
    other = asyncio.ensure_future(bench.ask(b"other"))
    behind = asyncio.ensure_future(bench.ask(b"behind both"))
    gone = asyncio.ensure_future(bench.ask(b"never sent", timeout_seconds=0.05))
    for lost in (late, gone):
        with pytest.raises(BackendTimeout):
            await lost
    await bench.until(1)
    bench.workers[1].free.set()
    assert await asyncio.gather(other, behind) == [b"two", b"two"]
    assert bench.workers[1].frames == [b"other", b"behind both"]


async def test_what_waits_when_the_last_worker_dies_is_unavailable(bench: Bench) -> None:
    for worker in bench.workers:
        worker.free.clear()
    asked = [asyncio.ensure_future(bench.ask()) for _ in range(3)]
    await asyncio.sleep(0.05)
    for worker in bench.workers:
        worker.die()
    for lost in asked:
        with pytest.raises(BackendUnavailable):
            await lost


async def test_a_peer_that_answers_without_a_batch_is_disconnected(bench: Bench) -> None:
    stranger = socket.socket(socket.AF_UNIX)
    stranger.connect(str(bench.path))
    await bench.until(3)
    stranger.send(REPLY.pack(ANSWERED, 1) + b"!")
    await bench.until(2)
    stranger.close()


_WORKER = """
import socket, sys, time
connection = socket.socket(socket.AF_UNIX)
connection.connect(sys.argv[1])
for _ in range(3):
    connection.recv(100)
    connection.sendall(bytes.fromhex(sys.argv[2]))
time.sleep(60)
"""


async def test_a_worker_that_hangs_is_killed_and_its_batch_is_lost_to_it(tmp_path: Path) -> None:
    calls = socket.socket(socket.AF_UNIX)
    calls.bind(str(tmp_path / "calls"))
    calls.listen()
    connections = WorkerConnections("m", wanted=1, patience=Patience(hung_seconds=0.2))
    await connections.listen(calls)
    answer = REPLY.pack(ANSWERED, 2) + b"ok"
    worker = await asyncio.create_subprocess_exec(sys.executable, "-c", _WORKER, str(tmp_path / "calls"), answer.hex())
    try:
        async with asyncio.timeout(20):
            while not connections.complete:
                await asyncio.sleep(0.01)
            for _ in range(3):
                assert await connections.infer(b"x", timeout_seconds=5) == b"ok"
            with pytest.raises(BackendUnavailable):
                await connections.infer(b"x", timeout_seconds=15)
            assert await worker.wait() == -signal.SIGKILL
        assert len(connections) == 0
    finally:
        if worker.returncode is None:
            worker.kill()
            await worker.wait()
        await connections.close()


async def test_other_workers_run_the_batches_of_a_hung_one(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.connections = WorkerConnections("m", wanted=2, patience=Patience(hung_seconds=0.2))
    await bench.open()
    for _ in range(3):
        await bench.ask()
    bench.workers[0].free.clear()  # a thread of this process: its connection is closed, no process is killed
    answers = await asyncio.gather(*(bench.ask() for _ in range(5)), return_exceptions=True)
    assert [type(answer) for answer in answers].count(BackendUnavailable) == 1
    assert answers.count(b"two") == 4
    assert len(bench.connections) == 1
    bench.workers[0].free.set()
    await bench.connections.close()


async def test_a_worker_that_is_slow_from_the_start_is_not_hung(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.connections = WorkerConnections("m", wanted=2, patience=Patience(hung_seconds=0.05))
    await bench.open()
    bench.workers[0].free.clear()
    asyncio.get_running_loop().call_later(0.3, bench.workers[0].free.set)
    assert await bench.ask() == b"one"
    await bench.connections.close()


_STRANGER = """
import os, socket, sys
os.setuid(65534)
connection = socket.socket(socket.AF_UNIX)
connection.connect(sys.argv[1])
print(len(connection.recv(1)))
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
async def test_a_process_of_another_user_is_no_worker(caplog: pytest.LogCaptureFixture) -> None:
    with tempfile.TemporaryDirectory() as folder:  # pytest's own is closed to other users
        path = Path(folder)
        path.chmod(0o777)
        bench = Bench(path)
        await bench.open()
        bench.path.chmod(0o777)
        stranger = await asyncio.create_subprocess_exec(
            sys.executable, "-c", _STRANGER, str(bench.path), stdout=asyncio.subprocess.PIPE
        )
        output, _ = await asyncio.wait_for(stranger.communicate(), 30)
        assert output == b"0\n"  # its connection was closed
        assert len(bench.connections) == 2
        assert "user 65534" in caplog.text
        await bench.connections.close()


async def test_a_late_answer_is_dropped_and_the_worker_gets_the_next_batch_after_it(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.connections = WorkerConnections("m", wanted=1, patience=Patience(longest_seconds=60.0))
    del bench.workers[1]
    await bench.open()
    [worker] = bench.workers
    worker.free.clear()
    with pytest.raises(BackendTimeout):
        await bench.ask(b"late", timeout_seconds=0.05)
    assert len(bench.connections) == 1
    behind = asyncio.ensure_future(bench.ask(b"behind"))
    await asyncio.sleep(0)
    worker.free.set()
    assert await behind == b"one"
    assert worker.frames == [b"late", b"behind"]
    await bench.connections.close()


async def test_a_worker_that_never_answered_is_ended_after_the_longest_time(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.connections = WorkerConnections("m", wanted=2, patience=Patience(longest_seconds=0.1))
    await bench.open()
    bench.workers[0].free.clear()
    with pytest.raises(BackendUnavailable):
        await bench.ask(timeout_seconds=30)
    await bench.until(1)
    bench.workers[0].free.set()
    await bench.connections.close()
