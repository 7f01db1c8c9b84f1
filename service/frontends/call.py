"""What every call passes, whatever its protocol: its caller and a scope going in, one report and one error coming out.

In: an `IncomingCall` of a front, and the work to do for it. Out: `Answered` or `Failed`, with the metadata that belongs
into the response. `AccessControl` says who calls and admits the call before any work. Each call is reported once:
metrics, one log line, its trace. Of a call with several pictures, each picture is admitted and reported as a call of
its own, and the call itself is reported to the protocol, the log and the trace alone. Never sees a protocol's types; a
front translates both ends (`service.frontends.grpc.method_handlers` for gRPC).
"""

import asyncio
import logging
import math
import re
import uuid
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from service.access.callers import Caller
from service.access.control import AccessControl
from service.core.call_scope import ANONYMOUS, CallScope
from service.core.errors import Bug, Cancelled, DeadlineExceeded, ServiceError, TooManyRequests
from service.core.types import RequestRecord
from service.frontends.access_log import AccessLog
from service.observability.caller_metrics import UNAUTHENTICATED
from service.observability.metrics import Metrics
from service.observability.request_metrics import STAGES
from service.observability.tracing import Trace, Tracing

REQUEST_ID_KEY = "x-request-id"
TIMING_KEY = "server-timing"  # as in the W3C Server Timing header: `decode;dur=1.250, queue;dur=0.300`, milliseconds
BATCH_SIZE_KEY = "mobilevision-batch-size"
# What computed the network, in which number type, and where; absent where the worker did not say.
ENGINE_KEY, DTYPE_KEY, DEVICE_KEY = "mobilevision-engine", "mobilevision-dtype", "mobilevision-device"
OK = "OK"
NO_MEMORY_RETRY_SECONDS = 1.0  # what callers are told to wait when an allocation failed

Reply = TypeVar("Reply")

# A request id appears in logs. Printable ASCII without blanks cannot break a log line.
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
_log = logging.getLogger("service.access")


@dataclass(frozen=True, slots=True)
class IncomingCall:
    """A call as a front received it.

    `service` is the full name of the proto service, `method` the name of the method. `metadata` has the headers, with
    lower-case names; bytes are for values that are not text. `remaining_seconds` returns the time until the caller's
    deadline, negative once it has passed, None where the caller set none. `certificate_names` are those of the client
    certificate that the front verified, best first. `request_bytes` is the size of the request as it was sent. `host`
    tells the hosts of callers apart, such as an IP address. `arrives` waits until the request has arrived and returns
    its size; it raises a `ServiceError` if the request does not arrive. None: it has arrived, and `request_bytes` is
    its size.
    """

    service: str
    method: str
    metadata: Collection[tuple[str, str | bytes]]
    remaining_seconds: Callable[[], float | None]
    certificate_names: tuple[str, ...] = ()
    request_bytes: int = 0
    host: str = ""
    arrives: Callable[[], Awaitable[int]] | None = None


@dataclass(frozen=True, slots=True)
class Answered(Generic[Reply]):
    """A call that was answered. `metadata` belongs into the response, as headers or trailers."""

    reply: Reply
    metadata: tuple[tuple[str, str], ...]
    record: RequestRecord


@dataclass(frozen=True, slots=True)
class Failed:
    """A call that failed. `metadata` belongs into the response, as headers or trailers."""

    error: ServiceError
    request_id: str
    metadata: tuple[tuple[str, str], ...]


class ProtocolMetrics(Protocol):
    """Series that servers of one protocol report by convention, such as `GrpcMetrics`."""

    def started(self, service: str, method: str) -> None:
        """Count a call that arrived."""
        ...

    def ended(self, service: str, method: str, *, code: str, duration_seconds: float) -> None:
        """Record a call that ended. `code` is OK or the name of an `ErrorCode`."""
        ...


class Pictures:
    """The pictures of one call: each is handled like a call of its own, under the id and the deadline of the call.

    `scope` is that of the call.
    """

    def __init__(self, handler: "CallHandler", call: IncomingCall, scope: CallScope, caller: Caller) -> None:
        self._handler = handler
        self._call = call
        self._caller = caller
        self.scope = scope

    async def handle(
        self,
        number: int,
        method: str,
        work: Callable[[CallScope], Awaitable[Reply]],
        *,
        request_bytes: int,
        deadline_at: float = math.inf,
    ) -> Answered[Reply] | Failed:
        """Run `work` for the picture at place `number`, which is a request of `method`. See `CallHandler.handle`.

        `deadline_at` is its own deadline. That of the call holds too.
        """
        record = RequestRecord(request_id=f"{self.scope.request_id}/{number}", method=method)
        record.caller = self.scope.record.caller
        begun = self._handler.begin(self._call, record)
        begun.request_bytes, begun.is_call, begun.caller = request_bytes, False, self._caller
        return await self._handler.run(begun, self._caller, min(self.scope.deadline_at, deadline_at), work)


