"""Which deployment has the last word on a request, on fake deployments."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest
import virtual
from fake_deployment import FakeDeployment
from fake_engine import FakeEngine
from fakes import picture, toy_card, toy_run

from handlers.contract.card import Card, Task
from service.core.call_scope import CallScope
from service.core.catalog import Catalog
from service.core.errors import (
    BackendFault,
    DeadlineExceeded,
    ImageEmpty,
    ModelNotReady,
    ShuttingDown,
    TooManyRequests,
)
from service.core.types import Decoded, Prediction, RequestRecord
from service.observability.metrics import Metrics
from service.preprocess.decode_watch import DecodeWatch
from service.serving.health import Health, HealthReport
from service.serving.pipeline import Pipeline, Request
from service.serving.shadow import ShadowRunner
from service.serving.traffic_split import TrafficSplit


@dataclass
class World:
    """A pipeline before a stable deployment 1.0 and a candidate 1.1 that gets all requests."""

    pipeline: Pipeline
    split: TrafficSplit
    stable: FakeDeployment
    candidate: FakeDeployment

    async def call(self, record: RequestRecord, *, seconds: float = 10.0, image: bytes = b"", caller: str = "") -> str:
        scope = CallScope(record, asyncio.get_running_loop().time() + seconds, caller)
        return await self.pipeline.run(Request(Task.CLASSIFY, "", image or picture()), scope, render)


def render(card: Card, decoded: Decoded, prediction: Prediction) -> str:
    return card.version


def publish(report: HealthReport) -> None:
    pass


def deployment(version: str) -> FakeDeployment:
    made = FakeDeployment(toy_card().model_copy(update={"version": version}), toy_run)
    made.why_not_ready = None
    return made


def world(*, max_inflight: int = 10, max_picture_bytes: int = 10**6) -> World:
    metrics, pool = Metrics(), ThreadPoolExecutor(1)
    stable, candidate = deployment("1.0"), deployment("1.1")
    split = TrafficSplit(stable)
    split.candidate, split.weight = candidate, 1.0
    splits = {split.model: split}
    versions = FakeEngine(toy_run).versions
    health = Health(
        versions=versions,
        splits=splits,
        metrics=metrics,
        poll_seconds=1.0,
        publish=publish,
        decoding=DecodeWatch(dict, max_seconds=60.0, on_overrun=metrics.requests.decode_overran),
    )
    pipeline = Pipeline(
        catalog=Catalog([toy_card()]),
        splits=splits,
        shadows=ShadowRunner(metrics=metrics, pool=pool),
        health=health,
        render_pool=pool,
        max_inflight=max_inflight,
        max_picture_bytes=max_picture_bytes,
        retry_after_seconds=1.5,
    )
    return World(pipeline, split, stable, candidate)


def record() -> RequestRecord:
    return RequestRecord(request_id="call-1")


async def test_the_candidate_answers_its_share() -> None:
    it, seen = world(), record()
    assert await it.call(seen) == "1.1"
    assert (seen.version, seen.passed_on) == ("1.1", "")
    assert list(seen.stage_seconds) == ["decode", "queue", "transport", "inference", "results"]
    assert len(it.candidate.rendering_seconds) == 1


async def test_the_stable_version_answers_when_the_candidate_fails() -> None:
    it, seen = world(), record()
    it.candidate.failure = BackendFault("broken")
    assert await it.call(seen) == "1.0"
    assert (seen.version, seen.passed_on) == ("1.0", "1.1")


async def test_a_mistake_of_the_caller_is_not_passed_on() -> None:
    it, seen = world(), record()
    it.candidate.failure = ImageEmpty("no bytes")
    with pytest.raises(ImageEmpty):
        await it.call(seen)
    assert it.stable.asked == []


async def test_an_error_of_the_stable_version_is_final() -> None:
    it, seen = world(), record()
    it.candidate.failure = it.stable.failure = BackendFault("broken")
    with pytest.raises(BackendFault):
        await it.call(seen)
    assert (seen.version, seen.passed_on) == ("1.0", "1.1")


async def test_a_stable_version_that_fails_is_not_asked_again() -> None:
    it, seen = world(), record()
    it.split.weight, it.stable.failure = 0.0, BackendFault("broken")
    with pytest.raises(BackendFault):
        await it.call(seen)
    assert len(it.stable.asked) == 1
    assert (seen.version, seen.passed_on) == ("1.0", "")


async def test_a_candidate_that_fails_after_it_became_stable_has_the_last_word() -> None:
    it, seen = world(), record()
    it.candidate.failure = BackendFault("broken")
    it.candidate.gate = asyncio.Event()
    call = asyncio.create_task(it.call(seen))
    await asyncio.sleep(0)
    it.split.promote()
    it.candidate.gate.set()
    with pytest.raises(BackendFault):
        await call
    assert it.stable.asked == []
    assert len(it.candidate.asked) == 1


async def test_a_version_that_ceased_to_be_stable_passes_on_to_the_one_that_is() -> None:
    it, seen = world(), record()
    it.split.weight = 0.0
    it.stable.failure = ShuttingDown("closed")
    choose = it.split.choose

    def choose_then_promote(request_id: str) -> object:
        choice = choose(request_id)
        it.split.promote()
        return choice

    it.split.choose = choose_then_promote  # type: ignore[method-assign, assignment]
    assert await it.call(seen) == "1.1"
    assert seen.passed_on == "1.0"


async def test_a_candidate_that_became_stable_has_the_last_word() -> None:
    it, seen = world(), record()
    it.candidate.gate = asyncio.Event()
    call = asyncio.create_task(it.call(seen))
    await asyncio.sleep(0)
    it.split.promote()
    it.candidate.gate.set()
    assert await call == "1.1"


def test_a_candidate_that_hangs_costs_half_of_the_time_a_call_has() -> None:
    async def play() -> None:
        it, seen = world(), record()
        it.candidate.gate = asyncio.Event()
        assert await it.call(seen, seconds=4.0) == "1.0"
        assert asyncio.get_running_loop().time() == pytest.approx(2.0)
        assert seen.passed_on == "1.1"
        it.stable.gate = asyncio.Event()
        with pytest.raises(DeadlineExceeded):
            await it.call(record(), seconds=4.0)
        assert asyncio.get_running_loop().time() == pytest.approx(6.0)

    virtual.run(play())


async def test_a_stable_version_that_is_not_ready_says_why_and_when_to_retry() -> None:
    it, seen = world(), record()
    it.split.weight, it.stable.why_not_ready = 0.0, "it is starting"
    with pytest.raises(ModelNotReady, match="it is starting") as refused:
        await it.call(seen)
    assert refused.value.message == "model toy_classify does not answer now"  # the reason is for operators
    assert refused.value.retry_after_seconds == 1.5
    assert seen.version == "1.0"
    assert it.stable.asked == []


async def test_no_more_requests_than_the_limit_are_in_work_and_draining_waits_for_them() -> None:
    it = world(max_inflight=1)
    it.candidate.gate = asyncio.Event()
    call = asyncio.create_task(it.call(record()))
    await asyncio.sleep(0)
    assert it.pipeline.inflight == 1
    with pytest.raises(TooManyRequests):
        await it.call(record())
    draining = asyncio.create_task(it.pipeline.drain(10.0))
    await asyncio.sleep(0)
    with pytest.raises(ShuttingDown):
        await it.call(record())
    assert not draining.done()
    it.candidate.gate.set()
    assert await call == "1.1"
    await draining
    assert it.pipeline.inflight == 0


async def test_requests_of_a_caller_count_twice_where_several_callers_share_the_server() -> None:
    it = world(max_inflight=4)
    it.candidate.gate = asyncio.Event()
    calls = [asyncio.create_task(it.call(record(), caller="flood")) for _ in range(4)]
    await asyncio.sleep(0)
    assert it.pipeline.inflight == 4  # a caller alone may use all
    with pytest.raises(TooManyRequests):
        await it.call(record(), caller="modest")
    it.candidate.gate.set()
    await asyncio.gather(*calls)
    it.candidate.gate.clear()
    calls = [asyncio.create_task(it.call(record(), caller=caller)) for caller in ("flood", "flood", "modest")]
    await asyncio.sleep(0)
    assert it.pipeline.inflight == 3
    with pytest.raises(TooManyRequests):
        await it.call(record(), caller="flood")
    it.candidate.gate.set()
    await asyncio.gather(*calls)
    assert it.pipeline.inflight == 0


async def test_held_refusals_wait_until_the_end_of_the_context() -> None:
    it = world()
    await it.pipeline.drain(10.0)
    with it.pipeline.refusals_held():
        refused = asyncio.create_task(it.call(record()))
        for _ in range(5):
            await asyncio.sleep(0)
        assert not refused.done()
    with pytest.raises(ShuttingDown):
        await refused
