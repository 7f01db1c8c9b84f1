"""The promises of the proto, against a whole gateway whose models are toys: every code, trailer and refusal."""

import asyncio
import json
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from fakes import RunningGateway, picture, running_gateway, toy_card
from google.rpc import error_details_pb2, status_pb2
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from model_store.card import Task
from service.errors import BackendFault, BackendTimeout, BackendUnavailable
from service.gateway import REFUSAL_SECONDS
from service.pb.mobilevision.v1 import vision_pb2, vision_pb2_grpc

IMAGE = picture()


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[RunningGateway]:
    async with running_gateway(worker_shm_dir=tmp_path, shm_dir=tmp_path, shm_megabytes=16) as gateway:
        yield gateway


def stub(running: RunningGateway) -> Any:
    return vision_pb2_grpc.VisionServiceStub(running.channel)


def details(error: aio.AioRpcError) -> tuple[error_details_pb2.ErrorInfo, error_details_pb2.RetryInfo | None]:
    raw = next(value for key, value in error.trailing_metadata() if key == "grpc-status-details-bin")
    status = status_pb2.Status.FromString(raw)
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    assert status.details[0].Unpack(info)
    found = any(detail.Unpack(retry) for detail in status.details)
    return info, retry if found else None


async def failure(call: Any) -> tuple[grpc.StatusCode, str, error_details_pb2.ErrorInfo, Any]:
    with pytest.raises(aio.AioRpcError) as raised:
        await call
    info, retry = details(raised.value)
    return raised.value.code(), info.reason, info, retry


