"""A whole gateway and callers that hold what they do not need: half-sent requests, bursts, unread replies, connections.

The attackers are raw HTTP/2 clients in threads. Nothing here depends on the speed of the machine: limits are reached by
count, or by a time-out that the test waits for.
"""

import asyncio
import base64
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar

import grpc
import pytest
from fakes import RunningGateway, picture, running_gateway
from gateway_calls import IMAGE, as_condition, failure, reply_of, stub, until
from google.rpc import error_details_pb2, status_pb2
from grpc import aio

from benchmarks.hold.http2 import Answer, RawConnection, framed
from service.core.errors import ErrorCode
from service.frontends.grpc.uploads import UploadGate
from service.pb.mobilevision.v1 import vision_pb2

CLASSIFY = "/mobilevision.v1.VisionService/Classify"
LIST_MODELS = "/mobilevision.v1.VisionService/ListModels"
HEALTH_CHECK = "/grpc.health.v1.Health/Check"
REQUEST = vision_pb2.ClassifyRequest(image=IMAGE).SerializeToString()
WAIT_SECONDS = 60.0

Result = TypeVar("Result")


async def attack(work: Callable[[], Result]) -> Result:
    return await asyncio.to_thread(work)


def reason(answer: Answer) -> str:
    raw = answer.trailers["grpc-status-details-bin"]
    status = status_pb2.Status.FromString(base64.b64decode(raw + "=" * (-len(raw) % 4)))
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    return info.reason


async def answers_still(running: RunningGateway) -> None:
    reply = await stub(running).Classify(vision_pb2.ClassifyRequest(image=IMAGE), timeout=WAIT_SECONDS)
    assert reply.model.name == "toy_classify"


