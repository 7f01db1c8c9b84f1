"""What an engine promises, kept by the fake engine and by a real TorchServe, inline and through shared memory."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest
import pytest_asyncio
from fake_engine import FakeEngine
from toy_torchserve import SIDE, build, config_for, worker_of

from handlers.contract.card import Card
from handlers.contract.frame import Array, pack, unpack
from model_store.build.archive import read_card
from service.core.errors import BackendFault, BackendTimeout, BackendUnavailable
from service.core.types import Job, Usage
from service.engines.base import Engine, Loading, Runner
from service.engines.torchserve.engine import TorchServeEngine
from service.engines.torchserve.process import TorchServeProcess
from service.transport.batch_transport import BatchTransport
from service.transport.handshake import RETRY_SECONDS
from service.transport.shm_region import SharedDirectory, ShmRegion, Size
from service.transport.worker_connections import WorkerConnections

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    # TorchScript is this project's format; torch deprecates it in favour of torch.export.
    pytest.mark.filterwarnings(r"ignore:`torch\.jit\.:DeprecationWarning"),
]

SECONDS = 30.0


@dataclass
class Kept:
    """A started engine that serves the toy, and the directory that its workers may look into."""

    engine: Engine
    card: Card
    base: Path
    embedded: TorchServeProcess | None = None

    @property
    def runner(self) -> Runner:
        return self.engine.runner


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    build(tmp_path_factory.mktemp("new"), "1.1").rename(folder / "toy@1.1.mar")
    return build(folder)


def _toy_run(model: str, pixels: Array) -> dict[str, Array]:
    if model != "toy":
        raise BackendUnavailable("Model not found")
    if pixels.shape[1:] != (SIDE, SIDE, 3):
        raise BackendFault("the module takes another size")
    mean = pixels.astype(np.float32).mean((1, 2, 3))
    scores = np.stack([mean, -mean], 1)
    return {"scores": scores, "labels": np.zeros(scores.shape, np.int32)}


@pytest_asyncio.fixture(
    scope="module", loop_scope="module", params=["fake", pytest.param("torchserve", marks=pytest.mark.integration)]
)
async def kept(
    request: pytest.FixtureRequest, toy: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Kept]:
    base, card = tmp_path_factory.mktemp("shm"), read_card(toy)
    embedded = None
    if request.param == "fake":
        engine: Engine = fake_toy(base)
    else:
        embedded = TorchServeProcess(config_for(toy, shm_dir=base, response_timeout_seconds=10))
        engine = TorchServeEngine(embedded)
    await engine.start()
    supervising = asyncio.create_task(engine.supervise())
    yield Kept(engine, card, base, embedded)
    assert not supervising.done()
    await engine.stop()
    await asyncio.wait_for(supervising, SECONDS)
    await engine.stop()  # twice is allowed


def fake_toy(base: Path) -> FakeEngine:
    fake = FakeEngine(_toy_run, shm_dir=base)
    fake.workers, fake.defaults = {"toy": {"1.0": 1}}, {"toy": "1.0"}
    return fake


class Sender:
    """A transport, in shared memory or inline, and the slots it uses.

    There is one worker. While a transport expects more `workers`, its batches go through the engine.
    """

    def __init__(
        self,
        kept: Kept,
        region: ShmRegion | None,
        directory: SharedDirectory | None,
        *,
        batch_timeout_seconds: float = SECONDS,
        workers: int = 2,
    ) -> None:
        self.late_seconds = 0.0
        self.refused = 0
        loop = asyncio.get_running_loop()
        self.region = region

        def clock() -> float:
            return loop.time() + self.late_seconds

        self.transport = BatchTransport(
            card=kept.card,
            runner=kept.runner,
            region=region,
            memory=directory,
            connections=WorkerConnections(kept.card.name, wanted=workers),
            batch_timeout_seconds=batch_timeout_seconds,
            clock=clock,
            on_refused=self._count,
        )
        self._clock = clock

    def _count(self) -> None:
        self.refused += 1

    async def rows(self, *pictures: Array) -> list[dict[str, Array]]:
        with contextlib.ExitStack() as held:
            jobs = []
            for picture in pictures:
                lease = held.enter_context(self.transport.lease())
                pixels = lease.allocate()
                if pixels is not None:
                    np.copyto(pixels, picture)
                jobs.append(Job("", picture if pixels is None else pixels, self._clock() + SECONDS, 0.0, lease))
            return [dict(row) for row in (await self.transport.run(jobs)).rows]

    def used(self) -> tuple[int, int, int]:
        assert self.region is not None
        inputs, outputs = self.region.inputs.usage(), self.region.outputs.usage()
        return inputs.used, outputs.used, outputs.quarantined


@contextlib.asynccontextmanager
async def sharing(kept: Kept, *, batch_timeout_seconds: float = SECONDS, workers: int = 2) -> AsyncIterator[Sender]:
    directory = SharedDirectory(kept.base)
    size = Size.wanted(kept.card, max_batch=8, batches=1, pictures=6)
    region = directory.region(kept.card, size)
    sender = Sender(kept, region, directory, batch_timeout_seconds=batch_timeout_seconds, workers=workers)
    try:
        await sender.transport.start()
        assert sender.transport.shared
        yield sender
    finally:
        await sender.transport.close()


def pictures(count: int) -> list[Array]:
    return list(np.random.default_rng(count).integers(0, 250, (count, SIDE, SIDE, 3), np.uint8))


async def test_a_started_engine_has_a_ready_worker_and_answers(kept: Kept) -> None:
    status = await kept.engine.versions.model_status("toy", "1.0")
    assert (status.ready_workers, status.total_workers, status.detail) == (1, 1, "")
    frame = pack({"pixels": np.full((1, SIDE, SIDE, 3), 7, np.uint8)})
    tensors, _ = unpack(await kept.runner.infer("toy", frame, timeout_seconds=SECONDS, version="1.0"))
    assert tensors["scores"].tolist() == [[7, -7]]


async def test_an_engine_that_was_never_started_may_be_stopped(kept: Kept, toy: Path, tmp_path: Path) -> None:
    fresh: Engine = TorchServeEngine(TorchServeProcess(config_for(toy))) if kept.embedded else fake_toy(tmp_path)
    await fresh.stop()


async def test_an_engine_started_elsewhere_uses_its_workers_and_leaves_them_running(kept: Kept) -> None:
    if kept.embedded is None:
        pytest.skip("nobody else can reach a fake")
    beside = TorchServeEngine(kept.embedded.endpoint)
    await beside.start()
    await beside.supervise()  # returns, because there is nothing to supervise
    assert beside.replica_settings == kept.engine.replica_settings
    frame = pack({"pixels": np.full((1, SIDE, SIDE, 3), 7, np.uint8)})
    await beside.runner.infer("toy", frame, timeout_seconds=SECONDS)
    await beside.stop()
    await kept.runner.infer("toy", frame, timeout_seconds=SECONDS)


@pytest.mark.parametrize("count", [1, 5, 8])  # 8: more than there are slots
@pytest.mark.parametrize("workers", [2, 1], ids=["through the engine", "direct"])
async def test_inline_and_shared_memory_give_the_same_bits(kept: Kept, count: int, workers: int) -> None:
    images = pictures(count)
    inline = await Sender(kept, None, None).rows(*images)
    async with sharing(kept, workers=workers) as sender:
        if kept.embedded is not None:
            assert sender.transport.connections.complete == (workers == 1)
        for _ in range(3):
            shared = await sender.rows(*images)
            for one, other in zip(shared, inline, strict=True):
                assert {n: a.tobytes() for n, a in one.items()} == {n: a.tobytes() for n, a in other.items()}
        assert sender.used() == (0, 0, 0)
        assert sender.refused == 0


async def test_a_worker_refuses_what_is_not_below_its_directory(kept: Kept, tmp_path: Path) -> None:
    elsewhere = SharedDirectory(tmp_path)
    size = Size.wanted(kept.card, max_batch=8, batches=1, pictures=6)
    sender = Sender(kept, elsewhere.region(kept.card, size), elsewhere)
    try:
        await sender.transport.start()
        assert not sender.transport.shared
        [row] = await sender.rows(np.full((SIDE, SIDE, 3), 7, np.uint8))
        assert row["scores"].tolist() == [7, -7]
    finally:
        await sender.transport.close()


async def test_a_worker_that_cannot_open_a_slot_file_costs_one_resend(kept: Kept) -> None:
    async with sharing(kept) as sender:
        assert sender.region is not None
        (kept.base / sender.region.inputs_name).unlink()
        [row] = await sender.rows(np.full((SIDE, SIDE, 3), 7, np.uint8))
        assert row["scores"].tolist() == [7, -7]
        assert (sender.refused, sender.transport.shared) == (1, False)
        assert sender.used() == (0, 0, 0)


@pytest.mark.parametrize(
    "frame",
    [
        pack({"slots": np.zeros((1, 2), np.int32)}, {"inputs": "/etc/passwd", "height": SIDE, "width": SIDE}),
        pack({}, {"hello": "../../etc/passwd"}),
    ],
)
async def test_a_hostile_description_is_refused_in_so_many_words(kept: Kept, frame: bytes) -> None:
    tensors, meta = unpack(await kept.runner.infer("toy", frame, timeout_seconds=SECONDS))
    assert tensors == {}
    assert "is not the name of a gateway's file" in meta["refused"]


async def test_what_is_no_request_is_a_fault(kept: Kept) -> None:
    with pytest.raises(BackendFault, match="holds the tensor 'pixels'"):
        await kept.runner.infer("toy", pack({}), timeout_seconds=SECONDS)


async def test_a_worker_killed_with_the_batch_in_hand_costs_no_answer_and_no_slot(kept: Kept) -> None:
    if kept.embedded is None:
        pytest.skip("the fake has no process to kill")
    image = np.full((SIDE, SIDE, 3), 9, np.uint8)
    # TorchServe may hold a call that comes while it has no worker.
    async with sharing(kept, batch_timeout_seconds=3.0) as sender:
        worker = worker_of(kept.embedded.process_group)
        worker.suspend()  # so that the batch is surely in its hands
        sent = asyncio.create_task(sender.rows(image))
        await asyncio.sleep(0.3)
        assert sender.used() == (1, 1, 0)
        worker.kill()
        with contextlib.suppress(BackendUnavailable, BackendTimeout):  # sent again before there is another worker
            assert (await sent)[0]["scores"].tolist() == [9, -9]
        async with asyncio.timeout(3 * SECONDS):
            while True:
                try:
                    [row] = await sender.rows(image)
                except (BackendUnavailable, BackendTimeout):
                    await asyncio.sleep(0.1)
                else:
                    break
        assert row["scores"].tolist() == [9, -9]
        assert sender.used() == (0, 0, 0)
        sender.late_seconds = 100 * RETRY_SECONDS
        assert sender.transport.handshake is not None
        sender.transport.handshake.wake()
        async with asyncio.timeout(SECONDS):
            while not sender.transport.shared:
                await asyncio.sleep(0.01)
        [row] = await sender.rows(image)
        assert row["scores"].tolist() == [9, -9]


async def test_a_worker_that_answers_after_the_time_out_cannot_write(kept: Kept) -> None:
    if kept.embedded is None:
        pytest.skip("the fake has no process to stop")
    async with sharing(kept) as sender:
        assert sender.region is not None
        worker = worker_of(kept.embedded.process_group)
        outputs, generation = sender.region.outputs, np.zeros((1, 2), np.int32)
        first = outputs.take()
        assert first is not None
        with contextlib.closing(_Slot(sender.region)) as slot:
            generation[0] = slot.index, slot.generation
            meta = {"inputs": sender.region.inputs_name, "height": SIDE, "width": SIDE}
            meta |= {"output": sender.region.output_name(first.index), "generation": first.generation}
            before = outputs.content(first).tobytes()
            worker.suspend()
            call = asyncio.create_task(
                kept.runner.infer("toy", pack({"slots": generation}, meta), timeout_seconds=SECONDS)
            )
            await asyncio.sleep(0.3)
            outputs.quarantine(first)  # as on a time-out
            taken = [outputs.take(), outputs.take()]  # the stopped worker holds no lock, so both may be used
            assert None not in taken
            worker.resume()
            answer = unpack(await call)[1]
        assert "late" in answer["refused"]
        assert outputs.content(first).tobytes() == before
        for output in taken:
            assert output is not None
            outputs.free(output)
        assert outputs.usage() == Usage(free=2)


class _Slot:
    def __init__(self, region: ShmRegion) -> None:
        self._lease = region.inputs.lease()
        pixels = self._lease.allocate()
        assert pixels is not None
        pixels[:] = 5
        assert self._lease.index is not None
        self.index, self.generation = self._lease.index, self._lease.generation

    def close(self) -> None:
        self._lease.release()


async def test_a_worker_holds_no_file_of_a_gateway_that_is_gone(kept: Kept) -> None:
    for _ in range(2):
        async with sharing(kept) as sender:
            await sender.rows(np.full((SIDE, SIDE, 3), 7, np.uint8))
    async with sharing(kept) as sender:
        await sender.rows(np.full((SIDE, SIDE, 3), 7, np.uint8))
        process = psutil.Process() if kept.embedded is None else worker_of(kept.embedded.process_group)
        maps = {m.path for m in process.memory_maps() if "mobilevision-shm-" in m.path}
        assert {Path(path.removesuffix(" (deleted)")).parent.name for path in maps} >= {sender.region.directory}
        if kept.embedded is not None:
            assert not [path for path in maps if path.endswith("(deleted)")]
    assert list(kept.base.iterdir()) == []


async def test_a_version_comes_beside_another_and_goes_again(kept: Kept, toy: Path) -> None:
    manager, frame = kept.engine.versions, pack({"pixels": np.full((1, SIDE, SIDE, 3), 7, np.uint8)})
    archive = toy.with_name("toy@1.1.mar")
    loading = Loading(archive, read_card(archive), workers=1, response_timeout_seconds=10, startup_timeout_seconds=60)
    assert (await manager.versions("toy")).keys() == {"1.0"}
    await manager.load("toy", "1.1", loading)
    await manager.load("toy", "1.1", loading)  # as another gateway process does
    async with asyncio.timeout(SECONDS):
        while not (await manager.versions("toy"))["1.1"].ready_workers:
            await asyncio.sleep(0.05)
    for version in ("", "1.0", "1.1"):
        await kept.runner.infer("toy", frame, timeout_seconds=SECONDS, version=version)
    await manager.scale("toy", "1.1", 2)
    assert (await manager.versions("toy"))["1.1"].total_workers == 2
    await manager.make_default("toy", "1.1")
    with pytest.raises(BackendUnavailable):
        await manager.unload("toy", "1.1")
    await manager.make_default("toy", "1.0")
    await manager.unload("toy", "1.1")
    await manager.unload("toy", "1.1")
    assert (await manager.versions("toy")).keys() == {"1.0"}
    with pytest.raises(BackendUnavailable):
        await manager.scale("toy", "1.1", 1)
    assert await manager.versions("absent") == {}
