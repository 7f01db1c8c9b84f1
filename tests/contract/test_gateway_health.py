"""A whole gateway reports its health, and stops without losing a call."""

import asyncio
import json
import threading

import grpc
import pytest
from fake_engine import FakeVersions
from fakes import RunningGateway, running_gateway
from gateway_calls import IMAGE, as_condition, failure, get, reply_of, stub, until
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from service.app.gateway import REFUSAL_SECONDS
from service.frontends.grpc.health import ALL_MODELS
from service.pb.mobilevision.v1 import vision_pb2
from service.serving.health import UNREADABLE, Health


async def test_health_is_reported_per_model_and_recovers(running: RunningGateway) -> None:
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


async def test_a_stuck_batch_makes_its_model_not_ready_and_leaves_the_server_ready_for_the_others() -> None:
    async with running_gateway(batch_timeout_seconds=1.0) as running:
        running.backend.gate = asyncio.Event()
        call = asyncio.ensure_future(
            asyncio.gather(
                reply_of(stub(running).Classify(vision_pb2.ClassifyRequest(image=IMAGE))), return_exceptions=True
            )
        )

        async def told() -> bool:
            status, body = await get(running, "/readyz")
            return "stuck" in json.loads(body)["not_ready"].get("toy_classify", "") and status == 200

        await until(told)
        health = health_pb2_grpc.HealthStub(running.channel)
        names = ("", "toy_classify", "toy_detect", ALL_MODELS)
        states = [(await health.Check(health_pb2.HealthCheckRequest(service=name))).status for name in names]
        serving, not_serving = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
        assert states == [serving, not_serving, serving, not_serving]
        running.backend.gate.set()
        await call


async def test_stopping_reports_not_serving_first_and_loses_no_call() -> None:
    async with running_gateway(drain_delay_seconds=0.3) as running:
        running.backend.gate = asyncio.Event()
        inflight = asyncio.ensure_future(reply_of(stub(running).Classify(vision_pb2.ClassifyRequest(image=IMAGE))))
        await until(lambda: as_condition(running.backend.batch_sizes))
        stopping = asyncio.ensure_future(running.gateway.stop())
        health = health_pb2_grpc.HealthStub(running.channel)

        async def not_serving() -> bool:
            names = ("", "mobilevision.v1.VisionService", "toy_classify")
            replies = [await health.Check(health_pb2.HealthCheckRequest(service=name)) for name in names]
            return {reply.status for reply in replies} == {health_pb2.HealthCheckResponse.NOT_SERVING}

        await until(not_serving)
        assert (await get(running, "/readyz"))[0] == 503
        late = asyncio.ensure_future(reply_of(stub(running).Classify(vision_pb2.ClassifyRequest(image=IMAGE))))
        await asyncio.sleep(0)
        await until(lambda: as_condition(running.gateway.pipeline.inflight == 2))
        running.backend.gate.set()
        assert (await inflight).labels[0].name == "bright"
        assert (await late).labels[0].name == "bright"
        await stopping


async def test_a_caller_whose_reply_ended_the_drain_is_refused_afterwards() -> None:
    async with running_gateway(max_batch=1) as running:
        running.backend.gate = asyncio.Event()
        request = vision_pb2.ClassifyRequest(image=IMAGE)
        last = asyncio.ensure_future(reply_of(stub(running).Classify(request)))
        await until(lambda: as_condition(running.backend.batch_sizes))
        stopping = asyncio.ensure_future(running.gateway.stop())
        await asyncio.sleep(1.2 * REFUSAL_SECONDS)  # the last answer comes later than callers are refused for
        running.backend.gate.set()
        await last
        code, reason, _, _ = await failure(stub(running).Classify(request))
        assert (code, reason) == (grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN")
        await stopping


async def test_an_unexpected_exception_makes_models_not_ready_and_ends_no_background_task(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with running_gateway() as running:
        assert (await get(running, "/readyz"))[0] == 200

        async def broken(*_: object) -> None:
            raise RuntimeError("this is a bug")

        with monkeypatch.context() as patched:
            patched.setattr(FakeVersions, "model_status", broken)
            await until(lambda: as_condition(failures(running)))

            async def not_ready() -> bool:
                status, body = await get(running, "/readyz")
                return status == 503 and json.loads(body)["not_ready"]["toy_classify"] == UNREADABLE

            await until(not_ready)

        async def ready() -> bool:
            return (await get(running, "/readyz"))[0] == 200

        await until(ready)
        with monkeypatch.context() as patched:
            patched.setattr(Health, "check", broken)
            count = failures(running)
            await until(lambda: as_condition(failures(running) > count))
        running.backend.ready_workers = 0

        async def seen() -> bool:
            return (await get(running, "/readyz"))[0] == 503

        await until(seen)


async def test_a_decode_that_does_not_end_fails_the_probes_and_not_the_shutdown(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    entered, gate = threading.Event(), threading.Event()

    def stuck(*_: object, **__: object) -> None:
        entered.set()
        gate.wait()

    monkeypatch.setattr("service.preprocess.pool.decode", stuck)
    monkeypatch.setattr("service.app.serving_stack.DECODE_CLOSE_SECONDS", 0.0)
    try:
        async with running_gateway(max_decode_seconds=0.05, drain_timeout_seconds=0.0) as running:
            assert (await get(running, "/livez"))[0] == 200
            call = asyncio.ensure_future(reply_of(stub(running).Classify(vision_pb2.ClassifyRequest(image=IMAGE))))
            assert await asyncio.to_thread(entered.wait, 60)
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)

            async def failing() -> bool:
                answers = [await get(running, path) for path in ("/livez", "/readyz")]
                return all(status == 503 and "decoding is stuck" in body for status, body in answers)

            await until(failing)
            health = health_pb2_grpc.HealthStub(running.channel)

            async def not_serving() -> bool:
                reply = await health.Check(health_pb2.HealthCheckRequest(service=""))
                overruns = running.metrics.registry.get_sample_value("mobilevision_decode_overruns_total")
                return reply.status == health_pb2.HealthCheckResponse.NOT_SERVING and overruns == 1.0

            await until(not_serving)
        assert "a picture is still being decoded" in caplog.text  # the gateway stopped nevertheless
    finally:
        gate.set()


def failures(running: RunningGateway) -> float:
    value = running.metrics.registry.get_sample_value("mobilevision_background_failures_total", {"task": "health"})
    return value or 0.0
