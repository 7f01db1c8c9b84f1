"""When batches travel in shared memory, and when workers are asked again."""

import asyncio
import socket
from pathlib import Path

import numpy as np
import pytest
from fakes import toy_run
from transport_bench import ALL_FREE, CARD, Bench

from handlers.contract import worker_protocol
from handlers.contract.frame import pack, unpack
from handlers.contract.shm_layout import Memory, Refused
from handlers.gateway_connections import GatewayConnections
from service.core.errors import BackendFault, BackendTimeout, BackendUnavailable
from service.transport.handshake import RETRY_MOST_SECONDS, RETRY_SECONDS


async def test_a_worker_that_reads_the_token_switches_shared_memory_on(bench: Bench) -> None:
    assert not bench.transport.shared
    await bench.transport.start()
    assert bench.transport.shared
    assert await bench.firsts(bench.job(250), bench.job(3), bench.job(100)) == [2, 0, 1]
    assert bench.batches() == ["slots"]
    assert len(bench.requests[-1]) < 1000
    assert bench.usage == ALL_FREE


@pytest.mark.parametrize("failure", ["blind", "other token", "old", "lost", "silent"])
async def test_anything_but_the_token_keeps_it_inline_until_a_later_handshake(bench: Bench, failure: str) -> None:
    seeing, infer = bench.backend.memory, bench.backend.infer

    async def answer(model: str, frame: bytes, *, timeout_seconds: float, version: str = "") -> bytes:
        if worker_protocol.HANDSHAKE not in unpack(frame)[1]:
            return await infer(model, frame, timeout_seconds=timeout_seconds)
        if failure == "other token":
            return pack({}, {"token": "0" * 32})
        raise {"old": BackendFault, "lost": BackendUnavailable, "silent": BackendTimeout}[failure]("no")

    if failure == "blind":
        bench.backend.memory = Memory(None)
    else:
        bench.backend.infer = answer  # type: ignore[method-assign]
    await bench.transport.start()
    assert not bench.transport.shared
    assert await bench.firsts(bench.job(250)) == [2]
    await bench.pass_seconds(0)
    assert (bench.questions(), bench.batches()) == (1, ["pixels"])  # not asked again at once
    bench.backend.memory, bench.backend.infer = seeing, infer  # type: ignore[method-assign]
    await bench.pass_seconds(RETRY_SECONDS)
    assert await bench.firsts(bench.job(250)) == [2]
    assert bench.batches() == ["pixels", "slots"]
    assert bench.usage == ALL_FREE


async def test_a_model_that_never_agrees_is_asked_ever_less_often(bench: Bench) -> None:
    bench.backend.memory = Memory(None)
    await bench.transport.start()
    for _ in range(3600):
        await bench.pass_seconds(1)
    assert 10 < bench.questions() < 25


async def test_an_answered_batch_shortens_the_wait_that_followed_an_unanswered_question(bench: Bench) -> None:
    bench.backend.broken = {CARD.version: BackendUnavailable("not loaded yet")}
    await bench.transport.start()
    for _ in range(6):
        await bench.pass_seconds(RETRY_MOST_SECONDS)
    questions = bench.questions()
    bench.backend.broken = {}
    await bench.pass_seconds(RETRY_SECONDS)
    assert bench.questions() == questions
    assert await bench.firsts(bench.job(250)) == [2]
    await bench.pass_seconds(0)
    assert bench.transport.shared


