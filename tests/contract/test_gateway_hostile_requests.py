"""A whole gateway and requests that no honest client sends: malformed messages, endless strings, too large messages."""

import asyncio
from typing import Any

import grpc
import pytest
from fakes import RunningGateway
from gateway_calls import IMAGE, failure, stub
from grpc import aio

from service.pb.mobilevision.v1 import vision_pb2

MEGABYTE = 10**6
METHODS = ("Classify", "Detect", "Segment", "ListModels", "GetModel")


def raw_call(running: RunningGateway, method: str, request: bytes) -> Any:
    return running.channel.unary_unary(f"/mobilevision.v1.VisionService/{method}")(request)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("request_bytes", [b"\xff\xff\xff", b"\x0a\x05ab"])
async def test_a_malformed_message_ends_inside_the_error_contract(
    running: RunningGateway, method: str, request_bytes: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    code, reason, _, retry = await failure(raw_call(running, method, request_bytes))
    assert (code, reason, retry) == (grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_MALFORMED", None)
    assert not [line for line in caplog.records if line.exc_info]
    assert f'requests_total{{code="INVALID_ARGUMENT",method="{method}"' in running.metrics.page().decode()


@pytest.mark.parametrize(
    ("method", "field"), [("Classify", "model"), ("Detect", "model"), ("Segment", "model"), ("GetModel", "name")]
)
async def test_an_endless_name_is_refused_and_holds_up_nobody(running: RunningGateway, method: str, field: str) -> None:
    # Field 1 of each request is the name. 40 MB of it kept the event loop busy for 6.7 s.
    name = vision_pb2.GetModelRequest(name="m" * 40 * MEGABYTE).SerializeToString()
    longest_seconds, running_still = 0.0, True

    async def watch() -> None:
        nonlocal longest_seconds
        clock = asyncio.get_running_loop().time
        while running_still:
            before = clock()
            await asyncio.sleep(0.01)
            longest_seconds = max(longest_seconds, clock() - before)

    watching = asyncio.create_task(watch())
    code, reason, info, _ = await failure(raw_call(running, method, name))
    running_still = False
    await watching
    assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "FIELD_OUT_OF_RANGE")
    assert info.metadata["field"] == field
    assert longest_seconds < 2.0


@pytest.mark.parametrize(("length", "expected"), [(256, "MODEL_NOT_FOUND"), (257, "FIELD_OUT_OF_RANGE")])
async def test_a_name_has_at_most_256_characters(running: RunningGateway, length: int, expected: str) -> None:
    _, reason, _, _ = await failure(stub(running).GetModel(vision_pb2.GetModelRequest(name="é" * length)))
    assert reason == expected


async def test_what_grpc_itself_refuses_is_as_the_proto_says(running: RunningGateway) -> None:
    too_large = vision_pb2.ClassifyRequest(image=bytes(42 * 2**20)).SerializeToString()
    for call, code in (
        (raw_call(running, "Classify", too_large), grpc.StatusCode.RESOURCE_EXHAUSTED),
        (raw_call(running, "Nothing", b""), grpc.StatusCode.UNIMPLEMENTED),
    ):
        with pytest.raises(aio.AioRpcError) as raised:
            await call
        assert raised.value.code() == code
    reply = await stub(running).Classify(vision_pb2.ClassifyRequest(image=IMAGE))
    assert reply.model.name == "toy_classify"