@dataclass(slots=True)
class _Begun:
    """A call, or one picture of a call: then not `is_call`. A call of several pictures is not `is_request`."""

    call: IncomingCall
    record: RequestRecord
    trace: Trace
    started_at: float
    request_bytes: int
    is_call: bool = True
    is_request: bool = True
    caller: Caller | None = None


class CallHandler:
    """Runs the calls of one front.

    `system` names the protocol in traces (OpenTelemetry's `rpc.system`). `default_deadline_seconds` is for calls
    without a deadline; longer deadlines than `max_deadline_seconds` are shortened to it. `access` says who may call.
    Construct it inside a running event loop.
    """

    def __init__(
        self,
        *,
        system: str,
        metrics: Metrics,
        protocol_metrics: ProtocolMetrics,
        tracing: Tracing,
        default_deadline_seconds: float,
        access: AccessControl,
        max_deadline_seconds: float = math.inf,
    ) -> None:
        self._system = system
        self._metrics = metrics
        self._protocol_metrics = protocol_metrics
        self._tracing = tracing
        self._default_deadline_seconds = default_deadline_seconds
        self.access = access
        self._max_deadline_seconds = max_deadline_seconds
        self._clock = asyncio.get_running_loop().time
        self._log = AccessLog(self._clock)

    def refused_at_once(self, call: IncomingCall, first_look: Callable[[CallScope], None]) -> Failed | None:
        """Return the failure of a call that is refused before its request arrives. None: nothing was reported, and the
        call is for `handle`.

        `first_look` raises a `ServiceError` if the call is refused anyway.
        """
        record = RequestRecord(request_id=_request_id(call), method=call.method)
        caller = None
        try:
            caller = self._identified(call, record)
            first_look(_scope(call, record, caller, self._deadline_at(call)))
        except Exception as error:  # noqa: BLE001 - reported as a bug, logged with its traceback
            begun = self._arrived(call, record)
            begun.caller = caller
            return self._failed(begun, error)
        return None

    async def handle(
        self, call: IncomingCall, work: Callable[[CallScope], Awaitable[Reply]]
    ) -> Answered[Reply] | Failed:
        """Run `work` for a call. Every exception becomes a `ServiceError` in `Failed`.

        Raises `asyncio.CancelledError` where the front cancels the call because nobody waits for the reply any more. It
        is reported as `DeadlineExceeded` if the caller's deadline has passed, else as `Cancelled`.
        """
        begun = self._arrived(call, RequestRecord(request_id=_request_id(call), method=call.method))
        try:
            caller = begun.caller = self._identified(call, begun.record)
            if call.arrives is not None:
                begun.request_bytes = await call.arrives()
                begun.started_at = self._clock()
        except asyncio.CancelledError:
            self._report(begun, _cancellation(call))
            raise
        except Exception as error:  # noqa: BLE001 - reported as a bug, logged with its traceback
            return self._failed(begun, error)
        return await self.run(begun, caller, self._deadline_at(call), work)

    async def handle_pictures(
        self,
        call: IncomingCall,
        work: Callable[[Pictures], Awaitable[Reply]],
        *,
        max_seconds: float | None = None,
    ) -> Answered[Reply] | Failed:
        """Run `work` for a call of several pictures, which hands each picture to `Pictures.handle`. As `handle`.

        `max_seconds` takes the place of the longest and of the default deadline.
        """
        begun = self._arrived(call, RequestRecord(request_id=_request_id(call), method=call.method))
        try:
            caller = begun.caller = self._identified(call, begun.record)
            if call.arrives is not None:
                await call.arrives()
                begun.started_at = self._clock()
            begun.is_request = False
            scope = _scope(call, begun.record, caller, self._deadline_at(call, max_seconds))
            reply = await work(Pictures(self, call, scope, caller))
        except asyncio.CancelledError:
            self._report(begun, _cancellation(call))
            raise
        except Exception as error:  # noqa: BLE001 - reported as a bug, logged with its traceback
            begun.is_request = True  # the pictures are not reported, or not all of them
            return self._failed(begun, error)
        self._report(begun, None)
        return Answered(reply, _metadata(begun.record), begun.record)

    def begin(self, call: IncomingCall, record: RequestRecord) -> _Begun:
        """Begin the trace and the time of a call or of a picture of one. For `Pictures` and this class alone."""
        trace = self._tracing.begin(record, call.service, call.metadata, system=self._system)
        return _Begun(call, record, trace, self._clock(), call.request_bytes)

    async def run(
        self, begun: _Begun, caller: Caller, deadline_at: float, work: Callable[[CallScope], Awaitable[Reply]]
    ) -> Answered[Reply] | Failed:
        """Run `work` for a call that has arrived, or a picture of one. For `Pictures` and this class alone."""
        try:
            with self.access.admitted(caller, begun.request_bytes):
                reply = await work(_scope(begun.call, begun.record, caller, deadline_at))
        except asyncio.CancelledError:
            self._report(begun, _cancellation(begun.call))
            raise
        except Exception as error:  # noqa: BLE001 - reported as a bug, logged with its traceback
            return self._failed(begun, error)
        self._report(begun, None)
        return Answered(reply, _metadata(begun.record), begun.record)

    def _arrived(self, call: IncomingCall, record: RequestRecord) -> _Begun:
        begun = self.begin(call, record)
        self._protocol_metrics.started(call.service, call.method)
        return begun

    def _identified(self, call: IncomingCall, record: RequestRecord) -> Caller:
        caller = self.access.identify(call.metadata, call.certificate_names)
        record.caller = ANONYMOUS if caller.anonymous else caller.name
        return caller

    def _deadline_at(self, call: IncomingCall, max_seconds: float | None = None) -> float:
        remaining_seconds = call.remaining_seconds()
        if remaining_seconds is None:
            remaining_seconds = self._default_deadline_seconds if max_seconds is None else max_seconds
        most_seconds = self._max_deadline_seconds if max_seconds is None else max_seconds
        return self._clock() + min(remaining_seconds, most_seconds)

    def _failed(self, begun: _Begun, error: Exception) -> Failed:
        record = begun.record
        known = _known(error, record)
        self._report(begun, known)
        return Failed(known, record.request_id, ((REQUEST_ID_KEY, record.request_id),))

    def _report(self, begun: _Begun, error: ServiceError | None) -> None:
        call, record, caller = begun.call, begun.record, begun.caller
        code = error.code.name if error else OK
        duration_seconds = self._clock() - begun.started_at
        if begun.is_call:
            self._protocol_metrics.ended(call.service, call.method, code=code, duration_seconds=duration_seconds)
        if begun.is_request:
            reason = error.reason if error else None
            self._metrics.observe_request(record, code=code, reason=reason, duration_seconds=duration_seconds)
            self._metrics.callers.observe(
                UNAUTHENTICATED if caller is None else caller.name, listed=caller is None or caller.listed, code=code
            )
        begun.trace.end(record, error)
        self._log.ended(record, error, duration_seconds)