def http(running: RunningGateway, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://{running.http}{path}", timeout=5) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


async def get(running: RunningGateway, path: str) -> tuple[int, str]:
    return await asyncio.to_thread(http, running, path)


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not await condition():
            await asyncio.sleep(0.01)


async def test_the_three_calls_answer_in_the_pictures_own_pixels(running: RunningGateway) -> None:
    classified = await stub(running).Classify(vision_pb2.ClassifyRequest(image=IMAGE))
    assert [label.name for label in classified.labels] == ["bright", "dark", "gray"]
    assert (classified.picture.width, classified.picture.height, classified.picture.format) == (64, 48, "PNG")
    assert classified.model.weights == vision_pb2.WEIGHTS_STATE_RANDOM
    detected = await stub(running).Detect(vision_pb2.DetectRequest(image=IMAGE))
    box = detected.detections[0].box
    assert (box.x_min, box.y_min, box.x_max, box.y_max) == (16, 12, 48, 24)
    segmented = await stub(running).Segment(vision_pb2.SegmentRequest(image=IMAGE, include_confidence=True))
    assert [(c.name, c.area_fraction) for c in segmented.classes] == [("bright", 1.0)]
    assert segmented.mask_png.startswith(b"\x89PNG")
    assert segmented.confidence_png.startswith(b"\x89PNG")


async def test_trailers_say_where_the_time_went_and_echo_the_request_id(running: RunningGateway) -> None:
    call = stub(running).Classify(vision_pb2.ClassifyRequest(image=IMAGE), metadata=(("x-request-id", "abc-1"),))
    await call
    trailers = dict(iter(await call.trailing_metadata()))
    assert trailers["x-request-id"] == "abc-1"
    assert trailers["mobilevision-batch-size"] == "1"
    stages = [part.split(";")[0] for part in trailers["server-timing"].split(", ")]
    assert stages == ["decode", "queue", "transport", "inference", "results"]


async def test_a_request_id_that_could_break_a_log_is_replaced(running: RunningGateway) -> None:
    call = stub(running).Classify(vision_pb2.ClassifyRequest(image=IMAGE), metadata=(("x-request-id", "x" * 500),))
    await call
    trailers = dict(iter(await call.trailing_metadata()))
    assert len(trailers["x-request-id"]) == 32


async def test_models_are_listed_and_described(running: RunningGateway) -> None:
    listed = await stub(running).ListModels(vision_pb2.ListModelsRequest())
    assert [(m.name, m.ready, m.is_default) for m in listed.models] == [
        ("toy_classify", True, True),
        ("toy_detect", True, True),
        ("toy_segment", True, True),
    ]
    only = await stub(running).ListModels(vision_pb2.ListModelsRequest(task=vision_pb2.TASK_DETECT))
    assert [m.name for m in only.models] == ["toy_detect"]
    described = await stub(running).GetModel(vision_pb2.GetModelRequest(name="toy_detect"))
    assert list(described.model.labels) == ["dark", "gray", "bright"]
    assert described.model.module_sha256 == toy_card(Task.DETECT).module_sha256
    assert not described.model.published_scores


async def test_published_scores_are_those_of_the_card() -> None:
    card = toy_card()
    scored = card.model_copy(update={"weights": card.weights.model_copy(update={"published": {"top1": 69.0}})})
    async with running_gateway([scored]) as gateway:
        described = await stub(gateway).GetModel(vision_pb2.GetModelRequest(name=card.name))
    assert dict(described.model.published_scores) == {"top1": 69.0}


async def test_an_unknown_model_is_not_found_and_the_nearest_are_named(running: RunningGateway) -> None:
    for call in (
        stub(running).Classify(vision_pb2.ClassifyRequest(model="toy_clasify", image=IMAGE)),
        stub(running).GetModel(vision_pb2.GetModelRequest(name="toy_clasify")),
    ):
        code, reason, info, _ = await failure(call)
        assert (code, reason) == (grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND")
        assert "toy_classify" in info.metadata["nearest"]


async def test_a_model_of_another_task_is_refused(running: RunningGateway) -> None:
    code, reason, _, _ = await failure(
        stub(running).Classify(vision_pb2.ClassifyRequest(model="toy_detect", image=IMAGE))
    )
    assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "TASK_MISMATCH")


async def test_every_option_out_of_range_is_refused_before_any_work(running: RunningGateway) -> None:
    calls = stub(running)
    for call, field in (
        (calls.Classify(vision_pb2.ClassifyRequest(image=IMAGE, top_k=0)), "top_k"),
        (calls.Classify(vision_pb2.ClassifyRequest(image=IMAGE, top_k=101)), "top_k"),
        (calls.Detect(vision_pb2.DetectRequest(image=IMAGE, score_threshold=1.5)), "score_threshold"),
        (calls.Detect(vision_pb2.DetectRequest(image=IMAGE, score_threshold=float("nan"))), "score_threshold"),
        (calls.Detect(vision_pb2.DetectRequest(image=IMAGE, max_detections=0)), "max_detections"),
        (calls.Detect(vision_pb2.DetectRequest(image=IMAGE, max_detections=201)), "max_detections"),
        (calls.Segment(vision_pb2.SegmentRequest(image=IMAGE, mask_encoding=99)), "mask_encoding"),
        (calls.Classify(vision_pb2.ClassifyRequest(image=IMAGE, priority=99)), "priority"),
    ):
        code, reason, info, _ = await failure(call)
        assert (code, reason, info.metadata["field"]) == (grpc.StatusCode.INVALID_ARGUMENT, "FIELD_OUT_OF_RANGE", field)
    assert running.backend.batch_sizes == []


async def test_each_bad_picture_has_its_own_reason() -> None:
    async with running_gateway(max_image_bytes=50_000, max_image_pixels=1_000_000) as running:
        for image, reason in (
            (b"", "IMAGE_EMPTY"),
            (b"\x89PNG" + bytes(60_000), "IMAGE_TOO_MANY_BYTES"),
            (picture(2000, 1000), "IMAGE_TOO_MANY_PIXELS"),
            (b"%PDF-1.7 not a picture", "IMAGE_FORMAT_UNSUPPORTED"),
            (picture(form="JPEG")[:-100], "IMAGE_TRUNCATED"),
            (picture(64, 64)[:60] + b"\xff" * 40 + picture(64, 64)[100:], "IMAGE_CORRUPT"),
        ):
            code, got, _, retry = await failure(stub(running).Classify(vision_pb2.ClassifyRequest(image=image)))
            assert (code, got, retry) == (grpc.StatusCode.INVALID_ARGUMENT, reason, None)
        assert running.backend.batch_sizes == []
        assert 'mobilevision_rejected_total{reason="IMAGE_TRUNCATED"} 1.0' in (await get(running, "/metrics"))[1]


async def test_requests_that_come_together_share_a_batch() -> None:
    async with running_gateway(max_batch=4) as running:
        running.backend.gate = asyncio.Event()
        calls = [
            stub(running).Classify(vision_pb2.ClassifyRequest(image=picture(gray=g))) for g in (0, 100, 200, 0, 100)
        ]
        pending = [asyncio.ensure_future(_reply(call)) for call in calls]
        await until(lambda: _true(running.gateway.pipeline.inflight == 5 and running.backend.batch_sizes))
        await until(lambda: _true("mobilevision_queue_length" in running.metrics.page().decode()))
        running.backend.gate.set()
        names = [reply.labels[0].name for reply in await asyncio.gather(*pending)]
        assert names == ["dark", "gray", "bright", "dark", "gray"]
        assert sum(running.backend.batch_sizes) == 5
        assert max(running.backend.batch_sizes) > 1


async def _reply(call: Any) -> Any:
    return await call


async def _true(value: object) -> bool:
    return bool(value)


async def test_a_full_queue_is_refused_with_a_time_to_retry() -> None:
    async with running_gateway(max_batch=1, max_queue=1, batches_per_worker=1) as running:
        running.backend.gate = asyncio.Event()
        calls = [stub(running).Classify(vision_pb2.ClassifyRequest(image=IMAGE)) for _ in range(6)]
        outcomes = asyncio.gather(*(_reply(call) for call in calls), return_exceptions=True)
        await until(lambda: _true('rejected_total{reason="QUEUE_FULL"} 4.0' in running.metrics.page().decode()))
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
        for _ in range(3):  # the gateway learns that a batch takes a moment
            await stub(running).Classify(vision_pb2.ClassifyRequest(image=IMAGE))
        a_moment = clock() - began
        running.backend.gate = asyncio.Event()
        busy = asyncio.ensure_future(_reply(stub(running).Classify(vision_pb2.ClassifyRequest(image=IMAGE))))
        await until(lambda: _true(len(running.backend.batch_sizes) == 4))
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
        assert 'mobilevision_predicted_batch_seconds_count{model="toy_classify"} 3.0' in page
        assert 'mobilevision_refused_late_total{model="toy_classify"} 0.0' in page


async def test_bulk_work_lets_interactive_work_go_first() -> None:
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
                lambda waiting=waiting: _true(
                    running.backend.batch_sizes and waiting in running.metrics.page().decode()
                )
            )
        running.backend.gate.set()
        await asyncio.gather(*tasks)
        assert ended == ["busy", "interactive", "bulk"]


