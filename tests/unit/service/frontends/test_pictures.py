"""Calls of several pictures with methods, reads and writes that the test decides."""

import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from google.rpc import error_details_pb2

from handlers.contract.card import Task
from service.access.control import AccessControl
from service.core.call_scope import CallScope
from service.core.errors import DeadlineExceeded, QueueFull
from service.frontends.call import Answered, CallHandler, Failed, IncomingCall, Pictures
from service.frontends.pictures import MOST_REPLY_SECONDS, REPLY_SHARE, BatchCalls, PictureCalls
from service.frontends.streams import StreamCalls
from service.observability.metrics import Metrics
from service.observability.tracing import OFF
from service.pb.mobilevision.v1 import vision_pb2

SECONDS = 30.0
Segment = Callable[[vision_pb2.SegmentRequest, CallScope], Awaitable[vision_pb2.SegmentResponse]]


@pytest.fixture
async def handler() -> CallHandler:
    metrics, clock = Metrics(), asyncio.get_running_loop().time
    return CallHandler(
        system="test",
        metrics=metrics,
        protocol_metrics=metrics.grpc,
        tracing=OFF,
        default_deadline_seconds=10.0,
        access=AccessControl(clock=clock),
    )


async def handled(handler: CallHandler, work: Callable[[Pictures], Awaitable[Any]], seconds: float = SECONDS) -> Any:
    call = IncomingCall(service="s", method="Batch", metadata=(), remaining_seconds=lambda: seconds)
    outcome = await asyncio.wait_for(handler.handle_pictures(call, work), SECONDS)
    if isinstance(outcome, Failed):
        raise outcome.error
    assert isinstance(outcome, Answered)
    return outcome.reply


def batch(count: int) -> vision_pb2.BatchRequest:
    picture = vision_pb2.PictureRequest(segment=vision_pb2.SegmentRequest(image=b"x"))
    return vision_pb2.BatchRequest(pictures=[picture] * count)


def batches(segment: Segment, *, max_bytes: int = 2**20) -> BatchCalls:
    return BatchCalls(
        PictureCalls({Task.SEGMENT: segment}), max_pictures=64, max_bytes=max_bytes, retry_after_seconds=1.0
    )


async def test_answers_of_one_call_are_bounded_in_bytes(handler: CallHandler) -> None:
    async def segment(request: vision_pb2.SegmentRequest, scope: CallScope) -> vision_pb2.SegmentResponse:
        return vision_pb2.SegmentResponse(mask_png=bytes(400_000))

    calls = batches(segment)
    reply = await handled(handler, lambda pictures: calls.batch(batch(5), pictures))
    assert [each.WhichOneof("outcome") for each in reply.pictures] == ["segment"] * 2 + ["error"] * 3
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    assert reply.pictures[4].error.details[0].Unpack(info)
    assert reply.pictures[4].error.details[2].Unpack(retry)
    assert info.reason == "TOO_MANY_REQUESTS"
    assert reply.ByteSize() < 2**20


@pytest.mark.parametrize(("seconds", "kept"), [(2.0, 2.0 * REPLY_SHARE), (60.0, MOST_REPLY_SECONDS)])
async def test_pictures_are_due_before_their_call_so_that_late_ones_do_not_cost_the_others(
    handler: CallHandler, seconds: float, kept: float
) -> None:
    found: list[tuple[float, str]] = []

    async def segment(request: vision_pb2.SegmentRequest, scope: CallScope) -> vision_pb2.SegmentResponse:
        found.append((scope.deadline_at, scope.request_id))
        return vision_pb2.SegmentResponse()

    calls = batches(segment)
    call_deadlines: list[tuple[float, str]] = []

    async def work(pictures: Pictures) -> Any:
        call_deadlines.append((pictures.scope.deadline_at, pictures.scope.request_id))
        return await calls.batch(batch(2), pictures)

    await handled(handler, work, seconds)
    [(call_deadline_at, call_id)] = call_deadlines
    for number, (deadline_at, request_id) in enumerate(found):
        assert call_deadline_at - deadline_at == pytest.approx(kept, rel=0.2)
        assert request_id == f"{call_id}/{number}"


async def test_only_the_method_holds_the_request_of_a_picture(handler: CallHandler) -> None:
    holders: list[int] = []

    async def segment(request: vision_pb2.SegmentRequest, scope: CallScope) -> vision_pb2.SegmentResponse:
        await asyncio.sleep(0)
        holders.append(sys.getrefcount(request) - 1)  # the argument of getrefcount is one
        return vision_pb2.SegmentResponse()

    calls = batches(segment)
    await handled(handler, lambda pictures: calls.batch(batch(3), pictures))
    assert holders == [1, 1, 1]


