"""The carrier over a fake backend: when it switches, what a worker that is late, lost or blind costs."""

import asyncio
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from fakes import SIDE, toy_card, toy_run

from handlers import channel, exchange
from handlers.frame import pack, unpack
from handlers.shm import Memory, Refused
from service.backend import FakeBackend
from service.carrier import ASK_AGAIN_MOST_SECONDS, ASK_AGAIN_SECONDS, Carrier
from service.channels import Channels
from service.errors import BackendFault, BackendTimeout, BackendUnavailable
from service.region import SharedDirectory, Size
from service.slots import Lease, Usage
from service.work import Job

CARD = toy_card()
ALL_FREE = (Usage(free=6), Usage(free=2))


class Bench:
    def __init__(
        self, base: Path, *, call: Callable[[str], None] | None = None, channels: Channels | None = None
    ) -> None:
        self.channels = channels
        self.now = 100.0
        self.refused = 0
        self.directory = SharedDirectory(base)
        size = Size.wanted(CARD, max_batch=4, batches=1, pictures=6)
        self.region = self.directory.region(CARD, size)
        self.backend = FakeBackend(toy_run, shm_dir=base, call=call)
        self.requests: list[bytes] = []
        infer = self.backend.infer

        async def recorded(model: str, frame: bytes, *, timeout_seconds: float) -> bytes:
            self.requests.append(frame)
            return await infer(model, frame, timeout_seconds=timeout_seconds)

        self.backend.infer = recorded  # type: ignore[method-assign]
        self.carrier = Carrier(
            card=CARD,
            backend=self.backend,
            region=self.region,
            clock=lambda: self.now,
            channels=channels,
            on_refused=self._count,
        )

    def _count(self) -> None:
        self.refused += 1

    def job(self, shade: int) -> Job:
        lease = self.carrier.lend()
        pixels = lease.allocate()
        if pixels is None:
            pixels = np.empty((SIDE, SIDE, 3), np.uint8)
        pixels[:] = shade
        return Job(request_id="", pixels=pixels, deadline_seconds=1e9, submitted_seconds=0.0, lease=lease)

    async def firsts(self, *jobs: Job) -> list[int]:
        """The first label of each answer. The jobs' leases are dropped."""
        try:
            tensors, _ = await self.carrier.send(jobs, timeout_seconds=1.0)
            return tensors["labels"][:, 0].tolist()
        finally:
            for job in jobs:
                assert isinstance(job.lease, Lease)
                job.lease.drop()

    @property
    def usage(self) -> tuple[Usage, Usage]:
        return self.region.inputs.usage(), self.region.outputs.usage()

    def kinds(self) -> list[str]:
        """What was sent, in order."""
        kinds = []
        for request in self.requests:
            tensors, meta = unpack(request)
            kinds.append("hello" if "hello" in meta else "+".join(sorted(tensors)))
        return kinds


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.directory.remove()


async def test_a_worker_that_reads_the_token_switches_it_on(bench: Bench) -> None:
    assert not bench.carrier.shared
    await bench.carrier.agree()
    assert bench.carrier.shared
    assert await bench.firsts(bench.job(250), bench.job(3), bench.job(100)) == [2, 0, 1]
    assert bench.kinds() == ["hello", "slots"]
    assert len(bench.requests[-1]) < 1000
    assert bench.usage == ALL_FREE


async def test_pictures_beyond_the_slots_travel_inline_in_their_places(bench: Bench) -> None:
    await bench.carrier.agree()
    waiting = [bench.job(0) for _ in range(5)]
    assert await bench.firsts(bench.job(250), bench.job(100)) == [2, 1]
    assert bench.kinds() == ["hello", "pixels+slots"]
    for job in waiting:
        assert job.lease is not None
        job.lease.drop()
    assert bench.usage == ALL_FREE


async def test_without_an_output_slot_the_answer_is_inline(bench: Bench) -> None:
    await bench.carrier.agree()
    taken = [bench.region.outputs.take(), bench.region.outputs.take()]
    assert await bench.firsts(bench.job(250)) == [2]
    for slot in taken:
        assert slot is not None
        bench.region.outputs.free(slot)
    assert bench.usage == ALL_FREE