async def test_more_requests_than_permits_are_refused_before_decoding() -> None:
    async with running_gateway(max_inflight_requests=1) as running:
        running.backend.gate = asyncio.Event()
        first = asyncio.ensure_future(_reply(stub(running).Classify(vision_pb2.ClassifyRequest(image=IMAGE))))
        await until(lambda: _true(running.backend.batch_sizes))
        code, reason, _, retry = await failure(stub(running).Classify(vision_pb2.ClassifyRequest(image=b"not decoded")))
        assert (code, reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_REQUESTS")
        assert retry is not None
        running.backend.gate.set()
        await first


async def test_a_deadline_of_one_millisecond_is_exceeded_and_nothing_is_done_in_vain(running: RunningGateway) -> None:
    for _ in range(5):
        with pytest.raises(aio.AioRpcError) as raised:
            await stub(running).Classify(vision_pb2.ClassifyRequest(image=picture(3000, 3000)), timeout=0.001)
        assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await until(lambda: _true(running.gateway.pipeline.inflight == 0))
    assert running.backend.batch_sizes == []


async def test_a_deadline_that_passes_in_the_queue_starts_no_batch() -> None:
    async with running_gateway(max_batch=1, batches_per_worker=1) as running:
        running.backend.gate = asyncio.Event()
        first = asyncio.ensure_future(_reply(stub(running).Classify(vision_pb2.ClassifyRequest(image=IMAGE))))
        await until(lambda: _true(running.backend.batch_sizes))
        with pytest.raises(aio.AioRpcError) as raised:
            await stub(running).Classify(vision_pb2.ClassifyRequest(image=IMAGE), timeout=0.2)
        assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await until(lambda: _true(running.gateway.pipeline.inflight == 1))
        running.backend.gate.set()
        await first
        assert running.backend.batch_sizes == [1]


async def test_a_call_without_a_deadline_gets_the_servers() -> None:
    async with running_gateway(default_deadline_seconds=0.2) as running:
        running.backend.gate = asyncio.Event()
        code, reason, _, _ = await failure(stub(running).Classify(vision_pb2.ClassifyRequest(image=IMAGE)))
        assert (code, reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED")
        running.backend.gate.set()


async def test_a_caller_that_hangs_up_frees_its_place() -> None:
    async with running_gateway(max_batch=1, batches_per_worker=1) as running:
        running.backend.gate = asyncio.Event()
        first = asyncio.ensure_future(_reply(stub(running).Classify(vision_pb2.ClassifyRequest(image=IMAGE))))
        await until(lambda: _true(running.backend.batch_sizes))
        second = stub(running).Classify(vision_pb2.ClassifyRequest(image=IMAGE))
        await until(lambda: _true(running.gateway.pipeline.inflight == 2))
        second.cancel()
        await until(lambda: _true(running.gateway.pipeline.inflight == 1))
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


async def test_one_lost_batch_is_sent_again_and_the_caller_never_knows(running: RunningGateway) -> None:
    running.backend.failures = [BackendUnavailable("the worker died")]
    await stub(running).Classify(vision_pb2.ClassifyRequest(image=IMAGE))
    assert 'mobilevision_batches_retried_total{model="toy_classify"} 1.0' in running.metrics.page().decode()


async def test_health_tells_each_model_apart_and_recovers(running: RunningGateway) -> None:
    health = health_pb2_grpc.HealthStub(running.channel)
    serving = health_pb2.HealthCheckResponse.SERVING
    for name in ("", "mobilevision.v1.VisionService", "toy_classify"):
        assert (await health.Check(health_pb2.HealthCheckRequest(service=name))).status == serving
    with pytest.raises(aio.AioRpcError) as raised:
        await health.Check(health_pb2.HealthCheckRequest(service="nobody"))
    assert raised.value.code() is grpc.StatusCode.NOT_FOUND
    watch = health.Watch(health_pb2.HealthCheckRequest(service="toy_classify"))
    seen = [(await watch.read()).status]
    running.backend.ready_workers = 0
    seen.append((await watch.read()).status)
    status, body = await get(running, "/readyz")
    assert status == 503
    assert set(json.loads(body)["not_ready"]) == {"toy_classify", "toy_detect", "toy_segment"}
    # Readiness is of all models together; what clients balance by is whether the server takes calls.
    not_serving = health_pb2.HealthCheckResponse.NOT_SERVING
    assert (await health.Check(health_pb2.HealthCheckRequest(service=""))).status == not_serving
    assert (
        await health.Check(health_pb2.HealthCheckRequest(service="mobilevision.v1.VisionService"))
    ).status == serving
    code, reason, _, retry = await failure(stub(running).Classify(vision_pb2.ClassifyRequest(image=IMAGE)))
    assert (code, reason) == (grpc.StatusCode.UNAVAILABLE, "MODEL_NOT_READY")
    assert retry is not None
    running.backend.ready_workers = 1
    seen.append((await watch.read()).status)
    watch.cancel()
    assert seen == [serving, not_serving, serving]
    assert (await get(running, "/readyz"))[0] == 200
    assert (await get(running, "/livez"))[0] == 200
    assert (await get(running, "/nothing"))[0] == 404


async def test_a_stuck_batch_makes_its_model_not_ready() -> None:
    async with running_gateway(batch_timeout_seconds=1.0) as running:
        running.backend.gate = asyncio.Event()
        call = asyncio.ensure_future(
            asyncio.gather(
                _reply(stub(running).Classify(vision_pb2.ClassifyRequest(image=IMAGE))), return_exceptions=True
            )
        )

        async def told() -> bool:
            status, body = await get(running, "/readyz")
            return status == 503 and "stuck" in json.loads(body)["not_ready"].get("toy_classify", "")

        await until(told)
        running.backend.gate.set()
        await call


async def test_stopping_reports_not_serving_first_and_loses_no_call() -> None:
    async with running_gateway(drain_delay_seconds=0.3) as running:
        running.backend.gate = asyncio.Event()
        inflight = asyncio.ensure_future(_reply(stub(running).Classify(vision_pb2.ClassifyRequest(image=IMAGE))))
        await until(lambda: _true(running.backend.batch_sizes))
        stopping = asyncio.ensure_future(running.gateway.stop())
        health = health_pb2_grpc.HealthStub(running.channel)

        async def not_serving() -> bool:
            names = ("", "mobilevision.v1.VisionService", "toy_classify")
            replies = [await health.Check(health_pb2.HealthCheckRequest(service=name)) for name in names]
            return {reply.status for reply in replies} == {health_pb2.HealthCheckResponse.NOT_SERVING}

        await until(not_serving)
        assert (await get(running, "/readyz"))[0] == 503
        late = asyncio.ensure_future(_reply(stub(running).Classify(vision_pb2.ClassifyRequest(image=IMAGE))))
        await asyncio.sleep(0)
        await until(lambda: _true(running.gateway.pipeline.inflight == 2))
        running.backend.gate.set()
        assert (await inflight).labels[0].name == "bright"
        assert (await late).labels[0].name == "bright"
        await stopping


async def test_a_caller_whose_answer_ended_the_drain_is_told_to_go_elsewhere_too() -> None:
    async with running_gateway(max_batch=1) as running:
        running.backend.gate = asyncio.Event()
        request = vision_pb2.ClassifyRequest(image=IMAGE)
        last = asyncio.ensure_future(_reply(stub(running).Classify(request)))
        await until(lambda: _true(running.backend.batch_sizes))
        stopping = asyncio.ensure_future(running.gateway.stop())
        await asyncio.sleep(1.2 * REFUSAL_SECONDS)  # the last answer comes later than callers are refused for
        running.backend.gate.set()
        await last
        code, reason, _, _ = await failure(stub(running).Classify(request))
        assert (code, reason) == (grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN")
        await stopping


async def test_the_metrics_page_tells_models_requests_and_batches(running: RunningGateway) -> None:
    await stub(running).Classify(vision_pb2.ClassifyRequest(image=IMAGE))
    page = (await get(running, "/metrics"))[1]
    for line in (
        'mobilevision_requests_total{code="OK",method="Classify",model="toy_classify"} 1.0',
        'mobilevision_batch_size_count{model="toy_classify"} 1.0',
        'mobilevision_dispatch_total{model="toy_classify",reason="idle"} 1.0',
        'mobilevision_stage_duration_seconds_count{model="toy_classify",stage="decode"} 1.0',
        'mobilevision_worker_ready{model="toy_classify"} 1.0',
        'mobilevision_queue_length{model="toy_segment"} 0.0',
        'grpc_server_handled_total{grpc_code="OK",grpc_method="Classify",'
        'grpc_service="mobilevision.v1.VisionService",grpc_type="unary"} 1.0',
    ):
        assert line in page


async def test_names_from_outside_never_become_label_values(running: RunningGateway) -> None:
    for name in ("evil", "toy_detect"):
        await failure(stub(running).Classify(vision_pb2.ClassifyRequest(model=name, image=IMAGE)))
    page = running.metrics.page().decode()
    assert "evil" not in page
    assert 'mobilevision_requests_total{code="NOT_FOUND",method="Classify",model="unknown"} 1.0' in page


async def test_no_model_for_a_task_is_told() -> None:
    async with running_gateway([toy_card(Task.DETECT)]) as running:
        code, reason, _, _ = await failure(stub(running).Segment(vision_pb2.SegmentRequest(image=IMAGE)))
        assert (code, reason) == (grpc.StatusCode.NOT_FOUND, "NO_DEFAULT_MODEL")
