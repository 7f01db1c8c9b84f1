"""`Stream`: pictures as they come, answers as they are ready, a bound on what is in between."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from access_keys import KEY, caller, write_callers
from fakes import RunningGateway, picture, running_gateway
from gateway_calls import IMAGE, as_condition, details, stub, until
from google.protobuf import duration_pb2
from google.rpc import error_details_pb2
from grpc import aio

from mobilevision.client import CallFailed, VisionClient
from mobilevision.requests import PictureRequest, classify_request
from service.pb.mobilevision.v1 import vision_pb2

BAD = b"no picture"
SECONDS = 60.0


def asked(image: bytes, *, id: str = "", seconds: float | None = None, **options: Any) -> vision_pb2.StreamRequest:
    request = vision_pb2.StreamRequest(
        picture=vision_pb2.PictureRequest(id=id, classify=vision_pb2.ClassifyRequest(image=image, **options))
    )
    if seconds is not None:
        request.timeout.CopyFrom(duration_pb2.Duration(nanos=int(seconds * 1e9)))
    return request


class Streaming:
    """A stream of a client that writes and reads when the test says so."""

    def __init__(self, running: RunningGateway, *metadata: tuple[str, str]) -> None:
        self.call = stub(running).Stream(metadata=metadata, timeout=SECONDS)

    async def send(self, *requests: vision_pb2.StreamRequest) -> None:
        for request in requests:
            await self.call.write(request)

    async def credit(self) -> int:
        response = await self.call.read()
        assert response.WhichOneof("event") == "credit"
        return int(response.credit.pictures)

    async def answer(self) -> tuple[str, str]:
        """The id of the next answer, and its best label or the reason of its error."""
        response = await self.call.read()
        assert response is not aio.EOF, await self.call.details()
        answer = response.picture
        if answer.WhichOneof("outcome") != "error":
            return answer.id, answer.classify.labels[0].name
        info = error_details_pb2.ErrorInfo()
        assert answer.error.details[0].Unpack(info)
        return answer.id, info.reason

    async def ended(self) -> tuple[grpc.StatusCode, str]:
        """Code and reason of the end of the stream. Nothing may be left to read."""
        with pytest.raises(aio.AioRpcError) as raised:
            await self.call.read()
        return raised.value.code(), details(raised.value)[0].reason


async def test_answers_come_as_they_are_ready_and_a_bad_picture_disturbs_nobody(running: RunningGateway) -> None:
    running.backend.gate = asyncio.Event()
    stream = Streaming(running)
    assert await stream.credit() == 32
    await stream.send(asked(IMAGE, id="slow"), asked(BAD, id="bad"), vision_pb2.StreamRequest())
    assert {await stream.answer(), await stream.answer()} == {
        ("bad", "IMAGE_FORMAT_UNSUPPORTED"),
        ("", "FIELD_OUT_OF_RANGE"),
    }
    running.backend.gate.set()
    assert await stream.answer() == ("slow", "bright")
    await stream.send(asked(picture(gray=0), id="next"))
    await stream.call.done_writing()
    assert await stream.answer() == ("next", "dark")
    assert await stream.call.read() is aio.EOF
    assert await stream.call.code() is grpc.StatusCode.OK


async def test_the_server_reads_no_more_pictures_than_it_gave_credit_for() -> None:
    async with running_gateway(max_stream_pictures=2) as running:
        running.backend.gate = asyncio.Event()
        stream = Streaming(running)
        assert await stream.credit() == 2
        await stream.send(*(asked(IMAGE, id=f"{number}") for number in range(6)))
        await until(lambda: as_condition(running.gateway.pipeline.inflight == 2))
        await asyncio.sleep(0.2)
        assert running.gateway.pipeline.inflight == 2
        assert running.gateway.uploads.count == 0
        running.backend.gate.set()
        assert {await stream.answer() for _ in range(6)} == {(f"{number}", "bright") for number in range(6)}
        stream.call.cancel()


async def test_each_picture_has_its_own_deadline(running: RunningGateway) -> None:
    running.backend.gate = asyncio.Event()
    stream = Streaming(running)
    await stream.credit()
    await stream.send(asked(IMAGE, id="patient"), asked(IMAGE, id="late", seconds=0.1))
    late, why = await stream.answer()
    assert (late, why in {"DEADLINE_EXCEEDED", "DEADLINE_UNREACHABLE"}) == ("late", True)
    running.backend.gate.set()
    assert await stream.answer() == ("patient", "bright")
    stream.call.cancel()


async def test_a_stream_ends_where_no_picture_comes_and_pictures_in_work_are_answered_before() -> None:
    async with running_gateway(stream_idle_seconds=0.3) as running:
        running.backend.gate = asyncio.Event()
        stream = Streaming(running)
        await stream.credit()
        await stream.send(asked(IMAGE, id="0"))
        late = 'uploads_refused_total{cause="too_slow"} 1.0'
        await until(lambda: as_condition(late in running.metrics.page().decode()))
        running.backend.gate.set()
        assert await stream.answer() == ("0", "bright")
        assert await stream.ended() == (grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED")


async def test_a_stream_has_a_longest_time() -> None:
    async with running_gateway(max_stream_seconds=0.3) as running:
        stream = Streaming(running)
        await stream.credit()
        assert await stream.ended() == (grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED")


async def test_streams_are_bounded_in_number() -> None:
    async with running_gateway(max_streams=1) as running:
        first = Streaming(running)
        await first.credit()
        assert await Streaming(running).ended() == (grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_REQUESTS")
        await first.call.done_writing()
        assert await first.call.read() is aio.EOF
        again = Streaming(running)
        await again.credit()
        again.call.cancel()


async def test_a_message_that_cannot_be_read_ends_the_stream_with_a_reason(running: RunningGateway) -> None:
    call: Any = running.channel.stream_stream("/mobilevision.v1.VisionService/Stream")(timeout=SECONDS)
    await call.read()
    await call.write(b"\xff\xff\xff")
    with pytest.raises(aio.AioRpcError) as raised:
        await call.read()
    assert details(raised.value)[0].reason == "REQUEST_MALFORMED"


async def test_a_picture_that_has_not_arrived_is_cut_off_where_memory_is_short() -> None:
    held_bytes = 0
    async with running_gateway(call_megabytes=16, process_bytes=lambda: held_bytes) as running:
        stream = Streaming(running)
        await stream.credit()
        await until(lambda: as_condition(running.gateway.uploads.count == 1))
        held_bytes = 17 * 2**20
        assert await stream.ended() == (grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_REQUESTS")


async def test_a_server_that_drains_answers_and_ends_the_stream(running: RunningGateway) -> None:
    stream = Streaming(running)
    await stream.credit()
    await running.gateway.pipeline.drain(0.0)
    await stream.send(asked(IMAGE, id="0"))
    assert await stream.answer() == ("0", "SHUTTING_DOWN")
    assert await stream.ended() == (grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN")


async def test_callers_and_their_limits_are_those_of_single_calls(tmp_path: Path) -> None:
    file = write_callers(tmp_path / "callers.json", caller("camera", KEY, inflight_requests=1, models=["toy_classify"]))
    async with running_gateway(callers_file=file, anonymous="deny") as running:
        assert await Streaming(running).ended() == (grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED")
        running.backend.gate = asyncio.Event()
        stream = Streaming(running, ("x-api-key", KEY))
        await stream.credit()
        await stream.send(asked(IMAGE, id="0"), asked(IMAGE, id="1"))
        assert await stream.answer() == ("1", "RATE_LIMITED")
        running.backend.gate.set()
        assert await stream.answer() == ("0", "bright")
        await stream.send(asked(IMAGE, id="2", model="toy_detect"))
        assert await stream.answer() == ("2", "PERMISSION_DENIED")
        stream.call.cancel()


async def test_a_stream_is_one_call_of_the_protocol_and_its_pictures_are_requests(running: RunningGateway) -> None:
    stream = Streaming(running)
    await stream.credit()
    await stream.send(asked(IMAGE), asked(BAD))
    await stream.call.done_writing()
    while await stream.call.read() is not aio.EOF:
        pass
    page = running.metrics.page().decode()
    assert 'requests_total{code="OK",method="Classify",model="toy_classify"} 1.0' in page
    assert 'requests_total{code="INVALID_ARGUMENT",method="Classify",model="toy_classify"} 1.0' in page
    assert 'grpc_code="OK",grpc_method="Stream",' in page
    assert 'grpc_type="bidi_stream"} 1.0' in page


async def test_the_client_streams_any_number_of_pictures_and_is_never_far_ahead() -> None:
    count, ahead, most_ahead = 500, 0, 0
    images = [picture(gray=gray) for gray in (0, 100, 200)]

    def requests() -> Iterator[tuple[int, PictureRequest]]:
        nonlocal ahead, most_ahead
        for number in range(count):
            ahead += 1
            most_ahead = max(most_ahead, ahead)
            yield number, classify_request(BAD if number == 7 else images[number % 3], top_k=1)

    async with running_gateway(max_stream_pictures=8) as running:

        def call() -> dict[int, Any]:
            nonlocal ahead
            found: dict[int, Any] = {}
            with VisionClient(running.grpc) as client:
                for number, outcome in client.stream(requests()):
                    found[number] = outcome
                    ahead -= 1
            return found

        found = await asyncio.to_thread(call)
    assert sorted(found) == list(range(count))
    failed = found.pop(7)
    assert (type(failed), failed.reason) == (CallFailed, "IMAGE_FORMAT_UNSUPPORTED")
    assert all(outcome.labels[0].name == ("dark", "gray", "bright")[number % 3] for number, outcome in found.items())
    assert most_ahead <= 9  # eight without an answer, and one whose answer the client has just read


async def test_the_client_ends_a_stream_early_and_reports_what_its_pictures_raise(running: RunningGateway) -> None:
    def requests(count: int) -> Iterator[tuple[int, PictureRequest]]:
        for number in range(count):
            yield number, classify_request(IMAGE)
        raise FileNotFoundError("the next picture")

    def call() -> tuple[int, list[int]]:
        with VisionClient(running.grpc) as client:
            answers = client.stream(requests(1000))
            first, _ = next(iter(answers))
            answers.close()  # type: ignore[attr-defined]  # a generator
            seen: list[int] = []
            with pytest.raises(FileNotFoundError):
                seen.extend(number for number, _ in client.stream(requests(3)))
            return first, sorted(seen)

    first, seen = await asyncio.to_thread(call)
    assert (first in range(1000), seen) == (True, [0, 1, 2])
    await until(lambda: as_condition(running.gateway.pipeline.inflight == 0))


async def test_a_stream_that_the_server_refuses_raises_in_the_client() -> None:
    async with running_gateway(max_streams=1) as running:
        first = Streaming(running)
        await first.credit()

        def call() -> CallFailed:
            with VisionClient(running.grpc) as client, pytest.raises(CallFailed) as raised:
                list(client.stream([(0, classify_request(IMAGE))]))
            return raised.value

        assert (await asyncio.to_thread(call)).reason == "TOO_MANY_REQUESTS"
        first.call.cancel()