@pytest.mark.parametrize("trouble", ["blind", "other token", "old", "lost", "silent"])
async def test_anything_but_the_token_keeps_it_inline_and_it_is_asked_later(bench: Bench, trouble: str) -> None:
    seeing, infer = bench.backend.memory, bench.backend.infer

    async def answer(model: str, frame: bytes, *, timeout_seconds: float) -> bytes:
        if "hello" not in unpack(frame)[1]:
            return await infer(model, frame, timeout_seconds=timeout_seconds)
        bench.requests.append(frame)
        if trouble == "other token":
            return pack({}, {"token": "0" * 32})
        raise {"old": BackendFault, "lost": BackendUnavailable, "silent": BackendTimeout}[trouble]("no")

    if trouble == "blind":
        bench.backend.memory = Memory(None)
    else:
        bench.backend.infer = answer  # type: ignore[method-assign]
    await bench.carrier.agree()
    assert not bench.carrier.shared
    assert await bench.firsts(bench.job(250)) == [2]
    assert bench.kinds() == ["hello", "pixels"]  # not asked again at once
    bench.backend.memory, bench.backend.infer = seeing, infer  # type: ignore[method-assign]
    bench.now += ASK_AGAIN_SECONDS
    assert await bench.firsts(bench.job(250)) == [2]
    assert await bench.firsts(bench.job(250)) == [2]
    assert bench.kinds()[2:] == ["hello", "pixels+slots", "slots"]
    assert bench.usage == ALL_FREE


async def test_a_model_that_never_agrees_is_asked_ever_less_often(bench: Bench) -> None:
    bench.backend.memory = Memory(None)
    for _ in range(3600):
        await bench.carrier.agree()
        bench.now += 1
    assert 10 < bench.kinds().count("hello") < 25


async def test_a_batch_a_worker_refuses_is_sent_once_more_inline(bench: Bench) -> None:
    await bench.carrier.agree()
    bench.backend.memory = Memory(None)  # another worker of the model, which was not asked
    assert await bench.firsts(bench.job(250), bench.job(3)) == [2, 0]
    assert bench.kinds() == ["hello", "slots", "pixels"]
    assert (bench.refused, bench.carrier.shared) == (1, False)
    assert bench.usage == ALL_FREE


@pytest.mark.parametrize("failure", [BackendUnavailable("died"), BackendTimeout("stuck"), BackendFault("model failed")])
async def test_a_failed_batch_gives_every_slot_back(bench: Bench, failure: Exception) -> None:
    await bench.carrier.agree()
    bench.backend.failures = [failure]
    with pytest.raises(type(failure)):
        await bench.firsts(bench.job(250))
    assert bench.carrier.shared == isinstance(failure, BackendFault)
    assert bench.usage == ALL_FREE
    assert await bench.firsts(bench.job(250)) == [2]


async def test_a_worker_that_answers_after_the_time_out_changes_nothing(bench: Bench) -> None:
    await bench.carrier.agree()
    bench.backend.failures = [BackendTimeout("stuck")]
    with pytest.raises(BackendTimeout):
        await bench.firsts(bench.job(250))
    late = bench.requests[-1]
    bench.now += ASK_AGAIN_SECONDS
    await bench.carrier.agree()
    bench.backend.gate = asyncio.Event()
    sent = asyncio.create_task(bench.firsts(bench.job(3), bench.job(3)))
    await asyncio.sleep(0)
    answer = exchange.answer(
        late, run=lambda rows: toy_run(CARD.name, np.stack(list(rows))), memory=bench.backend.memory, about={}
    )
    assert "late" in unpack(answer)[1]["refused"]
    bench.backend.gate.set()
    assert await sent == [0, 0]
    assert bench.usage == ALL_FREE


async def test_a_worker_stuck_in_the_middle_of_writing_costs_its_slot_until_it_ends(bench: Bench) -> None:
    await bench.carrier.agree()
    writing = Memory(bench.directory.path.parent)
    infer = bench.backend.infer

    async def stuck(model: str, frame: bytes, *, timeout_seconds: float) -> bytes:
        meta = unpack(frame)[1]
        held.append(writing.output(str(meta["output"]), int(meta["generation"])))
        held[0].__enter__()
        raise BackendTimeout("stuck")

    held: list = []
    bench.backend.infer = stuck  # type: ignore[method-assign]
    with pytest.raises(BackendTimeout):
        await bench.firsts(bench.job(250))
    bench.backend.infer = infer  # type: ignore[method-assign]
    assert bench.usage == (Usage(free=6), Usage(free=1, quarantined=1))
    held[0].__exit__(None, None, None)
    assert bench.usage == ALL_FREE


