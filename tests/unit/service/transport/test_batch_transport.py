"""What a batch costs: slots, a second sending, a late, lost or blind worker."""

import asyncio
from pathlib import Path

import numpy as np
import pytest
from fakes import toy_run
from transport_bench import ALL_FREE, CARD, Bench, Run

from handlers.contract import worker_protocol
from handlers.contract.frame import Array, pack, unpack
from handlers.contract.shm_layout import Memory
from service.core.errors import BackendFault, BackendTimeout, BackendUnavailable
from service.core.types import Computed, Usage
from service.transport.handshake import RETRY_SECONDS


async def test_pictures_beyond_the_slots_travel_inline_in_their_places(started: Bench) -> None:
    waiting = [started.job(0) for _ in range(5)]
    assert await started.firsts(started.job(250), started.job(100)) == [2, 1]
    assert started.batches() == ["pixels+slots"]
    for job in waiting:
        assert job.lease is not None
        job.lease.release()
    assert started.usage == ALL_FREE


async def test_without_an_output_slot_the_answer_is_inline(started: Bench) -> None:
    assert started.region is not None
    taken = [started.region.outputs.take(), started.region.outputs.take()]
    assert await started.firsts(started.job(250)) == [2]
    for slot in taken:
        assert slot is not None
        started.region.outputs.free(slot)
    assert started.usage == ALL_FREE


async def test_a_batch_a_worker_refuses_is_sent_once_more_inline(started: Bench) -> None:
    started.backend.memory = Memory(None)  # another worker of the model, which was not asked
    assert await started.firsts(started.job(250), started.job(3)) == [2, 0]
    assert started.batches() == ["slots", "pixels"]
    assert (started.refused, started.retried, started.failed, started.transport.shared) == (1, 0, 0, False)
    assert started.usage == ALL_FREE


@pytest.mark.parametrize("failure", [BackendUnavailable("died"), BackendTimeout("stuck"), BackendFault("model failed")])
async def test_a_failed_batch_gives_every_slot_back(started: Bench, failure: BackendFault) -> None:
    started.backend.failures = [failure]
    with pytest.raises(type(failure)):
        await started.firsts(started.job(250, deadline_at=started.now))
    assert started.transport.shared == isinstance(failure, BackendFault)
    assert started.usage == ALL_FREE
    assert await started.firsts(started.job(250)) == [2]


async def test_a_worker_that_answers_after_the_time_out_changes_nothing(started: Bench) -> None:
    started.backend.failures = [BackendTimeout("stuck")]
    with pytest.raises(BackendTimeout):
        await started.firsts(started.job(250))
    late = started.requests[-1]
    await started.pass_seconds(RETRY_SECONDS)
    started.backend.gate = asyncio.Event()
    sent = asyncio.create_task(started.firsts(started.job(3), started.job(3)))
    await asyncio.sleep(0)
    answer = worker_protocol.answer(
        late, run=lambda rows: toy_run(CARD.name, np.stack(list(rows))), memory=started.backend.memory, about={}
    )
    assert "late" in unpack(answer)[1]["refused"]
    started.backend.gate.set()
    assert await sent == [0, 0]
    assert started.batches() == ["slots", "slots"]
    assert started.usage == ALL_FREE


async def test_a_worker_stuck_in_the_middle_of_writing_costs_its_slot_until_it_ends(started: Bench) -> None:
    assert started.directory is not None
    writing = Memory(started.directory.path.parent)
    infer = started.backend.infer

    async def stuck(model: str, frame: bytes, *, timeout_seconds: float, version: str = "") -> bytes:
        meta = unpack(frame)[1]
        held.append(writing.output(str(meta["output"]), int(meta["generation"])))
        held[0].__enter__()
        raise BackendTimeout("stuck")

    held: list = []
    started.backend.infer = stuck  # type: ignore[method-assign]
    with pytest.raises(BackendTimeout):
        await started.firsts(started.job(250))
    started.backend.infer = infer  # type: ignore[method-assign]
    assert started.usage == (Usage(free=6), Usage(free=1, quarantined=1))
    held[0].__exit__(None, None, None)
    assert started.usage == ALL_FREE


async def test_a_batch_keeps_the_slots_of_callers_who_go_away(started: Bench) -> None:
    started.backend.gate = asyncio.Event()
    stays, goes, gone = started.job(250), started.job(3), started.job(100)
    assert goes.lease is not None
    assert gone.lease is not None
    gone.lease.release()  # before the batch left
    sending = asyncio.create_task(started.transport.run([stays, goes, gone]))
    await asyncio.sleep(0)
    goes.lease.release()  # while the batch is on its way
    assert started.transport.usage("input") == Usage(free=4, used=2)
    started.backend.gate.set()
    result = await sending
    assert [int(row["labels"][0]) for row in result.rows[:2]] == [2, 0]
    assert started.refused == 0
    assert stays.lease is not None
    stays.lease.release()
    assert started.usage == ALL_FREE


async def test_without_a_region_everything_is_inline() -> None:
    bench = Bench()
    await bench.transport.start()
    with bench.transport.lease() as lease:
        assert lease.allocate() is None
    assert not bench.transport.has_shared_memory
    assert not bench.transport.shared
    assert await bench.firsts(bench.job(250), bench.job(3), bench.job(100)) == [2, 0, 1]
    assert bench.backend.batch_sizes == [3]
    await bench.transport.close()


