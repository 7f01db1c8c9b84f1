"""Who may call a gateway: the same answers for every client, over a real socket, with keys, certificates and tokens."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
from access_keys import (
    AUDIENCE,
    ISSUER,
    KEY,
    OTHER_KEY,
    SECRET,
    Authority,
    caller,
    jwks,
    token,
    write_callers,
)
from cryptography import x509
from fakes import RunningGateway, running_gateway, toy_card
from gateway_calls import IMAGE, failure, get, stub
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from typer.testing import CliRunner

from handlers.contract.card import Task
from mobilevision.cli.main import app
from mobilevision.client import CallFailed, VisionClient
from service.pb.mobilevision.v1 import vision_pb2, vision_pb2_grpc

CARDS = [toy_card(), toy_card(name="toy_classify_2"), toy_card(Task.DETECT)]
CLASSIFY = vision_pb2.ClassifyRequest(image=IMAGE)
SECONDS = 30.0


def bearer(key: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {key}"),)


@contextlib.asynccontextmanager
async def guarded(folder: Path, *callers: dict[str, Any], **overrides: Any) -> AsyncIterator[RunningGateway]:
    """A gateway that answers callers of its file only."""
    file = write_callers(folder / "callers.json", *(callers or [caller("camera", KEY)]))
    async with running_gateway(CARDS, callers_file=file, **{"anonymous": "deny"} | overrides) as running:
        yield running


def series(running: RunningGateway, name: str) -> dict[tuple[str, ...], float]:
    return {
        tuple(sample.labels.values()): sample.value
        for family in running.metrics.registry.collect()
        for sample in family.samples
        if sample.name == name
    }


async def test_every_method_needs_a_caller(tmp_path: Path) -> None:
    async with guarded(tmp_path) as running:
        calls = {
            "Classify": CLASSIFY,
            "Detect": vision_pb2.DetectRequest(image=IMAGE),
            "Segment": vision_pb2.SegmentRequest(image=IMAGE),
            "ListModels": vision_pb2.ListModelsRequest(),
            "GetModel": vision_pb2.GetModelRequest(name="toy_classify"),
        }
        for method, request in calls.items():
            for metadata in ((), bearer("mv_wrong")):
                code, reason, _, retry = await failure(getattr(stub(running), method)(request, metadata=metadata))
                assert (code, reason, retry) == (grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED", None)
        assert running.backend.batch_sizes == []
        await stub(running).Classify(CLASSIFY, metadata=bearer(KEY))
        await stub(running).Classify(CLASSIFY, metadata=(("x-api-key", KEY),))
        assert series(running, "mobilevision_caller_requests_total") == {
            ("unauthenticated", "UNAUTHENTICATED"): 10.0,
            ("camera", "OK"): 2.0,
        }


async def test_a_malformed_request_without_credentials_is_unauthenticated(tmp_path: Path) -> None:
    async with guarded(tmp_path) as running:
        raw: Any = running.channel.unary_unary("/mobilevision.v1.VisionService/Classify")
        assert (await failure(raw(b"\xff\xff")))[1] == "UNAUTHENTICATED"
        assert (await failure(raw(b"\xff\xff", metadata=bearer(KEY))))[1] == "REQUEST_MALFORMED"


async def test_a_caller_sees_and_uses_its_models_only(tmp_path: Path) -> None:
    callers = [
        caller("camera", KEY, models=["toy_classify_2", "toy_detect", "not_served"]),
        caller("all", OTHER_KEY),
    ]
    async with guarded(tmp_path, *callers) as running:
        mine, everything = bearer(KEY), bearer(OTHER_KEY)

        async def listed(metadata: Any) -> list[str]:
            reply = await stub(running).ListModels(vision_pb2.ListModelsRequest(), metadata=metadata)
            return [model.name for model in reply.models]

        async def refused(request: Any, method: str = "Classify") -> tuple[Any, str, str]:
            with pytest.raises(aio.AioRpcError) as raised:
                await getattr(stub(running), method)(request, metadata=mine)
            return raised.value.code(), str(raised.value.details()), str(raised.value.trailing_metadata())

        assert await listed(mine) == ["toy_classify_2", "toy_detect"]
        assert await listed(everything) == ["toy_classify", "toy_classify_2", "toy_detect"]
        named = vision_pb2.ClassifyRequest(image=IMAGE, model="toy_classify_2")
        assert (await stub(running).Classify(named, metadata=mine)).model.name == "toy_classify_2"
        detect = await stub(running).Detect(vision_pb2.DetectRequest(image=IMAGE), metadata=mine)
        assert detect.model.name == "toy_detect", "a default model that it may use"
        seen = []
        for request in (vision_pb2.ClassifyRequest(image=IMAGE, model="toy_classify"), CLASSIFY):
            seen.append(await refused(request))
        seen.append(await refused(vision_pb2.ClassifyRequest(image=IMAGE, model="does_not_exist")))
        for name in ("toy_classify", "does_not_exist"):
            seen.append(await refused(vision_pb2.GetModelRequest(name=name), "GetModel"))
        assert {code for code, _, _ in seen} == {grpc.StatusCode.PERMISSION_DENIED}
        _, message, _ = seen[1]
        assert message.endswith("it may use: toy_classify_2"), "what to name in place of the default"
        code, message, trailers = await refused(vision_pb2.GetModelRequest(name="not_served"), "GetModel")
        assert code is grpc.StatusCode.NOT_FOUND
        assert "'toy_classify'" not in message + trailers
        assert "toy_classify," not in message + trailers, "no error names a model of others"


async def test_a_callers_rate_ends_in_a_refusal_that_says_when_to_retry(tmp_path: Path) -> None:
    callers = [caller("camera", KEY, requests_per_second=0.001, burst=2), caller("batch", OTHER_KEY)]
    async with guarded(tmp_path, *callers) as running:
        for _ in range(2):
            await stub(running).Classify(CLASSIFY, metadata=bearer(KEY))
        code, reason, info, retry = await failure(stub(running).Classify(CLASSIFY, metadata=bearer(KEY)))
        assert (code, reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "RATE_LIMITED")
        assert info.metadata == {"limit": "requests_per_second"}
        assert 0 < retry.retry_delay.ToTimedelta().total_seconds() <= 1000
        await stub(running).Classify(CLASSIFY, metadata=bearer(OTHER_KEY))


async def test_bytes_in_work_are_those_of_the_request(tmp_path: Path) -> None:
    async with guarded(tmp_path, caller("camera", KEY, inflight_megabytes=1)) as running:
        await stub(running).Classify(CLASSIFY, metadata=bearer(KEY))
        large = vision_pb2.ClassifyRequest(image=IMAGE + bytes(2**20))
        _, reason, info, retry = await failure(stub(running).Classify(large, metadata=bearer(KEY)))
        assert (reason, dict(info.metadata), retry) == ("RATE_LIMITED", {"limit": "inflight_bytes"}, None)


async def test_calls_in_work_are_limited_per_caller(tmp_path: Path) -> None:
    callers = [caller("camera", KEY, inflight_requests=1), caller("batch", OTHER_KEY)]
    async with guarded(tmp_path, *callers) as running:
        running.backend.gate = asyncio.Event()
        first = asyncio.ensure_future(stub(running).Classify(CLASSIFY, metadata=bearer(KEY), timeout=SECONDS))
        async with asyncio.timeout(SECONDS):
            while not running.gateway.pipeline.inflight:
                await asyncio.sleep(0.01)
        assert (await failure(stub(running).Classify(CLASSIFY, metadata=bearer(KEY))))[1] == "RATE_LIMITED"
        other = asyncio.ensure_future(stub(running).Classify(CLASSIFY, metadata=bearer(OTHER_KEY), timeout=SECONDS))
        running.backend.gate.set()
        await asyncio.gather(first, other)


async def test_no_key_or_token_is_in_logs_errors_or_metrics(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    tokens = {"jwt_keys": jwks(SECRET, path=tmp_path / "jwks.json"), "jwt_issuer": ISSUER, "jwt_audience": AUDIENCE}
    good, bad = token(), token(aud="another")
    wrong = "mv_not-a-key-of-this-server"
    async with guarded(tmp_path, caller("camera", KEY, models=["toy_detect"]), **tokens) as running:
        texts = []
        for credentials in (KEY, wrong, good, bad):
            for header in (("authorization", f"Bearer {credentials}"), ("x-api-key", credentials)):
                try:
                    await stub(running).Classify(CLASSIFY, metadata=(header,))
                except aio.AioRpcError as error:
                    texts += [str(error.details()), str(error.trailing_metadata())]
        texts.append((await get(running, "/metrics"))[1])
        texts += [str(vars(record)) for record in caplog.records]
        lines = [vars(line) for line in caplog.records if line.name == "service.access" and "code" in vars(line)]
    assert [line["caller"] for line in lines] == ["camera"] * 2 + [None] * 2 + ["token:alice"] * 2 + [None] * 2
    everything = "\n".join(texts)
    for secret in (KEY, wrong, good, bad):
        assert secret not in everything
        assert secret.rpartition(".")[2] not in everything, "the signature"


@pytest.mark.parametrize(
    ("common_name", "names", "expected"),
    [
        ("robot-1", [x509.DNSName("localhost")], "certificate:robot-1"),
        ("", [x509.UniformResourceIdentifier("spiffe://cluster/robot")], "certificate:spiffe://cluster/robot"),
    ],
)
async def test_a_client_certificate_names_its_caller(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, common_name: str, names: Sequence[Any], expected: str
) -> None:
    caplog.set_level(logging.INFO, "service.access")
    authority = Authority()
    server_key, server_certificate = authority.issue("server", x509.DNSName("localhost"))
    files = {"tls_certificate": server_certificate, "tls_key": server_key, "tls_client_ca": authority.pem}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    overrides = {name: tmp_path / name for name in files}
    options = (("grpc.ssl_target_name_override", "localhost"), ("grpc.use_local_subchannel_pool", 1))

    def channel(client: tuple[bytes, bytes] | None) -> aio.Channel:
        return aio.secure_channel(
            running.grpc, grpc.ssl_channel_credentials(authority.pem, *(client or ())), options=options
        )

    callers = [caller(expected, models=["toy_detect"]), caller("camera", KEY)]
    async with guarded(tmp_path, *callers, **overrides) as running:
        async with channel(authority.issue(common_name, *names)) as mine:
            service: Any = vision_pb2_grpc.VisionServiceStub(mine)
            reply = await service.ListModels(vision_pb2.ListModelsRequest(), timeout=SECONDS)
            assert [model.name for model in reply.models] == ["toy_detect"]
            await service.Classify(CLASSIFY, metadata=bearer(KEY), timeout=SECONDS)
        for client in (None, Authority().issue("robot-1")):
            async with channel(client) as others:
                unknown: Any = vision_pb2_grpc.VisionServiceStub(others)
                with pytest.raises(aio.AioRpcError) as raised:
                    await unknown.ListModels(vision_pb2.ListModelsRequest(), timeout=SECONDS)
                assert raised.value.code() is grpc.StatusCode.UNAVAILABLE, "the handshake fails"
    found = [vars(line)["caller"] for line in caplog.records if line.name == "service.access"]
    assert found == [expected, "camera"]


async def test_the_command_line_checks_the_server_with_its_authority(tmp_path: Path) -> None:
    authority = Authority()
    for name, content in zip(("key", "crt"), authority.issue("server", x509.DNSName("localhost")), strict=True):
        (tmp_path / name).write_bytes(content)
    (tmp_path / "ca.pem").write_bytes(authority.pem)
    (tmp_path / "picture.png").write_bytes(IMAGE)
    async with guarded(tmp_path, tls_certificate=tmp_path / "crt", tls_key=tmp_path / "key") as running:
        server = f"localhost:{running.grpc.rpartition(':')[2]}"
        arguments = ["classify", str(tmp_path / "picture.png"), "--server", server, "--json"]

        async def run(*options: str) -> Any:
            variables = {"MOBILEVISION_API_KEY": KEY}
            return await asyncio.to_thread(CliRunner().invoke, app, [*arguments, *options], env=variables)

        answered = await run("--ca", str(tmp_path / "ca.pem"))
        assert '"toy_classify"' in answered.stdout, answered.output
        assert (await run("--tls")).exit_code == 1, "gRPC does not know this authority"


async def check(running: RunningGateway, metadata: Any = ()) -> grpc.StatusCode:
    """The code of a health check."""
    health: Any = health_pb2_grpc.HealthStub(running.channel)
    return await code_of(health.Check(health_pb2.HealthCheckRequest(), metadata=metadata))


async def reflect(running: RunningGateway, metadata: Any = ()) -> grpc.StatusCode:
    """The code of a question for the services."""
    reflection: Any = reflection_pb2_grpc.ServerReflectionStub(running.channel)
    question = reflection_pb2.ServerReflectionRequest(list_services="")
    call = reflection.ServerReflectionInfo(iter([question]), metadata=metadata)

    async def answers() -> None:
        async for reply in call:
            assert reply.list_services_response.service

    return await code_of(answers())


async def code_of(call: Any) -> grpc.StatusCode:
    try:
        await call
    except aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


OK, REFUSED = grpc.StatusCode.OK, grpc.StatusCode.UNAUTHENTICATED


async def test_probes_need_no_caller_and_reflection_does(tmp_path: Path) -> None:
    async with guarded(tmp_path) as running:
        assert (await check(running), await reflect(running), await reflect(running, bearer(KEY))) == (OK, REFUSED, OK)
    async with running_gateway(CARDS) as running:
        assert (await check(running), await reflect(running)) == (OK, OK)


async def test_reflection_can_be_open(tmp_path: Path) -> None:
    async with guarded(tmp_path, reflection_access="open") as running:
        assert (await reflect(running), await reflect(running, bearer(KEY))) == (OK, OK)


async def test_reflection_can_be_off(tmp_path: Path) -> None:
    # grpcio's client says INTERNAL where the server refuses before the client has sent its first message.
    refused = {grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.INTERNAL}
    async with guarded(tmp_path, reflection_access="off") as running:
        assert {await reflect(running), await reflect(running, bearer(KEY))} <= refused


async def test_health_for_callers_only_keeps_clients_that_balance_by_health(tmp_path: Path) -> None:
    async with guarded(tmp_path, health_access="callers") as running:
        assert (await check(running), await check(running, bearer(KEY))) == (REFUSED, OK)
        health: Any = health_pb2_grpc.HealthStub(running.channel)
        watch = health.Watch(health_pb2.HealthCheckRequest(), metadata=bearer(KEY))
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        watch.cancel()
        with VisionClient(running.grpc, api_key=KEY, wait_for_ready=True) as client:
            answer = await asyncio.to_thread(client.classify, IMAGE)
        assert answer.reply.model.name == "toy_classify"


async def test_the_client_sends_its_key(tmp_path: Path) -> None:
    async with guarded(tmp_path) as running:
        with VisionClient(running.grpc, api_key=KEY) as client:
            assert (await asyncio.to_thread(client.classify, IMAGE)).reply.model.name == "toy_classify"
        with VisionClient(running.grpc) as client:
            with pytest.raises(CallFailed) as raised:
                await asyncio.to_thread(client.classify, IMAGE)
            assert raised.value.reason == "UNAUTHENTICATED"
