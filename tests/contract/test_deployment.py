"""What a deployment promises, kept by the fake one and by the real one over a fake engine."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fake_deployment import FakeDeployment
from fake_engine import FakeEngine
from fakes import local_settings, picture, toy_card, toy_run

from service.core.call_scope import CallScope
from service.core.errors import DeadlineExceeded, ImageEmpty, ShuttingDown
from service.core.types import Computed, Priority, RequestRecord
from service.engines.base import ModelStatus
from service.observability.metrics import Metrics
from service.preprocess.limits import Limits
from service.preprocess.pool import DecodePool
from service.serving.deployment import Deployment
from service.serving.deployment_builder import DeploymentBuilder
from service.transport.factory import TransportFactory

READY = ModelStatus(ready_workers=1, total_workers=1)
NOT_READY = ModelStatus(ready_workers=0, total_workers=1, detail="it is starting")


@dataclass
class World:
    """A deployment, and how to hold its calls."""

    deployment: Deployment
    holder: Any  # has a `gate`


def real(folder: Path, decoder: DecodePool) -> World:
    engine, metrics, clock = FakeEngine(toy_run, shm_dir=folder), Metrics(), asyncio.get_running_loop().time
    settings, card = local_settings(shm_dir=folder, shm_megabytes=16), toy_card()
    transports = TransportFactory(
        settings=settings,
        cards=(card,),
        runner=engine.runner,
        metrics=metrics,
        clock=clock,
        workers=1,
        replicas=1,
    )
    builder = DeploymentBuilder(
        settings=settings,
        transports=transports,
        decoder=decoder,
        metrics=metrics,
        clock=clock,
        workers=1,
        stuck_seconds=10.0,
        on_failure=lambda: None,
    )
    return World(builder.build(card), engine)


def fake() -> World:
    deployment = FakeDeployment(toy_card(), toy_run)
    return World(deployment, deployment)


@pytest.fixture(params=["fake", "real"])
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    decoder = DecodePool(threads=2, limits=Limits(max_bytes=10**6, max_pixels=10**6))
    made = fake() if request.param == "fake" else real(tmp_path, decoder)
    await made.deployment.open()
    yield made
    await made.deployment.close()
    decoder.close()


def scope(seconds: float = 10.0) -> CallScope:
    return CallScope(RequestRecord(request_id="call-1"), asyncio.get_running_loop().time() + seconds)


async def held(world: World) -> "asyncio.Task[Any]":
    """A call that is in `infer` until the gate opens."""
    world.holder.gate = asyncio.Event()
    call = asyncio.create_task(world.deployment.infer(picture(), Priority.INTERACTIVE, scope()))
    for _ in range(20):
        await asyncio.sleep(0)
    return call


async def test_a_picture_gets_the_outputs_of_the_card_and_the_record_what_was_done(world: World) -> None:
    call = scope()
    inference = await world.deployment.infer(picture(), Priority.BATCH, call)
    outputs = {output.name: output for output in world.deployment.card.outputs}
    assert inference.prediction.outputs.keys() == outputs.keys()
    for name, tensor in inference.output.outputs.items():
        assert (tensor.shape, tensor.dtype.name) == (outputs[name].shape, outputs[name].dtype)
    assert inference.output.geometry == inference.decoded.geometry
    assert call.record.version == world.deployment.version == world.deployment.card.version
    assert call.record.batch_size == inference.prediction.batch_size == 1
    assert list(call.record.stage_seconds) == ["decode", "queue", "transport", "inference"]
    assert all(seconds >= 0 for seconds in call.record.stage_seconds.values())
    world.deployment.observe_rendering(0.001, 10_000)
    record = call.record
    assert world.deployment.computed in {Computed(), Computed(record.network_engine, record.dtype, record.device)}


async def test_a_deadline_that_has_passed_costs_no_work(world: World) -> None:
    call = scope(-1.0)
    with pytest.raises(DeadlineExceeded):
        await world.deployment.infer(picture(), Priority.INTERACTIVE, call)
    assert call.record.version == world.deployment.version
    assert call.record.stage_seconds == {}


async def test_the_callers_mistakes_are_errors_of_the_picture(world: World) -> None:
    with pytest.raises(ImageEmpty):
        await world.deployment.infer(b"", Priority.INTERACTIVE, scope())


async def test_it_is_ready_as_the_engine_reports_workers(world: World) -> None:
    assert world.deployment.why_not_ready == "its workers have not started yet"
    world.deployment.observe_workers(READY)
    assert world.deployment.why_not_ready is None
    world.deployment.observe_workers(NOT_READY)
    assert world.deployment.why_not_ready == "it is starting"
    world.deployment.observe_workers(ModelStatus(ready_workers=0, total_workers=1))
    assert world.deployment.why_not_ready


async def test_it_plans_for_the_workers_it_is_told_of(world: World) -> None:
    assert world.deployment.workers == 1
    world.deployment.resize(3)
    assert world.deployment.workers == 3
    await world.deployment.infer(picture(), Priority.INTERACTIVE, scope())


async def test_an_idle_deployment_has_no_queue_and_no_leases(world: World) -> None:
    await world.deployment.infer(picture(), Priority.INTERACTIVE, scope())
    assert world.deployment.queue_length == 0
    assert world.deployment.queue_age_seconds() == 0.0
    assert world.deployment.memory_usage("input").used == 0
    assert world.deployment.connected_workers >= 0
    assert not world.deployment.uses_shared_memory or world.deployment.has_shared_memory


async def test_a_caller_that_goes_away_leaves_nothing_behind(world: World) -> None:
    call = await held(world)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    world.holder.gate.set()
    world.holder.gate = None
    await world.deployment.infer(picture(), Priority.INTERACTIVE, scope())
    assert world.deployment.queue_length == 0


async def test_close_waits_for_the_calls_in_work_and_refuses_later_ones(world: World) -> None:
    call = await held(world)
    closing = asyncio.create_task(world.deployment.close())
    for _ in range(20):
        await asyncio.sleep(0)
    assert not closing.done()
    world.holder.gate.set()
    await closing
    assert (await call).prediction.batch_size == 1
    with pytest.raises(ShuttingDown):
        await world.deployment.infer(picture(), Priority.INTERACTIVE, scope())
