"""A whole gateway under load: full queues, deadlines, limits, callers that hang up, failures of the engine."""

import asyncio
from typing import Any

import grpc
import pytest
from fakes import RunningGateway, picture, running_gateway
from gateway_calls import IMAGE, as_condition, details, failure, reply_of, stub, until
from grpc import aio

from service.core.errors import BackendFault, BackendTimeout, BackendUnavailable
from service.pb.mobilevision.v1 import vision_pb2


async def test_a_full_queue_is_refused_with_a_time_to_retry() -> None:
    async with running_gateway(max_batch=1, max_queue=1, batches_per_worker=1) as running:
        running.backend.gate = asyncio.Event()
        calls = [stub(running).Classify(vision_pb2.ClassifyRequest(image=IMAGE)) for _ in range(6)]
        outcomes = asyncio.gather(*(reply_of(call) for call in calls), return_exceptions=True)
        await until(lambda: as_condition('rejected_total{reason="QUEUE_FULL"} 4.0' in running.metrics.page().decode()))
        assert running.gateway.pipeline.inflight == 2
        running.backend.gate.set()
        refused = [outcome for outcome in await outcomes if isinstance(outcome, aio.AioRpcError)]
        assert len(refused) == 4
        for error in refused:
            info, retry = details(error)
            assert (error.code(), info.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL")
            assert retry is not None
            assert retry.retry_delay.ToTimedelta().total_seconds() > 0


async def test_a_deadline_out_of_reach_is_refused_before_decoding_with_a_time_to_retry() -> None:
    async with running_gateway(max_batch=1, batches_per_worker=1) as running:
        clock = asyncio.get_running_loop().time
        began = clock()
        # The gateway learns that a batch takes a moment. Three batches are enough, but on a busy machine some of them
        # take so much longer than the others that they are held back as outliers.
        for _ in range(10):
            await stub(running).Classify(vision_pb2.ClassifyRequest(image=IMAGE))
        a_moment = clock() - began
        running.backend.gate = asyncio.Event()
        busy = asyncio.ensure_future(reply_of(stub(running).Classify(vision_pb2.ClassifyRequest(image=IMAGE))))
        await until(lambda: as_condition(len(running.backend.batch_sizes) == 11))
        await asyncio.sleep(2.0 + a_moment)  # long overdue: at least as long again is expected
        broken = vision_pb2.ClassifyRequest(image=b"never looked at")
        code, reason, info, retry = await failure(stub(running).Classify(broken, timeout=1.0))
        assert (code, reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "DEADLINE_UNREACHABLE")
        assert float(info.metadata["needed_seconds"]) > 1.5
        assert retry is not None
        running.backend.gate.set()
        await busy
        page = running.metrics.page().decode()
        assert 'mobilevision_rejected_total{reason="DEADLINE_UNREACHABLE"} 1.0' in page
        assert 'mobilevision_predicted_batch_seconds_count{model="toy_classify"} 10.0' in page
        assert 'mobilevision_refused_late_total{model="toy_classify"} 0.0' in page


async def test_interactive_requests_go_before_batch_requests() -> None:
    async with running_gateway(max_batch=1, batches_per_worker=1) as running:
        running.backend.gate = asyncio.Event()
        ended: list[str] = []

        async def call(name: str, priority: vision_pb2.Priority.ValueType) -> None:
            await stub(running).Classify(vision_pb2.ClassifyRequest(image=IMAGE, priority=priority))
            ended.append(name)

        tasks: list[asyncio.Task[None]] = []
        for name, priority in (
            ("busy", vision_pb2.PRIORITY_UNSPECIFIED),
            ("bulk", vision_pb2.PRIORITY_BATCH),
            ("interactive", vision_pb2.PRIORITY_INTERACTIVE),
        ):
            tasks.append(asyncio.ensure_future(call(name, priority)))
            waiting = f'queue_length{{model="toy_classify"}} {len(tasks) - 1}.0'
            await until(
                lambda waiting=waiting: as_condition(
                    running.backend.batch_sizes and waiting in running.metrics.page().decode()
                )
            )
        running.backend.gate.set()
        await asyncio.gather(*tasks)
        assert ended == ["busy", "interactive", "bulk"]


async def test_requests_over_the_limit_are_refused_before_decoding() -> None:
    async with running_gateway(max_inflight_requests=1) as running:
        running.backend.gate = asyncio.Event()
        first = asyncio.ensure_future(reply_of(stub(running).Classify(vision_pb2.ClassifyRequest(image=IMAGE))))
        await until(lambda: as_condition(running.backend.batch_sizes))
        code, reason, _, retry = await failure(stub(running).Classify(vision_pb2.ClassifyRequest(image=b"not decoded")))
        assert (code, reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_REQUESTS")
        assert retry is not None
        running.backend.gate.set()
        await first


async def test_a_deadline_of_one_millisecond_is_exceeded_without_any_batch(running: RunningGateway) -> None:
    for _ in range(5):
        with pytest.raises(aio.AioRpcError) as raised:
            await stub(running).Classify(vision_pb2.ClassifyRequest(image=picture(3000, 3000)), timeout=0.001)
        assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await until(lambda: as_condition(running.gateway.pipeline.inflight == 0))
    assert running.backend.batch_sizes == []


async def test_a_deadline_that_passes_in_the_queue_starts_no_batch() -> None:
    async with running_gateway(max_batch=1, batches_per_worker=1) as running:
        running.backend.gate = asyncio.Event()
        first = asyncio.ensure_future(reply_of(stub(running).Classify(vision_pb2.ClassifyRequest(image=IMAGE))))
        await until(lambda: as_condition(running.backend.batch_sizes))
        with pytest.raises(aio.AioRpcError) as raised:
            await stub(running).Classify(vision_pb2.ClassifyRequest(image=IMAGE), timeout=0.2)
        assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await until(lambda: as_condition(running.gateway.pipeline.inflight == 1))
        running.backend.gate.set()
        await first
        assert running.backend.batch_sizes == [1]


async def test_a_call_without_a_deadline_gets_the_default_deadline() -> None:
    async with running_gateway(default_deadline_seconds=0.2) as running:
        running.backend.gate = asyncio.Event()
        code, reason, _, _ = await failure(stub(running).Classify(vision_pb2.ClassifyRequest(image=IMAGE)))
        assert (code, reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED")
        running.backend.gate.set()


async def test_a_caller_that_hangs_up_frees_its_place() -> None:
    async with running_gateway(max_batch=1, batches_per_worker=1) as running:
        running.backend.gate = asyncio.Event()
        first = asyncio.ensure_future(reply_of(stub(running).Classify(vision_pb2.ClassifyRequest(image=IMAGE))))
        await until(lambda: as_condition(running.backend.batch_sizes))
        second = stub(running).Classify(vision_pb2.ClassifyRequest(image=IMAGE))
        await until(lambda: as_condition(running.gateway.pipeline.inflight == 2))
        second.cancel()
        await until(lambda: as_condition(running.gateway.pipeline.inflight == 1))
        running.backend.gate.set()
        await first
        assert running.backend.batch_sizes == [1]
        assert 'code="CANCELLED"' in running.metrics.page().decode()


@pytest.mark.parametrize(
    ("failures", "code", "reason"),
    [
        ([BackendUnavailable("x"), BackendUnavailable("x")], grpc.StatusCode.UNAVAILABLE, "BACKEND_UNAVAILABLE"),
        ([BackendTimeout("x")], grpc.StatusCode.UNAVAILABLE, "BACKEND_TIMEOUT"),
        ([BackendFault("x")], grpc.StatusCode.INTERNAL, "BACKEND_FAULT"),
        ([ZeroDivisionError("x")], grpc.StatusCode.INTERNAL, "BUG"),
    ],
)
async def test_failures_of_the_backend_keep_their_codes(
    running: RunningGateway, failures: list[Any], code: grpc.StatusCode, reason: str
) -> None:
    running.backend.failures = list(failures)
    got_code, got_reason, _, _ = await failure(stub(running).Classify(vision_pb2.ClassifyRequest(image=IMAGE)))
    assert (got_code, got_reason) == (code, reason)
    await stub(running).Classify(vision_pb2.ClassifyRequest(image=IMAGE))


async def test_a_lost_batch_is_sent_again_without_an_error(running: RunningGateway) -> None:
    running.backend.failures = [BackendUnavailable("the worker died")]
    await stub(running).Classify(vision_pb2.ClassifyRequest(image=IMAGE))
    assert 'mobilevision_batches_retried_total{model="toy_classify"} 1.0' in running.metrics.page().decode()
