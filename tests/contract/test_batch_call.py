"""`Batch`: several pictures in one call, each answered, refused, limited and reported like a call of its own."""

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest
from access_keys import KEY, caller, write_callers
from fakes import RunningGateway, picture, running_gateway
from gateway_calls import IMAGE, as_condition, failure, reply_of, stub, until
from google.rpc import error_details_pb2, status_pb2

from mobilevision.client import CallFailed, VisionClient
from service.pb.mobilevision.v1 import vision_pb2

SHADES = (0, 100, 200)
NAMES = ("dark", "gray", "bright")


def classify(image: bytes, *, id: str = "", **options: Any) -> vision_pb2.PictureRequest:
    return vision_pb2.PictureRequest(id=id, classify=vision_pb2.ClassifyRequest(image=image, **options))


def batch(*pictures: vision_pb2.PictureRequest) -> vision_pb2.BatchRequest:
    return vision_pb2.BatchRequest(pictures=pictures)


def reason(status: status_pb2.Status) -> str:
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    return info.reason


def outcomes(reply: vision_pb2.BatchResponse) -> list[str]:
    """The reason of each picture that failed, the best label of each other one."""
    return [
        reason(each.error) if each.WhichOneof("outcome") == "error" else each.classify.labels[0].name
        for each in reply.pictures
    ]


def samples(running: RunningGateway, name: str) -> dict[tuple[str, ...], float]:
    return {
        tuple(sample.labels.values()): sample.value
        for family in running.metrics.registry.collect()
        for sample in family.samples
        if sample.name == name and sample.value
    }


async def test_pictures_are_separate_jobs_and_answers_are_in_order() -> None:
    async with running_gateway(max_batch=4) as running:
        images = [picture(gray=SHADES[number % 3]) for number in range(11)]
        reply = await stub(running).Batch(batch(*(classify(image, id=f"{i}") for i, image in enumerate(images))))
        assert outcomes(reply) == [NAMES[number % 3] for number in range(11)]
        assert [each.id for each in reply.pictures] == [str(number) for number in range(11)]
        assert sum(running.backend.batch_sizes) == 11
        assert 1 < max(running.backend.batch_sizes) <= 4
        assert {each.timing.batch_size for each in reply.pictures} == set(running.backend.batch_sizes)
        assert all(each.timing.inference_seconds > 0 for each in reply.pictures)


async def test_each_picture_has_its_own_task_and_options(running: RunningGateway) -> None:
    reply = await stub(running).Batch(
        batch(
            classify(IMAGE, top_k=2),
            vision_pb2.PictureRequest(detect=vision_pb2.DetectRequest(image=IMAGE)),
            vision_pb2.PictureRequest(segment=vision_pb2.SegmentRequest(image=IMAGE, include_confidence=True)),
        )
    )
    classified, detected, segmented = reply.pictures
    assert len(classified.classify.labels) == 2
    assert classified.classify.model.module_sha256 == "0" * 64
    assert detected.detect.detections[0].box.x_max == 48
    assert segmented.segment.confidence_png.startswith(b"\x89PNG")


async def test_a_bad_picture_has_the_error_of_a_single_call_and_disturbs_nobody(running: RunningGateway) -> None:
    call = stub(running).Batch(
        batch(
            classify(IMAGE),
            classify(picture(form="JPEG")[:-100]),
            classify(b""),
            classify(IMAGE, model="toy_clasify"),
            classify(IMAGE, top_k=101),
            vision_pb2.PictureRequest(id="x"),
            classify(IMAGE, id="i" * 257),
            classify(IMAGE),
        ),
        metadata=(("x-request-id", "abc"),),
    )
    reply = await call
    assert outcomes(reply) == [
        "bright",
        "IMAGE_TRUNCATED",
        "IMAGE_EMPTY",
        "MODEL_NOT_FOUND",
        "FIELD_OUT_OF_RANGE",
        "FIELD_OUT_OF_RANGE",
        "FIELD_OUT_OF_RANGE",
        "bright",
    ]
    assert (reply.pictures[5].id, reply.pictures[6].id) == ("x", "i" * 256)
    error = reply.pictures[3].error
    info, request = error_details_pb2.ErrorInfo(), error_details_pb2.RequestInfo()
    assert error.details[0].Unpack(info)
    assert error.details[1].Unpack(request)
    assert (error.code, info.metadata["nearest"], request.request_id) == (5, "toy_classify", "abc/3")
    assert not reply.pictures[3].HasField("timing")
    assert dict(iter(await call.trailing_metadata()))["x-request-id"] == "abc"


async def test_too_many_pictures_or_bytes_are_refused_before_any_work() -> None:
    async with running_gateway(max_call_pictures=3, max_call_pictures_megabytes=1) as running:
        large = picture() + bytes(600_000)
        for request in (batch(), batch(*[classify(IMAGE)] * 4), batch(classify(large), classify(large))):
            code, why, info, retry = await failure(stub(running).Batch(request))
            assert (code, why) == (grpc.StatusCode.INVALID_ARGUMENT, "FIELD_OUT_OF_RANGE")
            assert (info.metadata["field"], retry) == ("pictures", None)
        assert running.backend.batch_sizes == []
        assert samples(running, "mobilevision_requests_total") == {("Batch", "unknown", "INVALID_ARGUMENT"): 3.0}
        assert outcomes(await stub(running).Batch(batch(*[classify(IMAGE)] * 3))) == ["bright"] * 3