async def test_a_slow_handshake_delays_no_batch(started: Bench) -> None:
    infer, never = started.backend.infer, asyncio.Event()

    async def slow(model: str, frame: bytes, *, timeout_seconds: float, version: str = "") -> bytes:
        if worker_protocol.HANDSHAKE in unpack(frame)[1]:
            await never.wait()
        return await infer(model, frame, timeout_seconds=timeout_seconds)

    started.backend.failures = [BackendTimeout("stuck")]
    with pytest.raises(BackendTimeout):
        await started.firsts(started.job(250))
    started.backend.infer = slow  # type: ignore[method-assign]
    await started.pass_seconds(0)
    questions = started.questions()
    started.now += 2 * RETRY_SECONDS  # a handshake is due when the batch comes
    assert await asyncio.wait_for(started.firsts(started.job(250)), 1.0) == [2]
    await started.pass_seconds(0)
    assert started.questions() == questions + 1
    assert await asyncio.wait_for(started.firsts(started.job(3)), 1.0) == [0]  # while the question is open
    assert started.batches()[-2:] == ["pixels", "pixels"]


async def test_a_bug_in_the_handshake_is_logged_and_batches_travel_inline(
    started: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    async def attempt() -> None:
        raise RuntimeError("broken")

    assert started.transport.handshake is not None
    started.transport.handshake.attempt = attempt  # type: ignore[method-assign]
    started.backend.failures = [BackendTimeout("stuck")]
    with pytest.raises(BackendTimeout):
        await started.firsts(started.job(250))
    await started.pass_seconds(RETRY_SECONDS)
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == [
        f"the handshake of {CARD.name} ended: this is a bug"
    ]
    assert await started.firsts(started.job(250)) == [2]


class Calling:
    """Two workers that connect to the gateway, over a fake engine whose workers they are."""

    def __init__(self, base: Path) -> None:
        self.bench = Bench(base, call=self._call, wanted=2)
        self.memory = Memory(base)
        self.direct = 0
        self.sockets: list[socket.socket] = []

    def _call(self, name: str) -> None:
        if len(self.sockets) < 2:  # every other question reaches the other worker
            GatewayConnections(self._answer).open(name, self._connect)

    def _connect(self, name: str) -> socket.socket:
        self.sockets.append(self.memory.connect(name))
        return self.sockets[-1]

    def _answer(self, request: bytearray) -> bytes:
        self.direct += 1
        run = lambda rows: toy_run(CARD.name, np.stack(list(rows)))  # noqa: E731
        return worker_protocol.answer(request, run=run, memory=self.memory, about={})


async def test_batches_go_directly_once_every_worker_connected_and_through_the_engine_when_one_is_lost(
    tmp_path: Path,
) -> None:
    calling = Calling(tmp_path)
    bench, connections = calling.bench, calling.bench.connections
    await bench.transport.start()
    assert bench.transport.shared
    assert len(connections) == 2
    assert await bench.firsts(bench.job(250), bench.job(3)) == [2, 0]
    assert (calling.direct, bench.batches()) == (1, [])
    calling.sockets.pop().shutdown(socket.SHUT_RDWR)
    while connections.complete:
        await asyncio.sleep(0.001)
    assert await bench.firsts(bench.job(100)) == [1]
    assert (calling.direct, bench.batches()) == (1, ["slots"])
    await bench.pass_seconds(RETRY_SECONDS)  # the worker was started again, and is asked
    async with asyncio.timeout(5):
        while not connections.complete:
            await asyncio.sleep(0.001)
    assert await bench.firsts(bench.job(100)) == [1]
    assert (calling.direct, bench.batches()) == (2, ["slots"])
    assert bench.usage == ALL_FREE
    await bench.transport.close()


async def test_a_worker_that_cannot_connect_is_logged_once_and_served_through_the_engine(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def call(name: str) -> None:
        raise Refused("no socket of this name")

    bench = Bench(tmp_path, call=call)
    await bench.transport.start()
    await bench.pass_seconds(RETRY_MOST_SECONDS)
    assert bench.questions() > 2
    assert [record.getMessage() for record in caplog.records if "no socket of this name" in record.getMessage()] == [
        f"model {CARD.name}: batches go through the engine, a worker cannot connect to the gateway: "
        "no socket of this name"
    ]
    assert await bench.firsts(bench.job(250)) == [2]
    await bench.transport.close()
