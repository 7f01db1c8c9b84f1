"""The door: what every call of VisionService passes, whichever method it names.

Gives the call a request id and a `Record`, turns every exception into a status of the closed error tree, sets the
trailers, and reports the call once: metrics, one log line and, where tracing is on, its trace.
"""

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any, NoReturn, cast

import grpc
from grpc import aio

from service.errors import STATUS_DETAILS_KEY, Bug, Cancelled, DeadlineExceeded, ServiceError, to_status
from service.health import SERVICE
from service.metrics import STAGES, Metrics
from service.tracing import Metadata, Trace, Tracing
from service.work import Record

REQUEST_ID_KEY = "x-request-id"
TIMING_KEY = "server-timing"
BATCH_SIZE_KEY = "mobilevision-batch-size"

_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
_log = logging.getLogger("service.access")
_record: ContextVar[Record] = ContextVar("record")

Context = aio.ServicerContext[Any, Any]
Behaviour = Callable[[Any, Context], Awaitable[Any]]


def current_record() -> Record:
    """The record of the call being handled. A `LookupError` here is a bug: the door was not installed."""
    return _record.get()


class Door(aio.ServerInterceptor):
    """Wraps the unary methods of VisionService; other services pass untouched."""

    def __init__(self, metrics: Metrics, tracing: Tracing) -> None:
        self._metrics = metrics
        self._tracing = tracing
        self._handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}  # by method, of VisionService

    async def intercept_service(
        self,
        continuation: "Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]]",
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "grpc.RpcMethodHandler[Any, Any] | None":
        """See grpc.aio.ServerInterceptor."""
        known = self._handlers.get(handler_call_details.method)
        if known is not None:
            return known
        handler = await continuation(handler_call_details)
        service, _, method = handler_call_details.method.lstrip("/").partition("/")
        if handler is None or service != SERVICE or handler.unary_unary is None:
            return handler
        inner = cast(Behaviour, handler.unary_unary)  # the stubs know only the synchronous server's

        async def behaviour(request: Any, context: Context) -> Any:
            return await self._handle(inner, request, context, method)

        wrapped: grpc.RpcMethodHandler[Any, Any] = grpc.unary_unary_rpc_method_handler(
            behaviour,
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )
        self._handlers[handler_call_details.method] = wrapped
        return wrapped

    async def _handle(self, inner: Behaviour, request: Any, context: Context, method: str) -> Any:
        metadata: Metadata = context.invocation_metadata() or ()
        record = Record(request_id=_request_id(metadata), method=method)
        _record.set(record)
        trace = self._tracing.begin(record, SERVICE, metadata)
        self._metrics.request_started(SERVICE, method)
        started = time.monotonic()
        try:
            reply = await inner(request, context)
        except ServiceError as error:
            self._report(record, trace, started, error)
            await _abort(context, error, record)
        except asyncio.CancelledError:
            # gRPC cancels the handler when the caller hangs up and when its deadline passes; nobody reads the answer.
            remaining = context.time_remaining()
            late = remaining is not None and remaining <= 0
            outcome = DeadlineExceeded("too late") if late else Cancelled("the caller went away")
            self._report(record, trace, started, outcome)
            raise
        except Exception as error:  # noqa: BLE001 - told as a bug, logged with its traceback
            _log.exception("this is a bug", extra={"request_id": record.request_id})
            bug = Bug(f"this is a bug in the server; its log has the traceback under request id {record.request_id}")
            self._report(record, trace, started, bug)
            await _abort(context, bug, record, cause=error)
        context.set_trailing_metadata(_trailers(record))
        self._report(record, trace, started, None)
        return reply

    def _report(self, record: Record, trace: Trace, started_seconds: float, error: ServiceError | None) -> None:
        code = error.code.name if error else grpc.StatusCode.OK.name
        reason = error.reason if error else None
        duration_seconds = time.monotonic() - started_seconds
        self._metrics.observe_request(
            record, service=SERVICE, code=code, reason=reason, duration_seconds=duration_seconds
        )
        trace.end(record, error)
        level = logging.INFO if error is None or error.code is not grpc.StatusCode.INTERNAL else logging.ERROR
        if not _log.isEnabledFor(level):
            return
        _log.log(
            level,
            "%s %s",
            record.method,
            code,
            extra={
                "request_id": record.request_id,
                "trace_id": record.trace_id,
                "method": record.method,
                "model": record.model,
                "version": record.version or None,
                "code": code,
                "reason": reason,
                "error": error.message if error else None,
                "duration_seconds": round(duration_seconds, 6),
                "batch_size": record.batch_size,
                "stage_seconds": {stage: round(spent, 6) for stage, spent in record.stage_seconds.items()},
            },
        )


def _request_id(metadata: Metadata) -> str:
    for key, value in metadata:
        text = value if isinstance(value, str) else value.decode("ascii", "replace")
        if key == REQUEST_ID_KEY and _REQUEST_ID.fullmatch(text):
            return text
    return uuid.uuid4().hex


def _trailers(record: Record) -> tuple[tuple[str, str], ...]:
    trailers = [(REQUEST_ID_KEY, record.request_id)]
    if record.stage_seconds:
        timing = ", ".join(f"{s};dur={record.stage_seconds[s] * 1e3:.3f}" for s in STAGES if s in record.stage_seconds)
        trailers += [(TIMING_KEY, timing), (BATCH_SIZE_KEY, str(record.batch_size))]
    return tuple(trailers)


async def _abort(
    context: Context, error: ServiceError, record: Record, *, cause: BaseException | None = None
) -> NoReturn:
    status = to_status(error, request_id=record.request_id)
    trailers: tuple[tuple[str, str | bytes], ...] = (
        (REQUEST_ID_KEY, record.request_id),
        (STATUS_DETAILS_KEY, status.SerializeToString()),
    )
    try:
        await context.abort(error.code, error.message, trailers)
    except aio.AbortError as abort:
        raise abort from cause
    raise AssertionError("this is a bug: abort returned")
