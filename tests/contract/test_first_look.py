"""A call that is refused anyway is refused by its metadata, before its picture arrives."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from access_keys import KEY, OTHER_KEY, caller, write_callers
from fakes import RunningGateway, running_gateway, toy_card
from gateway_calls import IMAGE, as_condition, details, failure, reply_of, stub, until
from grpc import aio

from service.pb.mobilevision.v1 import vision_pb2

HINT = ("mobilevision-model", "toy_classify")
BATCH = ("mobilevision-priority", "batch")
SECONDS = 60.0


@asynccontextmanager
async def full(**overrides: Any) -> AsyncIterator[RunningGateway]:
    """A gateway whose queue for interactive pictures is full."""
    async with running_gateway(max_batch=1, max_queue=1, batches_per_worker=1, **overrides) as running:
        running.backend.gate = asyncio.Event()
        metadata = (("x-api-key", KEY),)
        calls = []
        for inflight in (1, 2):
            request = vision_pb2.ClassifyRequest(image=IMAGE)
            calls.append(asyncio.ensure_future(reply_of(stub(running).Classify(request, metadata=metadata))))
            await until(
                lambda inflight=inflight: as_condition(
                    running.gateway.pipeline.inflight == inflight and running.backend.batch_sizes
                )
            )
        await until(lambda: as_condition('queue_length{model="toy_classify"} 1.0' in running.metrics.page().decode()))
        yield running
        running.backend.gate.set()
        await asyncio.gather(*calls)


def begun(running: RunningGateway, *metadata: tuple[str, str]) -> Any:
    """A call whose request is not sent yet."""
    method = running.channel.stream_unary(
        "/mobilevision.v1.VisionService/Classify",
        request_serializer=vision_pb2.ClassifyRequest.SerializeToString,
        response_deserializer=vision_pb2.ClassifyResponse.FromString,
    )
    return method(metadata=metadata, timeout=SECONDS)


async def refusal(call: Any) -> tuple[grpc.StatusCode, str, float]:
    with pytest.raises(aio.AioRpcError) as raised:
        await call
    info, retry = details(raised.value)
    return raised.value.code(), info.reason, 0.0 if retry is None else retry.retry_delay.ToTimedelta().total_seconds()


async def test_a_call_is_refused_before_its_request_arrives_and_reported_once() -> None:
    async with full() as running:
        code, why, retry_seconds = await refusal(begun(running, HINT))
        assert (code, why, retry_seconds > 0) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL", True)
        page = running.metrics.page().decode()
        assert 'rejected_total{reason="QUEUE_FULL"} 1.0' in page
        assert 'requests_total{code="RESOURCE_EXHAUSTED",method="Classify",model="toy_classify"} 1.0' in page
        assert f'outcome="failed",version="{toy_card().version}"}} 1.0' in page


async def test_an_empty_hint_is_the_default_model() -> None:
    async with full() as running:
        assert (await refusal(begun(running, ("mobilevision-model", ""))))[1] == "QUEUE_FULL"


@pytest.mark.parametrize(
    "hints",
    [(), (BATCH,), (HINT, BATCH), (("mobilevision-model", "toy_detect"),), (("mobilevision-model", "none"),)],
    ids=["none", "no model", "batch priority has room", "another task", "unknown model"],
)
async def test_a_call_that_could_be_answered_is_read(hints: tuple[tuple[str, str], ...]) -> None:
    async with full() as running:
        call = begun(running, *hints)
        await until(lambda: as_condition(running.gateway.uploads.count == 1))
        await call.write(vision_pb2.ClassifyRequest(image=IMAGE, priority=vision_pb2.PRIORITY_BATCH))
        await call.done_writing()
        running.backend.gate.set()
        assert (await call).model.name == "toy_classify"


async def test_the_message_says_which_model_is_used_and_which_is_reported() -> None:
    async with running_gateway() as running:
        call = begun(running, HINT)
        await call.write(vision_pb2.ClassifyRequest(image=IMAGE, model="unknown"))
        await call.done_writing()
        code, why, _ = await refusal(call)
        assert (code, why) == (grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND")
        assert (
            'requests_total{code="NOT_FOUND",method="Classify",model="unknown"} 1.0' in running.metrics.page().decode()
        )


async def test_a_model_that_is_not_ready_is_refused_at_the_first_look() -> None:
    async with running_gateway() as running:
        running.backend.ready_workers = 0
        await until(lambda: as_condition(running.gateway.health.why_not_ready("toy_classify")))
        assert (await refusal(begun(running, HINT)))[:2] == (grpc.StatusCode.UNAVAILABLE, "MODEL_NOT_READY")


async def test_only_callers_that_may_use_a_model_learn_how_busy_it_is(tmp_path: Path) -> None:
    file = write_callers(
        tmp_path / "callers.json", caller("a", KEY), caller("detector", OTHER_KEY, models=["toy_detect"])
    )
    async with full(callers_file=file, anonymous="deny") as running:
        assert (await refusal(begun(running, HINT)))[1] == "UNAUTHENTICATED"
        assert (await refusal(begun(running, HINT, ("x-api-key", KEY))))[1] == "QUEUE_FULL"
        request = vision_pb2.ClassifyRequest(image=IMAGE, model="toy_classify")
        call = stub(running).Classify(request, metadata=(HINT, ("x-api-key", OTHER_KEY)))
        assert (await failure(call))[1] == "PERMISSION_DENIED"


async def test_recorded_calls_are_read_whole(tmp_path: Path) -> None:
    async with full(recording_dir=tmp_path / "calls") as running:
        call = stub(running).Classify(vision_pb2.ClassifyRequest(image=IMAGE), metadata=(HINT,))
        assert (await failure(call))[1] == "QUEUE_FULL"
        await until(lambda: as_condition(len(list((tmp_path / "calls").glob("*.call"))) == 1))