@pytest.mark.parametrize("sent", [b"", framed(bytes(10**5), stated_bytes=2 * 10**5)], ids=["nothing", "half"])
async def test_a_request_that_never_arrives_is_cut_off_and_counted(sent: bytes) -> None:
    async with running_gateway(upload_timeout_seconds=0.2) as running:

        def half_send(method: str) -> Answer:
            with RawConnection(running.grpc) as connection:
                stream = connection.start(method)
                connection.send(stream, sent)
                return connection.wait(stream, WAIT_SECONDS)

        answer = await attack(lambda: half_send(CLASSIFY))
        assert (answer.status, reason(answer)) == (ErrorCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED")
        assert 'rejected_total{reason="DEADLINE_EXCEEDED"} 1.0' in running.metrics.page().decode()
        assert (await attack(lambda: half_send(HEALTH_CHECK))).status == ErrorCode.DEADLINE_EXCEEDED
        assert 'uploads_refused_total{cause="too_slow"} 2.0' in running.metrics.page().decode()
        await answers_still(running)


async def test_requests_that_arrive_are_bounded_in_number() -> None:
    async with running_gateway(max_inflight_requests=3) as running:

        def half_send() -> Answer:
            with RawConnection(running.grpc) as connection:
                for stream in [connection.start(CLASSIFY) for _ in range(3)]:
                    connection.send(stream, framed(b"", stated_bytes=10**6))
                fourth = connection.start(CLASSIFY)
                connection.send(fourth, framed(REQUEST), end=True)
                return connection.wait(fourth, WAIT_SECONDS)

        answer = await attack(half_send)
        assert (answer.status, reason(answer)) == (ErrorCode.RESOURCE_EXHAUSTED, "TOO_MANY_REQUESTS")
        assert 'uploads_refused_total{cause="too_many"} 1.0' in running.metrics.page().decode()
        await answers_still(running)


async def test_a_host_that_fills_the_way_in_leaves_room_for_others() -> None:
    async with running_gateway(max_inflight_requests=6) as running:
        await answers_still(running)

        def half_send() -> tuple[list[Answer], RawConnection]:
            connection = RawConnection(running.grpc, source="127.0.0.2")
            streams = [connection.start(CLASSIFY) for _ in range(6)]
            for stream in streams:
                connection.send(stream, framed(b"", stated_bytes=10**6))
            return [connection.wait(stream, WAIT_SECONDS) for stream in streams[3:]], connection

        refused, connection = await attack(half_send)
        with contextlib.closing(connection):
            assert [reason(answer) for answer in refused] == ["TOO_MANY_REQUESTS"] * 3
            assert running.gateway.uploads.count == 3
            await answers_still(running)


async def test_half_sent_requests_do_not_fill_the_memory() -> None:
    held_bytes = 0
    async with running_gateway(call_megabytes=16, process_bytes=lambda: held_bytes) as running:
        uploads = running.gateway.uploads

        def half_send() -> list[Answer]:
            with RawConnection(running.grpc) as connection:
                streams = [connection.start(CLASSIFY) for _ in range(4)]
                for stream in streams:
                    connection.send(stream, framed(bytes(10**5), stated_bytes=2 * 10**5))
                return [connection.wait(stream, WAIT_SECONDS) for stream in streams]

        attacking = asyncio.create_task(attack(half_send))
        await until(lambda: as_condition(uploads.count == 4))
        assert "mobilevision_uploads 4.0" in running.metrics.page().decode()
        held_bytes = 17 * 2**20
        assert running.metrics.registry.get_sample_value("mobilevision_call_memory_bytes") == held_bytes
        for answer in await attacking:
            assert (answer.status, reason(answer)) == (ErrorCode.RESOURCE_EXHAUSTED, "TOO_MANY_REQUESTS")
            assert "cut off" in answer.message
        code, why, _, retry = await failure(stub(running).Classify(vision_pb2.ClassifyRequest(image=IMAGE)))
        assert (code, why) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_REQUESTS")
        assert retry is not None
        page = running.metrics.page().decode()
        assert 'uploads_refused_total{cause="cut_off"} 4.0' in page
        assert 'uploads_refused_total{cause="no_memory"} 1.0' in page
        held_bytes = 0
        await answers_still(running)


class _Arrived:
    """A call whose request has arrived."""

    def peer(self) -> str:
        return "ipv4:127.0.0.1:1"

    async def read(self) -> str:
        return "request"


async def test_a_request_waits_for_memory_and_is_answered_when_there_is_some() -> None:
    uploads = UploadGate(max_uploads=2, timeout_seconds=WAIT_SECONDS, retry_after_seconds=1.0)
    uploads.hold(True)
    reading = asyncio.create_task(uploads.read(_Arrived()))  # type: ignore[arg-type]
    await until(lambda: as_condition(uploads.count == 1))
    uploads.cut_off(1)  # what waits holds no memory
    assert not reading.done()
    uploads.hold(False)
    assert await reading == "request"


async def test_a_request_that_states_a_size_over_the_limit_is_refused_before_it_arrives() -> None:
    async with running_gateway() as running:

        def state_two_gigabytes() -> tuple[Answer, int]:
            with RawConnection(running.grpc) as connection:
                stream = connection.start(CLASSIFY)
                sent = connection.send(stream, framed(bytes(64 * 2**20), stated_bytes=2**31))
                return connection.wait(stream, WAIT_SECONDS), sent

        answer, sent = await attack(state_two_gigabytes)
        assert answer.status == ErrorCode.RESOURCE_EXHAUSTED
        assert sent < 64 * 2**20


async def test_a_burst_while_the_event_loop_is_busy_gets_answers_or_reasons() -> None:
    # gRPC cancelled calls without a word above 1000 that waited for the event loop.
    connections, each = 6, 250
    sent, seen = threading.Event(), threading.Event()

    def burst(address: str) -> list[Answer]:
        with contextlib.ExitStack() as stack:
            raw = [
                stack.enter_context(RawConnection(address, timeout_seconds=WAIT_SECONDS)) for _ in range(connections)
            ]
            for connection in raw:
                connection.read(WAIT_SECONDS)  # the server's settings
            seen.set()
            streams = [(connection, connection.start(LIST_MODELS)) for connection in raw for _ in range(each)]
            for connection, stream in streams:
                connection.send(stream, framed(b""), end=True)
            sent.set()
            return [connection.wait(stream, WAIT_SECONDS) for connection, stream in streams]

    async with running_gateway() as running:
        attacking = asyncio.create_task(attack(lambda: burst(running.grpc)))
        await asyncio.to_thread(seen.wait, WAIT_SECONDS)
        sent.wait(WAIT_SECONDS)
        statuses = {answer.status for answer in await attacking}
        assert statuses <= {0, ErrorCode.RESOURCE_EXHAUSTED}
        await answers_still(running)


async def test_calls_in_work_outlive_the_age_of_their_connection() -> None:
    async with running_gateway(max_connection_age_seconds=0.2, drain_timeout_seconds=0.0) as running:
        running.backend.gate = asyncio.Event()
        call = asyncio.ensure_future(reply_of(stub(running).Classify(vision_pb2.ClassifyRequest(image=IMAGE))))
        await until(lambda: as_condition(running.backend.batch_sizes))

        def grow_old() -> None:
            with RawConnection(running.grpc) as connection:
                while not connection.asked_to_leave and connection.read(WAIT_SECONDS):
                    pass

        for _ in range(3):  # three connections in turn reach their age, so the connection of the call has reached it
            await attack(grow_old)
        running.backend.gate.set()
        assert (await call).model.name == "toy_classify"


async def test_a_deadline_is_shortened_to_the_longest_one() -> None:
    async with running_gateway(max_deadline_seconds=0.2) as running:
        running.backend.gate = asyncio.Event()
        call = stub(running).Classify(vision_pb2.ClassifyRequest(image=IMAGE), timeout=3600)
        code, why, _, _ = await failure(call)
        assert (code, why) == (grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED")
        running.backend.gate.set()


async def test_connections_and_streams_are_bounded() -> None:
    async with running_gateway(max_connections=4, max_streams_per_connection=2) as running:

        def connect() -> tuple[int, int]:
            with contextlib.ExitStack() as stack:
                raw = [stack.enter_context(RawConnection(running.grpc)) for _ in range(12)]
                for connection in raw:
                    with contextlib.suppress(ConnectionError):
                        while not connection.closed and connection.max_streams is None:
                            connection.read(WAIT_SECONDS)
                return sum(connection.max_streams == 2 for connection in raw), len(raw)

        served, asked = await attack(connect)
        assert (served, asked) == (4, 12)
        await until(lambda: _answered(running))


async def _answered(running: RunningGateway) -> bool:
    with contextlib.suppress(aio.AioRpcError):
        await answers_still(running)
        return True
    return False


async def test_pictures_that_wait_are_bounded_in_bytes() -> None:
    large = picture() + bytes(200_000)
    async with running_gateway(max_inflight_megabytes=1, max_batch=1, batches_per_worker=1) as running:
        split = running.gateway.pipeline
        split.picture_bytes = 900_000  # as if others waited to be decoded
        code, why, _, retry = await failure(stub(running).Classify(vision_pb2.ClassifyRequest(image=large)))
        assert (code, why) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_REQUESTS")
        assert retry is not None
        split.picture_bytes = 0
        running.backend.gate = asyncio.Event()
        calls = [
            asyncio.ensure_future(reply_of(stub(running).Classify(vision_pb2.ClassifyRequest(image=large))))
            for _ in range(4)
        ]
        await until(lambda: as_condition(split.inflight == 4 and split.picture_bytes == 0))  # decoded, and forgotten
        running.backend.gate.set()
        await asyncio.gather(*calls)
        assert split.picture_bytes == 0