def _scope(call: IncomingCall, record: RequestRecord, caller: Caller, deadline_at: float) -> CallScope:
    flow = f"host {call.host}" if caller.anonymous else f"caller {caller.name}"
    return CallScope(record=record, deadline_at=deadline_at, flow=flow, models=caller.models)


def _request_id(call: IncomingCall) -> str:
    """Return the id that the caller sent, or a new one (32 hexadecimal digits) where it sent none or an unsafe one."""
    for key, value in call.metadata:
        text = value if isinstance(value, str) else value.decode("ascii", "replace")
        if key == REQUEST_ID_KEY and _REQUEST_ID.fullmatch(text):
            return text
    return uuid.uuid4().hex


def _cancellation(call: IncomingCall) -> ServiceError:
    remaining_seconds = call.remaining_seconds()
    if remaining_seconds is not None and remaining_seconds <= 0:
        return DeadlineExceeded("the deadline passed before the reply was ready")
    return Cancelled("the caller cancelled the call or closed the connection")


def _known(error: Exception, record: RequestRecord) -> ServiceError:
    """Return the error that the caller gets for an exception of its call."""
    if isinstance(error, ServiceError):
        return error
    if isinstance(error, MemoryError):
        return TooManyRequests(
            "the server has no memory for this request now; retry later", retry_after_seconds=NO_MEMORY_RETRY_SECONDS
        )
    return _bug(record)


def _bug(record: RequestRecord) -> ServiceError:
    """Log the exception being handled, and return the error that the caller gets in its place."""
    _log.exception("this is a bug", extra={"request_id": record.request_id})
    return Bug(f"this is a bug in the server; its log has the traceback under request id {record.request_id}")


def _metadata(record: RequestRecord) -> tuple[tuple[str, str], ...]:
    metadata = [(REQUEST_ID_KEY, record.request_id)]
    if record.stage_seconds:
        spent = record.stage_seconds
        timing = ", ".join(f"{stage};dur={spent[stage] * 1e3:.3f}" for stage in STAGES if stage in spent)
        metadata += [(TIMING_KEY, timing), (BATCH_SIZE_KEY, str(record.batch_size))]
        told = (ENGINE_KEY, record.network_engine), (DTYPE_KEY, record.dtype), (DEVICE_KEY, record.device)
        metadata += [(key, value) for key, value in told if value]
    return tuple(metadata)
