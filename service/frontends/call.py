"""What every call passes, whatever its protocol: its caller and a scope going in, one report and one error coming out.

In: an `IncomingCall` of a front, and the work to do for it. Out: `Answered` or `Failed`, with the metadata that belongs
into the response. `AccessControl` says who calls and admits the call before any work. Each call is reported once:
metrics, one log line, its trace. Never sees a protocol's types; a front translates both ends
(`service.frontends.grpc.method_handlers` for gRPC).
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
from service.core.errors import Bug, Cancelled, DeadlineExceeded, ErrorCode, ServiceError, TooManyRequests
from service.core.types import RequestRecord
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
    certificate that the front verified, best first. `request_bytes` is the size of the request as it was sent.
    """

    service: str
    method: str
    metadata: Collection[tuple[str, str | bytes]]
    remaining_seconds: Callable[[], float | None]
    certificate_names: tuple[str, ...] = ()
    request_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Answered(Generic[Reply]):
    """A call that was answered. `metadata` belongs into the response, as headers or trailers."""

    reply: Reply
    metadata: tuple[tuple[str, str], ...]


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

    async def handle(
        self, call: IncomingCall, work: Callable[[CallScope], Awaitable[Reply]]
    ) -> Answered[Reply] | Failed:
        """Run `work` for a call. Every exception becomes a `ServiceError` in `Failed`.

        Raises `asyncio.CancelledError` where the front cancels the call because nobody waits for the reply any more. It
        is reported as `DeadlineExceeded` if the caller's deadline has passed, else as `Cancelled`.
        """
        record = RequestRecord(request_id=_request_id(call), method=call.method)
        started_at = self._clock()
        remaining_seconds = call.remaining_seconds()
        if remaining_seconds is None:
            remaining_seconds = self._default_deadline_seconds
        deadline_at = started_at + min(remaining_seconds, self._max_deadline_seconds)
        caller: Caller | None = None
        trace = self._tracing.begin(record, call.service, call.metadata, system=self._system)
        self._protocol_metrics.started(call.service, call.method)
        try:
            caller = self.access.identify(call.metadata, call.certificate_names)
            record.caller = ANONYMOUS if caller.anonymous else caller.name
            scope = CallScope(record=record, deadline_at=deadline_at, caller=record.caller, models=caller.models)
            with self.access.admitted(caller, call.request_bytes):
                reply = await work(scope)
        except asyncio.CancelledError:
            self._report(call, record, trace, started_at, caller, _cancellation(call))
            raise
        except Exception as error:  # noqa: BLE001 - reported as a bug, logged with its traceback
            known = _known(error, record)
            self._report(call, record, trace, started_at, caller, known)
            return Failed(known, record.request_id, ((REQUEST_ID_KEY, record.request_id),))
        self._report(call, record, trace, started_at, caller, None)
        return Answered(reply, _metadata(record))

    def _report(
        self,
        call: IncomingCall,
        record: RequestRecord,
        trace: Trace,
        started_at: float,
        caller: Caller | None,
        error: ServiceError | None,
    ) -> None:
        code = error.code.name if error else OK
        reason = error.reason if error else None
        duration_seconds = self._clock() - started_at
        self._protocol_metrics.ended(call.service, call.method, code=code, duration_seconds=duration_seconds)
        self._metrics.observe_request(record, code=code, reason=reason, duration_seconds=duration_seconds)
        self._metrics.callers.observe(
            UNAUTHENTICATED if caller is None else caller.name, listed=caller is None or caller.listed, code=code
        )
        trace.end(record, error)
        _log_call(record, error, duration_seconds)


def _log_call(record: RequestRecord, error: ServiceError | None, duration_seconds: float) -> None:
    level = logging.ERROR if error is not None and error.code is ErrorCode.INTERNAL else logging.INFO
    if not _log.isEnabledFor(level):
        return
    code = error.code.name if error else OK
    _log.log(
        level,
        "%s %s",
        record.method,
        code,
        extra={
            "request_id": record.request_id,
            "trace_id": record.trace_id,
            "method": record.method,
            "caller": record.caller or None,
            "model": record.model,
            "version": record.version or None,
            "code": code,
            "reason": error.reason if error else None,
            "error": str(error) if error else None,
            "duration_seconds": round(duration_seconds, 6),
            "batch_size": record.batch_size,
            "stage_seconds": {stage: round(spent, 6) for stage, spent in record.stage_seconds.items()},
        },
    )


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
