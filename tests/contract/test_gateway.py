"""A whole gateway with toy models keeps the promises of the proto: replies, trailers, options, pictures, metrics."""

import asyncio

import grpc
from fakes import RunningGateway, picture, running_gateway, toy_card
from gateway_calls import IMAGE, as_condition, failure, get, reply_of, stub, until

from handlers.contract.card import Task
from service.pb.mobilevision.v1 import vision_pb2


async def test_the_three_calls_answer_in_pixels_of_the_picture(running: RunningGateway) -> None:
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


async def test_trailers_have_stage_times_and_the_request_id(running: RunningGateway) -> None:
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


async def test_what_computes_a_model_stands_in_its_description_its_metrics_and_the_trailers() -> None:
    async with running_gateway([toy_card(Task.DETECT)]) as gateway:
        await check_what_computes(gateway)


async def check_what_computes(running: RunningGateway) -> None:
    silent = await stub(running).GetModel(vision_pb2.GetModelRequest(name="toy_detect"))
    assert (silent.model.engine, silent.model.dtype, silent.model.device) == ("fake", "", "")
    assert 'mobilevision_model_info{device="",dtype="",engine="",' in running.metrics.page().decode()
    for engine, dtype, device in (("openvino", "bfloat16", "cpu"), ("torchscript", "float16", "cuda:1")):
        running.backend.about = {"engine": engine, "dtype": dtype, "device": device}
        call = stub(running).Detect(vision_pb2.DetectRequest(image=IMAGE))
        used = (await call).model
        trailers = dict(iter(await call.trailing_metadata()))
        keys = ("mobilevision-engine", "mobilevision-dtype", "mobilevision-device")
        assert tuple(trailers[key] for key in keys) == (engine, dtype, device)
        assert (used.engine, used.dtype, used.device) == (f"fake/{engine}", dtype, device)
        listed = await stub(running).ListModels(vision_pb2.ListModelsRequest(task=vision_pb2.TASK_DETECT))
        described = await stub(running).GetModel(vision_pb2.GetModelRequest(name="toy_detect"))
        kind = device.partition(":")[0]
        for model in (listed.models[0], described.model):
            assert (model.engine, model.dtype, model.device) == (f"fake/{engine}", dtype, kind)
        lines = running.metrics.page().decode().splitlines()
        (info,) = (line for line in lines if line.startswith("mobilevision_model_info{"))
        assert f'{{device="{kind}",dtype="{dtype}",engine="{engine}",' in info


async def test_published_scores_are_those_of_the_card() -> None:
    card = toy_card()
    scored = card.model_copy(update={"weights": card.weights.model_copy(update={"published": {"top1": 69.0}})})
    async with running_gateway([scored]) as gateway:
        described = await stub(gateway).GetModel(vision_pb2.GetModelRequest(name=card.name))
    assert dict(described.model.published_scores) == {"top1": 69.0}


async def test_colours_and_the_digest_of_the_definition_are_those_of_the_card() -> None:
    card = toy_card()
    colours = tuple(f"#00000{number}" for number in range(len(card.labels)))
    recipe = card.recipe.model_copy(update={"definition": "x", "definition_sha256": "a" * 64})
    own = card.model_copy(update={"label_colours": colours, "recipe": recipe})
    async with running_gateway([own]) as gateway:
        described = await stub(gateway).GetModel(vision_pb2.GetModelRequest(name=card.name))
        listed = await stub(gateway).ListModels(vision_pb2.ListModelsRequest())
    assert tuple(described.model.label_colours) == colours
    assert described.model.definition_sha256 == "a" * 64
    assert not listed.models[0].label_colours


async def test_an_unknown_model_is_not_found_and_similar_models_are_named(running: RunningGateway) -> None:
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


async def test_simultaneous_requests_share_a_batch() -> None:
    async with running_gateway(max_batch=4) as running:
        running.backend.gate = asyncio.Event()
        calls = [
            stub(running).Classify(vision_pb2.ClassifyRequest(image=picture(gray=g))) for g in (0, 100, 200, 0, 100)
        ]
        pending = [asyncio.ensure_future(reply_of(call)) for call in calls]
        await until(lambda: as_condition(running.gateway.pipeline.inflight == 5 and running.backend.batch_sizes))
        await until(lambda: as_condition("mobilevision_queue_length" in running.metrics.page().decode()))
        running.backend.gate.set()
        names = [reply.labels[0].name for reply in await asyncio.gather(*pending)]
        assert names == ["dark", "gray", "bright", "dark", "gray"]
        assert sum(running.backend.batch_sizes) == 5
        assert max(running.backend.batch_sizes) > 1


async def test_the_metrics_page_has_models_requests_and_batches(running: RunningGateway) -> None:
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


async def test_a_task_without_models_is_not_found() -> None:
    async with running_gateway([toy_card(Task.DETECT)]) as running:
        code, reason, _, _ = await failure(stub(running).Segment(vision_pb2.SegmentRequest(image=IMAGE)))
        assert (code, reason) == (grpc.StatusCode.NOT_FOUND, "NO_DEFAULT_MODEL")
