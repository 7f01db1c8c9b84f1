"""What every front owes its callers and the operator. A fake front without a protocol and the gRPC front both pass."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import grpc
import pytest
from access_keys import KEY
from google.rpc import error_details_pb2, status_pb2
from grpc import aio

from service.access import api_keys
from service.access.callers import Caller, CallerLimits
from service.access.callers_file import Callers
from service.access.control import AccessControl
from service.core import errors
from service.core.call_scope import ANONYMOUS, CallScope
from service.core.types import RequestRecord
from service.frontends.call import CallHandler, Failed, IncomingCall
from service.frontends.grpc.method_handlers import SERVICE, MethodHandlers, vision_service_handler
from service.observability.metrics import Metrics
from service.pb.mobilevision.v1 import vision_pb2, vision_pb2_grpc

CAMERA = Caller("camera", CallerLimits(inflight_requests=1), models=frozenset({"m"}), listed=True)
CALLERS = Callers([(CAMERA, (api_keys.digest(KEY),))])
METHOD = "Classify"
DEFAULT_DEADLINE_SECONDS, SECONDS = 7.0, 10.0  # the second is the limit of every wait

Work = Callable[[CallScope], Awaitable[str]]
Headers = Sequence[tuple[str, str]]


@dataclass
class Seen:
    """What a caller gets: a reply (code OK) or an error, and the metadata of the response."""

    code: str
    metadata: Mapping[str, str]
    reply: str = ""
    message: str = ""
    reason: str = ""
    error_metadata: Mapping[str, str] = field(default_factory=dict)
    retry_after_seconds: float | None = None


class Front(Protocol):
    """A front whose one method does `work`."""

    async def call(self, work: Work, headers: Headers = (), *, timeout_seconds: float | None = None) -> Seen: ...


class FakeFront:
    """A front without a protocol: callers are coroutines of the same event loop."""

    def __init__(self, calls: CallHandler) -> None:
        self._calls = calls

    async def call(self, work: Work, headers: Headers = (), *, timeout_seconds: float | None = None) -> Seen:
        clock = asyncio.get_running_loop().time
        deadline_at = None if timeout_seconds is None else clock() + timeout_seconds
        call = IncomingCall(
            service=SERVICE,
            method=METHOD,
            metadata=headers,
            remaining_seconds=lambda: None if deadline_at is None else deadline_at - clock(),
        )
        try:
            async with asyncio.timeout_at(deadline_at):
                outcome = await self._calls.handle(call, work)
        except TimeoutError:
            return Seen("DEADLINE_EXCEEDED", {})
        metadata = dict(outcome.metadata)
        if not isinstance(outcome, Failed):
            return Seen("OK", metadata, reply=outcome.reply)
        error = outcome.error
        return Seen(
            error.code.name,
            metadata,
            message=error.message,
            reason=error.reason,
            error_metadata=error.metadata,
            retry_after_seconds=error.retry_after_seconds,
        )


class GrpcFront:
    """The real gRPC front, with a client."""

    def __init__(self, calls: CallHandler) -> None:
        self._work: Work
        self._server = aio.server()
        handler = MethodHandlers(calls).unary(METHOD, self._answer)
        self._server.add_generic_rpc_handlers((vision_service_handler({METHOD: handler}),))
        port = self._server.add_insecure_port("127.0.0.1:0")
        self._channel = aio.insecure_channel(f"127.0.0.1:{port}")

    async def start(self) -> None:
        await self._server.start()

    async def stop(self) -> None:
        await self._channel.close()
        await self._server.stop(None)

    async def call(self, work: Work, headers: Headers = (), *, timeout_seconds: float | None = None) -> Seen:
        self._work = work
        stub: Any = vision_pb2_grpc.VisionServiceStub(self._channel)  # type: ignore[no-untyped-call]
        call = stub.Classify(vision_pb2.ClassifyRequest(), metadata=tuple(headers), timeout=timeout_seconds)
        try:
            reply = await call
        except aio.AioRpcError as error:
            return _seen(error)
        return Seen("OK", _text(await call.trailing_metadata()), reply=reply.model.name)

    async def _answer(self, request: vision_pb2.ClassifyRequest, scope: CallScope) -> vision_pb2.ClassifyResponse:
        return vision_pb2.ClassifyResponse(model=vision_pb2.ModelUsed(name=await self._work(scope)))


def _text(metadata: Any) -> dict[str, str]:
    return {key: value for key, value in metadata if isinstance(value, str)}


def _seen(error: aio.AioRpcError) -> Seen:
    seen = Seen(error.code().name, _text(error.trailing_metadata()), message=error.details() or "")
    status = status_pb2.Status.FromString(dict(error.trailing_metadata()).get("grpc-status-details-bin", b""))
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    for detail in status.details:
        if detail.Unpack(info):
            seen.reason, seen.error_metadata = info.reason, dict(info.metadata)
        elif detail.Unpack(retry):
            seen.retry_after_seconds = retry.retry_delay.ToTimedelta().total_seconds()
    return seen


class Recorded:
    """Tracing and protocol metrics that keep what is reported."""

    def __init__(self) -> None:
        self.began: list[tuple[str, str]] = []
        self.traces: list[errors.ServiceError | None] = []
        self.rpcs: list[str] = []

    def begin(self, record: RequestRecord, service: str, metadata: Any, *, system: str) -> "Recorded":
        self.began.append((service, system))
        return self

    def end(self, record: RequestRecord, error: errors.ServiceError | None) -> None:
        self.traces.append(error)

    def close(self) -> None:
        pass

    def started(self, service: str, method: str) -> None:
        self.rpcs.append("started")

    def ended(self, service: str, method: str, *, code: str, duration_seconds: float) -> None:
        self.rpcs.append(code)


@dataclass
class World:
    front: Front
    metrics: Metrics
    recorded: Recorded
    log: pytest.LogCaptureFixture

    def requests(self) -> dict[str, float]:
        """Finished requests by code."""
        return {
            sample.labels["code"]: sample.value
            for family in self.metrics.registry.collect()
            for sample in family.samples
            if sample.name == "mobilevision_requests_total"
        }

    async def reported(self) -> None:
        """Wait until a call is reported: a front may still work on a call whose caller is gone."""
        async with asyncio.timeout(SECONDS):
            while not self.requests():
                await asyncio.sleep(0.01)

    def access_lines(self) -> list[logging.LogRecord]:
        return [line for line in self.log.records if line.name == "service.access" and "code" in vars(line)]


@pytest.fixture(params=["fake", "grpc"])
async def world(request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture) -> AsyncIterator[World]:
    caplog.set_level(logging.INFO, "service.access")
    metrics, recorded = Metrics(), Recorded()
    calls = CallHandler(
        system="test",
        metrics=metrics,
        protocol_metrics=recorded,
        tracing=recorded,
        default_deadline_seconds=DEFAULT_DEADLINE_SECONDS,
        access=AccessControl(
            callers=lambda: CALLERS, has_keys=True, allows_anonymous=True, clock=asyncio.get_running_loop().time
        ),
    )
    if request.param == "fake":
        yield World(FakeFront(calls), metrics, recorded, caplog)
        return
    front = GrpcFront(calls)
    await front.start()
    yield World(front, metrics, recorded, caplog)
    await front.stop()


def leaves(of: type[errors.ServiceError] = errors.ServiceError) -> Iterator[type[errors.ServiceError]]:
    children = of.__subclasses__()
    if not children:
        yield of
    for child in children:
        yield from leaves(child)


async def answer(scope: CallScope) -> str:
    scope.record.batch_size, scope.record.dtype = 4, "bfloat16"
    scope.record.stage_seconds |= {"decode": 0.001, "inference": 0.25}
    return "reply"


async def fail(scope: CallScope) -> str:
    raise ZeroDivisionError("a secret of the server")


async def test_an_answer_carries_request_id_times_and_batch_size(world: World) -> None:
    seen = await world.front.call(answer, [("x-request-id", "abc-1")])
    assert (seen.code, seen.reply) == ("OK", "reply")
    assert seen.metadata["x-request-id"] == "abc-1"
    assert seen.metadata["server-timing"] == "decode;dur=1.000, inference;dur=250.000"
    told = {key: value for key, value in seen.metadata.items() if key.startswith("mobilevision-")}
    assert told == {"mobilevision-batch-size": "4", "mobilevision-dtype": "bfloat16"}  # the worker did not say the rest


@pytest.mark.parametrize("sent", [[], [("x-request-id", "x" * 129)], [("x-request-id", "a b")]])
async def test_a_missing_or_unsafe_request_id_is_replaced(world: World, sent: Headers) -> None:
    scopes: list[str] = []

    async def work(scope: CallScope) -> str:
        scopes.append(scope.request_id)
        return ""

    seen = await world.front.call(work, sent)
    assert scopes == [seen.metadata["x-request-id"]]
    assert len(scopes[0]) == 32
    assert "server-timing" not in seen.metadata


@pytest.mark.parametrize(("timeout_seconds", "expected"), [(3.0, 3.0), (None, DEFAULT_DEADLINE_SECONDS)])
async def test_the_deadline_is_the_callers_or_the_default(
    world: World, timeout_seconds: float | None, expected: float
) -> None:
    found: list[tuple[float, str]] = []

    async def work(scope: CallScope) -> str:
        found.append((scope.deadline_at - asyncio.get_running_loop().time(), scope.record.caller))
        return ""

    await world.front.call(work, timeout_seconds=timeout_seconds)
    ((remaining_seconds, caller),) = found
    assert expected - 1 < remaining_seconds <= expected + 0.1  # the clocks of gRPC and of the loop differ a little
    assert caller == ANONYMOUS


@pytest.mark.parametrize("header", [("authorization", f"Bearer {KEY}"), ("x-api-key", KEY)])
async def test_a_key_names_the_caller_of_the_scope_and_of_the_log_line(world: World, header: tuple[str, str]) -> None:
    scopes: list[CallScope] = []

    async def work(scope: CallScope) -> str:
        scopes.append(scope)
        return ""

    assert (await world.front.call(work, [header])).code == "OK"
    assert [(scope.flow, scope.models) for scope in scopes] == [("caller camera", {"m"})]
    assert [vars(line)["caller"] for line in world.access_lines()] == ["camera"]


async def test_wrong_credentials_are_refused_before_any_work(world: World) -> None:
    seen = await world.front.call(fail, [("x-api-key", "mv_wrong")])
    assert (seen.code, seen.reason) == ("UNAUTHENTICATED", "UNAUTHENTICATED")
    assert world.requests() == {"UNAUTHENTICATED": 1.0}
    assert [vars(line)["caller"] for line in world.access_lines()] == [None]


async def test_a_call_in_work_counts_until_it_ends_or_fails(world: World) -> None:
    header, at_work, release = [("x-api-key", KEY)], asyncio.Event(), asyncio.Event()

    async def work(scope: CallScope) -> str:
        at_work.set()
        await release.wait()
        return "reply"

    first = asyncio.create_task(world.front.call(work, header, timeout_seconds=SECONDS))
    await asyncio.wait_for(at_work.wait(), SECONDS)
    refused = await world.front.call(work, header)
    assert (refused.reason, refused.retry_after_seconds) == ("RATE_LIMITED", 1.0)
    release.set()
    assert (await first).code == "OK"
    assert (await world.front.call(fail, header)).reason == "BUG"
    assert (await world.front.call(work, header)).code == "OK"


@pytest.mark.parametrize("leaf", list(leaves()), ids=lambda leaf: leaf.__name__)
async def test_every_error_reaches_the_caller_with_reason_and_metadata(
    world: World, leaf: type[errors.ServiceError]
) -> None:
    async def work(scope: CallScope) -> str:
        raise leaf("what to do", metadata={"key": "value"}, retry_after_seconds=1.5)

    seen = await world.front.call(work, [("x-request-id", "abc-1")])
    assert seen == Seen(
        leaf.code.name,
        {"x-request-id": "abc-1"},
        message="what to do",
        reason=leaf.reason,
        error_metadata={"key": "value"},
        retry_after_seconds=1.5,
    )


async def test_an_unknown_exception_is_a_bug_and_its_text_stays_in_the_log(world: World) -> None:
    seen = await world.front.call(fail, [("x-request-id", "abc-1")])
    assert (seen.code, seen.reason) == ("INTERNAL", "BUG")
    assert "secret" not in seen.message
    assert "abc-1" in seen.message
    assert seen.metadata == {"x-request-id": "abc-1"}
    [traceback] = [line for line in world.log.records if line.exc_info and line.name == "service.access"]
    assert "a secret of the server" in str(traceback.exc_info)


async def test_the_text_of_a_workers_exception_stays_in_the_log(world: World) -> None:
    async def work(scope: CallScope) -> str:
        raise errors.BackendFault("m: its worker failed", detail="KeyError in /home/secret.py")

    seen = await world.front.call(work)
    assert (seen.reason, seen.message) == ("BACKEND_FAULT", "m: its worker failed")
    [line] = world.access_lines()
    assert vars(line)["error"] == "m: its worker failed: KeyError in /home/secret.py"


async def test_too_little_memory_is_no_fault_of_the_caller_and_can_be_retried(world: World) -> None:
    async def work(scope: CallScope) -> str:
        raise MemoryError

    seen = await world.front.call(work)
    assert (seen.code, seen.reason) == ("RESOURCE_EXHAUSTED", "TOO_MANY_REQUESTS")
    assert seen.retry_after_seconds == 1.0


@pytest.mark.parametrize(
    ("work", "code", "reason", "level"), [(answer, "OK", None, "INFO"), (fail, "INTERNAL", "BUG", "ERROR")]
)
async def test_a_call_is_reported_once_everywhere(
    world: World, work: Work, code: str, reason: str | None, level: str
) -> None:
    await world.front.call(work)
    assert world.requests() == {code: 1.0}
    assert world.recorded.rpcs == ["started", code]
    assert world.recorded.began == [(SERVICE, "test")]
    assert [error and error.reason for error in world.recorded.traces] == [reason]
    [line] = world.access_lines()
    assert (line.levelname, vars(line)["code"], vars(line)["reason"]) == (level, code, reason)


async def test_a_caller_that_hangs_up_is_reported_as_cancelled(world: World) -> None:
    at_work, ended = asyncio.Event(), asyncio.Event()

    async def work(scope: CallScope) -> str:
        at_work.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return ""

    call = asyncio.create_task(world.front.call(work, timeout_seconds=SECONDS))
    await asyncio.wait_for(at_work.wait(), SECONDS)
    call.cancel()
    await asyncio.wait({call})
    await asyncio.wait_for(ended.wait(), SECONDS)
    await world.reported()
    assert world.requests() == {"CANCELLED": 1.0}
    assert world.recorded.rpcs == ["started", "CANCELLED"]
    assert [error and error.reason for error in world.recorded.traces] == ["CANCELLED"]


async def test_a_deadline_that_passes_is_reported_as_exceeded(world: World) -> None:
    async def work(scope: CallScope) -> str:
        await asyncio.Event().wait()
        return ""

    seen = await world.front.call(work, timeout_seconds=0.1)
    assert seen.code == grpc.StatusCode.DEADLINE_EXCEEDED.name
    await world.reported()
    assert world.requests() == {"DEADLINE_EXCEEDED": 1.0}
    assert world.recorded.rpcs == ["started", "DEADLINE_EXCEEDED"]
    assert [error and error.reason for error in world.recorded.traces] == ["DEADLINE_EXCEEDED"]
