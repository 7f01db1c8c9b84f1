"""A whole gateway whose toy workers read shared memory: every slot comes back, whatever becomes of the calls."""

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from fakes import RunningGateway, picture, running_gateway, toy_card
from grpc import aio
from prometheus_client import CollectorRegistry

from handlers.contract.card import Task
from service.core.errors import BackendFault, BackendUnavailable
from service.pb.mobilevision.v1 import vision_pb2, vision_pb2_grpc

MODEL = "toy_classify"


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[RunningGateway]:
    async with gateway(tmp_path) as made:
        yield made


def gateway(base: Path, **overrides: Any) -> Any:
    values = {"shm_dir": base, "shm_megabytes": 16, "max_queue": 6, "max_batch": 4} | overrides
    return running_gateway([toy_card(Task.CLASSIFY)], worker_shm_dir=base, **values)


def classify(running: RunningGateway, gray: int, **call: Any) -> Any:
    request = vision_pb2.ClassifyRequest(image=picture(gray=gray))
    return vision_pb2_grpc.VisionServiceStub(running.channel).Classify(request, **call)


def slots(running: RunningGateway, kind: str, state: str) -> float | None:
    return sample(running.metrics.registry, "shm_slots", kind=kind, state=state)


def sample(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    return registry.get_sample_value(f"mobilevision_{name}", {"model": MODEL} | labels)


def refusals(running: RunningGateway) -> float:
    """Calls refused because the queue was full."""
    return running.metrics.registry.get_sample_value("mobilevision_rejected_total", {"reason": "QUEUE_FULL"}) or 0.0


async def until_free(running: RunningGateway) -> None:
    async with asyncio.timeout(10):
        while slots(running, "input", "used") or slots(running, "output", "used"):
            await asyncio.sleep(0.01)


async def test_every_slot_is_free_after_mixed_traffic(running: RunningGateway) -> None:
    rng = random.Random(11)
    total = slots(running, "input", "free")
    assert total
    assert sample(running.metrics.registry, "shm_in_use") == 1
    codes: dict[str, int] = {}

    async def caller(number: int) -> None:
        gray = rng.choice((3, 100, 250))
        fate = rng.choice(("answered", "answered", "cancelled", "expired", "broken"))
        stub = vision_pb2_grpc.VisionServiceStub(running.channel)
        image = picture(gray=gray) if fate != "broken" else picture()[:60]
        seconds = 0.01 * rng.random() if fate == "expired" else 30
        call = stub.Classify(vision_pb2.ClassifyRequest(image=image), timeout=seconds)
        if fate == "cancelled":
            await asyncio.sleep(rng.random() * 0.03)
            call.cancel()
        try:
            reply = await call
            assert reply.labels[0].id == gray // 86
            codes["OK"] = codes.get("OK", 0) + 1
        except aio.AioRpcError as error:
            codes[error.code().name] = codes.get(error.code().name, 0) + 1
        except asyncio.CancelledError:
            codes["CANCELLED"] = codes.get("CANCELLED", 0) + 1

    for round_number in range(6):
        # A lost batch last: batches travel inline for some seconds after it.
        failure = BackendUnavailable("died") if round_number == 5 else BackendFault("failed")
        running.backend.failures = [failure] * (round_number % 2)
        running.backend.gate = asyncio.Event()
        full = refusals(running)
        callers = [asyncio.create_task(caller(number)) for number in range(80)]
        async with asyncio.timeout(30):
            while refusals(running) == full:
                await asyncio.sleep(0.01)
        running.backend.gate.set()
        await asyncio.gather(*callers)
        running.backend.failures = []
    assert {"OK", "CANCELLED", "RESOURCE_EXHAUSTED", "INVALID_ARGUMENT"} <= codes.keys()
    await until_free(running)
    assert slots(running, "input", "free") == total
    assert slots(running, "output", "quarantined") == 0
    assert sample(running.metrics.registry, "shm_refused_total") == 0


async def test_a_time_out_gives_the_slots_back_and_the_next_call_is_answered(tmp_path: Path) -> None:
    async with gateway(tmp_path, batch_timeout_seconds=0.2) as running:
        running.backend.gate = asyncio.Event()
        with pytest.raises(aio.AioRpcError) as raised:
            await classify(running, 3)
        assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
        running.backend.gate.set()
        async with asyncio.timeout(10):
            while not sample(running.metrics.registry, "worker_ready"):
                await asyncio.sleep(0.01)
        assert (await classify(running, 250)).labels[0].name == "bright"
        assert sample(running.metrics.registry, "shm_in_use") == 0  # until it is asked again
        await until_free(running)
        assert slots(running, "output", "quarantined") == 0


async def test_pictures_that_find_no_slot_are_answered_and_counted(tmp_path: Path) -> None:
    cards = [toy_card(Task.CLASSIFY), *(toy_card(name=f"toy_classify_{i}") for i in range(70))]
    overrides = {"shm_dir": tmp_path, "shm_megabytes": 1, "max_queue": 64}
    async with running_gateway(cards, worker_shm_dir=tmp_path, **overrides) as running:
        assert slots(running, "input", "free") == 1
        running.backend.gate = asyncio.Event()
        calls = [asyncio.ensure_future(classify_named(running, gray)) for gray in (250, 3, 100)]
        async with asyncio.timeout(10):
            while (sample(running.metrics.registry, "shm_exhausted_total") or 0) < 2:
                await asyncio.sleep(0.01)
        running.backend.gate.set()
        assert [reply.labels[0].id for reply in await asyncio.gather(*calls)] == [2, 0, 1]


async def classify_named(running: RunningGateway, gray: int) -> Any:
    request = vision_pb2.ClassifyRequest(image=picture(gray=gray), model=MODEL)
    return await vision_pb2_grpc.VisionServiceStub(running.channel).Classify(request)


@pytest.mark.parametrize("state", ["no folder", "blind workers", "off"])
async def test_where_memory_cannot_be_shared_calls_are_answered_inline(
    tmp_path: Path, state: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    overrides: dict[str, Any] = {
        "no folder": {"shm_dir": tmp_path / "absent"},
        "blind workers": {"worker_shm_dir": None},
        "off": {"shm_megabytes": 0},
    }[state]
    values = {"shm_dir": tmp_path, "shm_megabytes": 16, "worker_shm_dir": tmp_path} | overrides
    async with running_gateway([toy_card(Task.CLASSIFY)], **values) as running:
        assert (await classify(running, 250)).labels[0].name == "bright"
        assert sample(running.metrics.registry, "shm_in_use") == 0
    said = [message for message in caplog.messages if "inline" in message or "no shared memory" in message]
    assert len(said) == (0 if state == "off" else 1)
    assert list(tmp_path.iterdir()) == []


async def test_nothing_is_left_when_the_gateway_stops(tmp_path: Path) -> None:
    async with gateway(tmp_path) as running:
        await classify(running, 250)
        assert len(list(tmp_path.iterdir())) == 1
    assert list(tmp_path.iterdir()) == []
