"""Health of two models: what the engine reports, what is published."""

import asyncio

import pytest
import virtual
from fake_deployment import FakeDeployment
from fakes import toy_card, toy_run

from handlers.contract.card import Task
from service.core.errors import BackendUnavailable
from service.engines.base import ModelStatus
from service.observability.metrics import Metrics
from service.preprocess.decode_watch import DecodeWatch
from service.serving.health import Health, HealthReport
from service.serving.traffic_split import TrafficSplit

ONE, TWO = "toy_classify", "toy_detect"


class Engine:
    """Reports the workers of models; a model in `gone` cannot be asked."""

    def __init__(self) -> None:
        self.ready = {ONE: 1, TWO: 1}
        self.gone: set[str] = set()
        self.asked_at: list[float] = []

    async def model_status(self, model: str, version: str = "") -> ModelStatus:
        self.asked_at.append(asyncio.get_running_loop().time())
        if model in self.gone:
            raise BackendUnavailable("the engine is gone")
        return ModelStatus(ready_workers=self.ready[model], total_workers=1)


class World:
    def __init__(self) -> None:
        self.engine, self.metrics, self.published = Engine(), Metrics(), list[HealthReport]()
        self.decoding: dict[int, float] = {}  # seconds of each running decode, by number
        self.splits = {
            card.name: TrafficSplit(FakeDeployment(card, toy_run))
            for card in map(toy_card, (Task.CLASSIFY, Task.DETECT))
        }
        self.health = Health(
            versions=self.engine,  # type: ignore[arg-type]
            splits=self.splits,
            metrics=self.metrics,
            poll_seconds=5.0,
            publish=self.publish,
            decoding=DecodeWatch(
                lambda: self.decoding, max_seconds=60.0, on_overrun=self.metrics.requests.decode_overran
            ),
        )

    def publish(self, report: HealthReport) -> None:
        self.published.append(report)


async def test_a_model_is_ready_once_the_engine_reports_a_worker() -> None:
    world = World()
    assert world.health.why_not_ready(ONE) == "its workers have not started yet"
    assert not world.health.report().all_ready
    world.engine.ready[TWO] = 0
    await world.health.check()
    assert world.health.why_not_ready(ONE) is None
    assert world.published[-1].not_ready == {TWO: "none of its workers is ready"}
    assert not world.published[-1].all_ready
    world.engine.ready[TWO] = 1
    await world.health.check()
    assert world.published[-1].all_ready


async def test_an_engine_that_cannot_be_asked_makes_the_model_not_ready() -> None:
    world = World()
    await world.health.check()
    world.engine.gone = {ONE}
    await world.health.check()
    assert world.published[-1].not_ready == {ONE: "the engine is gone"}


async def test_draining_is_for_good() -> None:
    world = World()
    await world.health.check()
    world.health.drain()
    assert world.published[-1].draining
    await world.health.check()
    assert not world.published[-1].all_ready
    assert world.published[-1].not_ready == {}


def test_a_failed_batch_is_checked_at_once_but_not_in_a_busy_loop() -> None:
    async def play() -> None:
        world = World()
        running = asyncio.create_task(world.health.run())
        await asyncio.sleep(1.0)
        assert set(world.engine.asked_at) == {0.0}
        for _ in range(100):
            world.health.suspect()
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.5)
        assert sorted(set(world.engine.asked_at))[1:] == pytest.approx([1.05, 1.1], abs=0.01)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    virtual.run(play())


async def test_no_model_is_ready_while_a_picture_is_decoded_for_too_long() -> None:
    world = World()
    await world.health.check()
    world.decoding = {7: 59.0, 8: 61.0}
    assert world.health.report().not_ready == dict.fromkeys(
        (ONE, TWO), "decoding is stuck: one picture has been decoded for 61 s"
    )
    assert world.health.why_restart is None
    for _ in range(2):  # counted once
        await world.health.check()
        assert not world.published[-1].all_ready
    assert overruns(world) == 1.0
    world.decoding = {7: 120.0, 8: 121.0}
    await world.health.check()
    assert world.health.why_restart == "decoding is stuck: one picture has been decoded for 121 s"
    assert overruns(world) == 2.0
    world.decoding = {}
    await world.health.check()
    assert world.health.report().all_ready
    assert world.health.why_restart is None


def overruns(world: World) -> float | None:
    return world.metrics.registry.get_sample_value("mobilevision_decode_overruns_total")


def test_a_model_that_has_just_failed_is_looked_at_more_often_for_a_minute() -> None:
    async def play() -> None:
        world = World()
        running = asyncio.create_task(world.health.run())
        await asyncio.sleep(12.0)
        world.engine.ready[ONE] = 0
        world.engine.asked_at.clear()
        await asyncio.sleep(3.9)  # the poll at 15 s finds it
        assert sorted(set(world.engine.asked_at)) == pytest.approx([15.0, 15.2, 15.4, 15.6, 15.8], abs=0.01)
        world.engine.ready[ONE] = 1
        await asyncio.sleep(0.3)
        assert world.health.report().all_ready
        world.engine.asked_at.clear()
        await asyncio.sleep(10.0)
        assert len(set(world.engine.asked_at)) == 2  # as usual
        world.engine.ready[ONE] = 0
        await asyncio.sleep(70.0)
        world.engine.asked_at.clear()
        await asyncio.sleep(10.0)
        assert len(set(world.engine.asked_at)) == 2
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    virtual.run(play())