async def test_pictures_are_requests_in_the_metrics_and_the_call_is_one_of_the_protocol(
    running: RunningGateway,
) -> None:
    await stub(running).Batch(batch(classify(IMAGE), classify(IMAGE), classify(b"no picture")))
    assert samples(running, "mobilevision_requests_total") == {
        ("Classify", "toy_classify", "OK"): 2.0,
        ("Classify", "toy_classify", "INVALID_ARGUMENT"): 1.0,
    }
    assert samples(running, "mobilevision_caller_requests_total") == {
        ("anonymous", "OK"): 2.0,
        ("anonymous", "INVALID_ARGUMENT"): 1.0,
    }
    handled = samples(running, "grpc_server_handled_total")
    assert handled == {("unary", "mobilevision.v1.VisionService", "Batch", "OK"): 1.0}


async def test_limits_of_a_caller_count_pictures(tmp_path: Path) -> None:
    file = write_callers(tmp_path / "callers.json", caller("camera", KEY, inflight_requests=2, models=["toy_classify"]))
    async with running_gateway(callers_file=file, anonymous="deny") as running:
        four = batch(*[classify(IMAGE)] * 4)
        assert (await failure(stub(running).Batch(four)))[1] == "UNAUTHENTICATED"
        key = (("x-api-key", KEY),)
        reply = await stub(running).Batch(four, metadata=key)
        assert outcomes(reply) == ["bright", "bright", "RATE_LIMITED", "RATE_LIMITED"]
        detect = vision_pb2.PictureRequest(detect=vision_pb2.DetectRequest(image=IMAGE, model="toy_detect"))
        reply = await stub(running).Batch(batch(detect, classify(IMAGE)), metadata=key)
        assert outcomes(reply) == ["PERMISSION_DENIED", "bright"]


async def test_pictures_over_the_limit_of_the_server_are_refused_one_by_one() -> None:
    async with running_gateway(max_inflight_requests=3) as running:
        reply = await stub(running).Batch(batch(*[classify(IMAGE)] * 5))
        assert outcomes(reply) == ["bright"] * 3 + ["TOO_MANY_REQUESTS"] * 2


async def test_a_cancelled_call_gives_all_its_pictures_up(running: RunningGateway) -> None:
    running.backend.gate = asyncio.Event()
    call = stub(running).Batch(batch(*[classify(IMAGE)] * 5))
    waiting = asyncio.ensure_future(reply_of(call))
    await until(lambda: as_condition(running.gateway.pipeline.inflight == 5))
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await until(lambda: as_condition(running.gateway.pipeline.inflight == 0))
    running.backend.gate.set()
    assert samples(running, "mobilevision_requests_total") == {("Classify", "toy_classify", "CANCELLED"): 5.0}
    assert outcomes(await stub(running).Batch(batch(classify(IMAGE)))) == ["bright"]


async def test_each_picture_is_recorded_as_a_call_of_its_task(tmp_path: Path) -> None:
    async with running_gateway(recording_dir=tmp_path / "calls") as running:
        await stub(running).Batch(batch(classify(IMAGE), classify(b"no picture")))
        await until(lambda: as_condition(len(list((tmp_path / "calls").glob("*.call"))) == 2))


async def test_the_client_has_a_result_or_a_failure_for_each_picture(running: RunningGateway) -> None:
    def call() -> list[Any]:
        with VisionClient(running.grpc) as client:
            return client.classify_batch([picture(gray=0), b"no picture", IMAGE], top_k=1, request_id="abc")

    dark, failed, bright = await asyncio.to_thread(call)
    assert [dark.labels[0].name, bright.labels[0].name] == ["dark", "bright"]
    assert (len(dark.labels), dark.batch_size, dark.request_id) == (1, dark.batch_size, "abc/0")
    assert dark.stage_ms["inference"] > 0
    assert isinstance(failed, CallFailed)
    assert (failed.code, failed.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "IMAGE_FORMAT_UNSUPPORTED")
    assert (failed.request_id, failed.retry_after_seconds) == ("abc/1", None)


async def test_the_client_sends_the_options_of_every_task_and_raises_where_the_call_fails() -> None:
    async with running_gateway(max_call_pictures=2) as running:

        def call() -> tuple[Any, Any, CallFailed]:
            with VisionClient(running.grpc) as client:
                detected = client.detect_batch([IMAGE], max_detections=1, score_threshold=0.95)
                segmented = client.segment_batch([IMAGE, IMAGE], include_confidence=True)
                with pytest.raises(CallFailed) as raised:
                    client.classify_batch([IMAGE] * 3)
                return detected, segmented, raised.value

        detected, segmented, error = await asyncio.to_thread(call)
        assert [each.boxes for each in detected] == [()]
        assert [each.mask.shape for each in segmented] == [(48, 64)] * 2
        assert (error.reason, error.metadata) == ("FIELD_OUT_OF_RANGE", {"field": "pictures"})