async def test_how_many_pictures_a_worker_runs_at_once_is_passed_on() -> None:
    bench = Bench()
    bench.backend.part = 2
    assert (await bench.transport.run([bench.job(250)])).micro_batch == 2


OPENVINO = {"engine": "openvino", "dtype": "bfloat16", "device": "cpu"}
FELL_BACK = {"engine": "torchscript", "dtype": "float32", "device": "cpu", "engines_refused": "openvino/float32"}


async def test_what_a_worker_computes_with_is_known_from_its_answers_and_a_change_is_told_once() -> None:
    bench = Bench()
    assert bench.transport.computed == Computed()
    for about in (OPENVINO, OPENVINO, FELL_BACK, FELL_BACK):
        bench.backend.about = about
        result = await bench.transport.run([bench.job(250)])
        assert (result.network_engine, result.dtype, result.device) == (about["engine"], about["dtype"], "cpu")
    first, second = (
        Computed("openvino", "bfloat16", "cpu"),
        Computed("torchscript", "float32", "cpu", "openvino/float32"),
    )
    assert bench.computed == [first, first, second, second]
    assert bench.changes == [first, second]
    bench.backend.about = {}  # built before workers said it
    await bench.transport.run([bench.job(250)])
    assert (bench.computed[-1], bench.transport.computed) == (Computed(), second)


async def test_a_handshake_says_what_a_worker_computes_with_before_the_first_batch(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.backend.about = OPENVINO
    await bench.transport.start()
    assert bench.transport.shared
    assert bench.changes == [bench.transport.computed] == [Computed("openvino", "bfloat16", "cpu")]
    assert bench.computed == []
    await bench.transport.close()


async def test_a_batch_lost_to_a_dying_worker_is_sent_once_more() -> None:
    bench = Bench()
    bench.backend.failures = [BackendUnavailable("the worker died")]
    assert await bench.firsts(bench.job(250)) == [2]
    assert (bench.retried, bench.failed) == (1, 1)


async def test_a_batch_lost_twice_fails() -> None:
    bench = Bench()
    bench.backend.failures = [BackendUnavailable("died"), BackendUnavailable("died again")]
    with pytest.raises(BackendUnavailable, match="died again"):
        await bench.firsts(bench.job(250))
    assert bench.backend.batch_sizes == [1, 1]
    assert bench.failed == 2


async def test_a_lost_batch_whose_deadlines_passed_is_not_sent_again() -> None:
    bench = Bench()
    bench.backend.failures = [BackendUnavailable("died")]
    with pytest.raises(BackendUnavailable):
        await bench.firsts(bench.job(250, deadline_at=bench.now))
    assert bench.backend.batch_sizes == [1]


@pytest.mark.parametrize("failure", [BackendFault("the model failed"), BackendTimeout("stuck")])
async def test_what_would_fail_again_is_not_sent_again(failure: BackendFault) -> None:
    bench = Bench()
    bench.backend.failures = [failure]
    with pytest.raises(type(failure)):
        await bench.firsts(bench.job(250))
    assert bench.backend.batch_sizes == [1]


def _too_few_rows(model: str, pixels: Array) -> dict[str, Array]:
    return {name: tensor[:-1] for name, tensor in toy_run(model, pixels).items()}


def _wrong_dtype(model: str, pixels: Array) -> dict[str, Array]:
    return {name: tensor.astype(np.float32) for name, tensor in toy_run(model, pixels).items()}


def _missing(model: str, pixels: Array) -> dict[str, Array]:
    return {"scores": toy_run(model, pixels)["scores"]}


@pytest.mark.parametrize("run", [_too_few_rows, _wrong_dtype, _missing])
async def test_an_answer_that_breaks_the_card_is_a_fault_that_names_it(run: Run) -> None:
    bench = Bench(run=run)
    with pytest.raises(BackendFault, match="its card says"):
        await bench.firsts(bench.job(1), bench.job(2))


async def test_an_answer_that_is_no_frame_is_a_fault() -> None:
    bench = Bench()

    async def infer(model: str, frame: bytes, *, version: str, timeout_seconds: float) -> bytes:
        return pack({})[:6]

    bench.backend.infer = infer  # type: ignore[method-assign]
    with pytest.raises(BackendFault, match="no tensor frame"):
        await bench.firsts(bench.job(1))


async def test_a_lost_batch_goes_to_another_connected_worker_not_to_the_engine(
    started: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    started.backend.failures = [BackendUnavailable("died"), BackendUnavailable("the engine has not noticed it")]
    monkeypatch.setattr(type(started.connections), "__len__", lambda self: 1)
    monkeypatch.setattr(type(started.connections), "complete", False)
    sent: list[int] = []

    async def direct(frame: bytes, *, timeout_seconds: float, pictures: int = 1) -> bytes:
        sent.append(pictures)
        started.backend.failures.clear()
        return await started.infer(CARD.name, frame, version=CARD.version, timeout_seconds=timeout_seconds)

    monkeypatch.setattr(started.connections, "infer", direct)
    assert await started.firsts(started.job(250), started.job(3)) == [2, 0]
    assert sent == [2]