async def test_a_batch_keeps_the_slots_of_callers_who_go_away(bench: Bench) -> None:
    await bench.carrier.agree()
    bench.backend.gate = asyncio.Event()
    stays, goes, gone = bench.job(250), bench.job(3), bench.job(100)
    assert goes.lease is not None
    assert gone.lease is not None
    gone.lease.drop()  # before the batch left
    sending = asyncio.create_task(bench.carrier.send([stays, goes, gone], timeout_seconds=1.0))
    await asyncio.sleep(0)
    goes.lease.drop()  # while it is on its way
    assert bench.region.inputs.usage() == Usage(free=4, used=2)
    bench.backend.gate.set()
    tensors, _ = await sending
    assert tensors["labels"][:2, 0].tolist() == [2, 0]
    assert bench.refused == 0
    assert stays.lease is not None
    stays.lease.drop()
    assert bench.usage == ALL_FREE


async def test_without_a_region_everything_is_inline() -> None:
    backend = FakeBackend(toy_run)
    carrier = Carrier(card=CARD, backend=backend, region=None, clock=lambda: 0.0)
    await carrier.agree()
    with carrier.lend() as lease:
        assert lease.allocate() is None
    assert not carrier.shared


class Calling:
    """Two workers that call back, over a fake backend whose worker they are."""

    def __init__(self, base: Path) -> None:
        self.bench = Bench(base, call=self._call, channels=Channels(CARD.name, wanted=2))
        self.memory = Memory(base)
        self.direct = 0
        self.connections: list[socket.socket] = []

    async def listen(self) -> None:
        assert self.bench.channels is not None
        await self.bench.channels.listen(self.bench.region.calls)

    def _call(self, name: str) -> None:
        if len(self.connections) < 2:  # every other question reaches the other worker
            channel.Channels(self._answer).open(name, self._connect)

    def _connect(self, name: str) -> socket.socket:
        self.connections.append(self.memory.connect(name))
        return self.connections[-1]

    def _answer(self, request: bytearray) -> bytes:
        self.direct += 1
        run = lambda rows: toy_run(CARD.name, np.stack(list(rows)))  # noqa: E731
        return exchange.answer(request, run=run, memory=self.memory, about={})


async def test_batches_go_directly_once_every_worker_called_and_by_the_backend_when_one_is_lost(tmp_path: Path) -> None:
    calling = Calling(tmp_path)
    bench, channels = calling.bench, calling.bench.channels
    assert channels is not None
    await calling.listen()
    await bench.carrier.agree()
    assert bench.carrier.shared
    assert len(channels) == 2
    asked = len(bench.requests)
    assert await bench.firsts(bench.job(250), bench.job(3)) == [2, 0]
    assert (calling.direct, len(bench.requests)) == (1, asked)
    calling.connections.pop().shutdown(socket.SHUT_RDWR)
    while channels.complete:
        await asyncio.sleep(0.001)
    assert await bench.firsts(bench.job(100)) == [1]
    assert (calling.direct, len(bench.requests)) == (1, asked + 1)
    bench.now += ASK_AGAIN_SECONDS  # it was started again, and is asked
    assert await bench.firsts(bench.job(100)) == [1]
    assert calling.direct == 2
    assert bench.usage == ALL_FREE
    await channels.close()
    bench.directory.remove()


async def test_a_worker_that_cannot_call_back_is_told_of_once_and_served_by_the_backend(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def call(name: str) -> None:
        raise Refused("no socket of this name")

    bench = Bench(tmp_path, call=call, channels=Channels(CARD.name, wanted=1))
    for _ in range(2):
        await bench.carrier.agree()
        bench.now += ASK_AGAIN_MOST_SECONDS
    assert [record.getMessage() for record in caplog.records if "no socket of this name" in record.getMessage()] == [
        f"model {CARD.name}: batches go through the backend, a worker cannot call back: no socket of this name"
    ]
    assert await bench.firsts(bench.job(250)) == [2]
    bench.directory.remove()
