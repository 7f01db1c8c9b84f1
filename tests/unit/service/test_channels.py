"""Channels over real sockets, to workers that are threads here."""

import asyncio
import socket
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from handlers import channel
from service.channels import Channels
from service.errors import BackendFault, BackendTimeout, BackendUnavailable


class Worker:
    """Answers with its name, once `free` is set."""

    def __init__(self, name: bytes) -> None:
        self.name = name
        self.free = threading.Event()
        self.free.set()
        self.frames: list[bytes] = []
        self.connection: socket.socket | None = None
        self._channels = channel.Channels(self._answer)

    def call(self, path: Path) -> None:
        def connect(_: str) -> socket.socket:
            self.connection = socket.socket(socket.AF_UNIX)
            self.connection.connect(str(path))
            return self.connection

        self._channels.open("gateway", connect)

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
        self.channels = Channels("m", wanted=2)
        self.workers = [Worker(b"one"), Worker(b"two")]

    async def open(self) -> None:
        calls = socket.socket(socket.AF_UNIX)
        calls.bind(str(self.path))
        calls.listen()
        await self.channels.listen(calls)
        for count, worker in enumerate(self.workers, 1):
            worker.call(self.path)
            await self.until(count)

    async def until(self, count: int) -> None:
        async with asyncio.timeout(5):
            while len(self.channels) != count:
                await asyncio.sleep(0.001)

    async def ask(self, frame: bytes = b"x", timeout_seconds: float = 5) -> bytes:
        return await self.channels.infer(frame, timeout_seconds=timeout_seconds)


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    made = Bench(tmp_path)
    await made.open()
    yield made
    for worker in made.workers:
        worker.free.set()
    await made.channels.close()
    assert len(made.channels) == 0


async def test_a_worker_has_one_batch_at_a_time_and_the_next_when_it_answers(bench: Bench) -> None:
    assert bench.channels.complete
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


async def test_a_failing_batch_says_why_and_leaves_the_channel(bench: Bench) -> None:
    with pytest.raises(BackendFault, match="its worker failed: no"):
        await bench.ask(b"bad")
    assert await bench.ask() in (b"one", b"two")
    assert bench.channels.complete


async def test_a_worker_that_dies_loses_its_batches_as_unavailable(bench: Bench) -> None:
    first, second = bench.workers
    first.free.clear()
    lost = asyncio.ensure_future(bench.ask())
    await asyncio.sleep(0.05)
    first.die()
    with pytest.raises(BackendUnavailable, match="ended"):
        await lost
    assert not bench.channels.complete
    assert await bench.ask() == second.name


async def test_after_a_timeout_late_answers_are_nobodys(bench: Bench) -> None:
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


async def test_one_that_answers_what_nobody_asked_is_hung_up_on(bench: Bench) -> None:
    stranger = socket.socket(socket.AF_UNIX)
    stranger.connect(str(bench.path))
    await bench.until(3)
    stranger.send(channel.REPLY.pack(channel.ANSWERED, 1) + b"!")
    await bench.until(2)
    stranger.close()