def streams(segment: Segment, *, max_pictures: int) -> StreamCalls:
    return StreamCalls(
        PictureCalls({Task.SEGMENT: segment}),
        max_streams=1,
        max_pictures=max_pictures,
        max_bytes=2**20,
        default_seconds=10.0,
        max_seconds=60.0,
        retry_after_seconds=1.0,
    )


async def answer(request: vision_pb2.SegmentRequest, scope: CallScope) -> vision_pb2.SegmentResponse:
    return vision_pb2.SegmentResponse(mask_png=b"mask")


def endless() -> tuple[Callable[[], Awaitable[vision_pb2.StreamRequest]], list[int]]:
    reads: list[int] = []

    async def read() -> vision_pb2.StreamRequest:
        reads.append(len(reads))
        await asyncio.sleep(0)
        picture = vision_pb2.PictureRequest(segment=vision_pb2.SegmentRequest(image=b"x"))
        return vision_pb2.StreamRequest(picture=picture)

    return read, reads


async def test_a_caller_that_does_not_read_is_not_read(handler: CallHandler) -> None:
    read, reads = endless()
    written: list[vision_pb2.StreamResponse] = []
    full, reading = asyncio.Event(), asyncio.Event()

    async def write(response: vision_pb2.StreamResponse) -> None:
        if written:  # the credit is taken, the answers are not
            full.set()
            await reading.wait()
        written.append(response)

    calls = streams(answer, max_pictures=3)
    running = asyncio.create_task(handled(handler, lambda pictures: calls.stream(read, write, pictures)))
    await asyncio.wait_for(full.wait(), SECONDS)
    for _ in range(100):
        await asyncio.sleep(0)
    assert len(reads) == 3
    reading.set()
    while len(reads) < 50:
        await asyncio.sleep(0)
    running.cancel()
    await asyncio.wait({running})
    assert calls.open == 0


async def test_a_caller_that_never_takes_an_answer_loses_its_stream(handler: CallHandler) -> None:
    read, reads = endless()
    sent: list[vision_pb2.StreamResponse] = []

    async def write(response: vision_pb2.StreamResponse) -> None:
        if sent:
            raise DeadlineExceeded("the caller did not take an answer")
        sent.append(response)

    calls = streams(answer, max_pictures=3)
    with pytest.raises(DeadlineExceeded, match="did not take"):
        await handled(handler, lambda pictures: calls.stream(read, write, pictures))
    assert (calls.open, len(reads) <= 6) == (0, True)


async def test_an_error_of_a_read_ends_the_stream_after_the_answers(handler: CallHandler) -> None:
    written: list[str] = []
    requests = [vision_pb2.StreamRequest(picture=vision_pb2.PictureRequest(id=f"{number}")) for number in range(2)]

    async def read() -> vision_pb2.StreamRequest:
        if not requests:
            raise QueueFull("no more")
        return requests.pop(0)

    async def write(response: vision_pb2.StreamResponse) -> None:
        await asyncio.sleep(0)
        written.append(response.picture.id)

    calls = streams(answer, max_pictures=3)
    with pytest.raises(QueueFull):
        await handled(handler, lambda pictures: calls.stream(read, write, pictures))
    assert written == ["", "0", "1"]


async def test_answers_that_a_caller_does_not_take_are_bounded_in_bytes(handler: CallHandler) -> None:
    answered: list[str] = []
    taken: list[vision_pb2.PictureResponse] = []
    all_answered = asyncio.Event()
    requests = [
        vision_pb2.StreamRequest(picture=vision_pb2.PictureRequest(segment=vision_pb2.SegmentRequest(image=b"x")))
        for _ in range(6)
    ]

    async def segment(request: vision_pb2.SegmentRequest, scope: CallScope) -> vision_pb2.SegmentResponse:
        answered.append(scope.request_id)
        if len(answered) == 6:
            all_answered.set()
        return vision_pb2.SegmentResponse(mask_png=bytes(400_000))

    async def read() -> vision_pb2.StreamRequest | None:
        return requests.pop() if requests else None

    async def write(response: vision_pb2.StreamResponse) -> None:
        if response.WhichOneof("event") == "picture":
            await all_answered.wait()
            taken.append(response.picture)

    calls = streams(segment, max_pictures=6)
    await handled(handler, lambda pictures: calls.stream(read, write, pictures))
    assert [each.WhichOneof("outcome") for each in taken].count("segment") == 2
    assert [each.WhichOneof("outcome") for each in taken].count("error") == 4
