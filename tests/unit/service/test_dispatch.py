import numpy as np
import pytest
from fakes import SIDE, toy_card, toy_run

from handlers.frame import Array, pack
from service.backend import FakeBackend
from service.carrier import Carrier
from service.dispatch import Dispatcher
from service.errors import BackendFault, BackendTimeout, BackendUnavailable
from service.work import Job


class Bench:
    def __init__(self, run=toy_run) -> None:
        self.now = 0.0
        self.retries = 0
        self.trouble = 0
        self.backend = FakeBackend(run)
        self.dispatcher = Dispatcher(
            card=toy_card(),
            carrier=Carrier(card=toy_card(), backend=self.backend, region=None, clock=lambda: self.now),
            batch_timeout_seconds=1.0,
            clock=lambda: self.now,
            on_retry=self._retried,
            on_trouble=self._troubled,
        )

    def _retried(self) -> None:
        self.retries += 1

    def _troubled(self) -> None:
        self.trouble += 1


def job(shade: int, *, deadline: float = 10.0) -> Job:
    pixels = np.full((SIDE, SIDE, 3), shade, np.uint8)
    return Job(request_id=str(shade), pixels=pixels, deadline_seconds=deadline, submitted_seconds=0.0)


async def test_each_picture_gets_its_own_row_in_order() -> None:
    bench = Bench()
    result = await bench.dispatcher.run([job(250), job(3), job(100)])
    assert [int(row["labels"][0]) for row in result.rows] == [2, 0, 1]
    assert bench.backend.batch_sizes == [3]


async def test_how_many_pictures_a_worker_runs_at_once_is_passed_on() -> None:
    bench = Bench()
    bench.backend.part = 2
    assert (await bench.dispatcher.run([job(250)])).part == 2


async def test_a_batch_lost_to_a_dying_worker_is_sent_once_more() -> None:
    bench = Bench()
    bench.backend.failures = [BackendUnavailable("the worker died")]
    result = await bench.dispatcher.run([job(250)])
    assert int(result.rows[0]["labels"][0]) == 2
    assert (bench.retries, bench.trouble) == (1, 1)


async def test_a_batch_lost_twice_fails() -> None:
    bench = Bench()
    bench.backend.failures = [BackendUnavailable("died"), BackendUnavailable("died again")]
    with pytest.raises(BackendUnavailable, match="died again"):
        await bench.dispatcher.run([job(250)])
    assert bench.backend.batch_sizes == [1, 1]


async def test_a_lost_batch_whose_deadlines_passed_is_not_sent_again() -> None:
    bench = Bench()
    bench.backend.failures = [BackendUnavailable("died")]
    bench.now = 10.0
    with pytest.raises(BackendUnavailable):
        await bench.dispatcher.run([job(250, deadline=10.0)])
    assert bench.backend.batch_sizes == [1]


@pytest.mark.parametrize("failure", [BackendFault("the model failed"), BackendTimeout("stuck")])
async def test_what_would_fail_again_is_not_sent_again(failure: Exception) -> None:
    bench = Bench()
    bench.backend.failures = [failure]
    with pytest.raises(type(failure)):
        await bench.dispatcher.run([job(250)])
    assert bench.backend.batch_sizes == [1]


def _too_few_rows(model: str, pixels: Array) -> dict[str, Array]:
    return {name: tensor[:-1] for name, tensor in toy_run(model, pixels).items()}


def _wrong_dtype(model: str, pixels: Array) -> dict[str, Array]:
    return {name: tensor.astype(np.float32) for name, tensor in toy_run(model, pixels).items()}


def _missing(model: str, pixels: Array) -> dict[str, Array]:
    return {"scores": toy_run(model, pixels)["scores"]}


@pytest.mark.parametrize("run", [_too_few_rows, _wrong_dtype, _missing])
async def test_an_answer_that_breaks_the_card_is_a_fault_that_names_it(run) -> None:
    bench = Bench(run)
    with pytest.raises(BackendFault, match="its card says"):
        await bench.dispatcher.run([job(1), job(2)])


async def test_an_answer_that_is_no_frame_is_a_fault() -> None:
    bench = Bench()

    async def infer(model: str, frame: bytes, *, timeout_seconds: float) -> bytes:
        return pack({})[:6]

    bench.backend.infer = infer  # type: ignore[method-assign]
    with pytest.raises(BackendFault, match="no tensor frame"):
        await bench.dispatcher.run([job(1)])
