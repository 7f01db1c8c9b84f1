"""A request as OpenTelemetry spans. Imported only where tracing is on.

    mobilevision.v1.VisionService/Classify      server; child of the caller's span (W3C `traceparent`)
    ├── decode, queue                           one after the other
    ├── backend                                 client: the round trip of the batch to its worker
    │   └── inference                           the time that the worker measured
    └── results                                 ends with the request

In: a finished `RequestRecord`. Out: spans. All child spans are made when the request ends, from the seconds in the
record. So the stages need no tracing code, and the workers need no OpenTelemetry. A worker reports how long inference
took, but not when it began on the gateway's clock. Therefore `inference` is placed in the middle of `backend`.
"""

import threading
import time
from collections.abc import Iterable

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio
from opentelemetry.trace import SpanKind, Status, StatusCode, Tracer, format_trace_id, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from service.core.errors import ErrorCode, ServiceError
from service.core.types import RequestRecord

EXPORT_SECONDS = 5.0  # limit of one attempt to send spans
CLOSE_SECONDS = 2.0  # limit of `OpenTelemetry.close`

_W3C = TraceContextTextMapPropagator()
# OpenTelemetry's conventions mark a server span as failed for these codes. Errors of the caller are not failures.
_SERVER_FAILURES = frozenset({ErrorCode.DEADLINE_EXCEEDED, ErrorCode.INTERNAL, ErrorCode.UNAVAILABLE})
_OK = 0  # gRPC's number of the code OK


def otlp_provider(endpoint: str, sample_ratio: float) -> TracerProvider:
    """Return a provider that sends spans in batches to an OTLP/gRPC collector. `sample_ratio` is 0 to 1."""
    provider = TracerProvider(
        sampler=ParentBasedTraceIdRatio(sample_ratio),
        resource=Resource.create({SERVICE_NAME: "mobilevision"}),
        shutdown_on_exit=False,  # `OpenTelemetry.close` shuts it down, with a time limit
    )
    insecure = not endpoint.startswith("https://")
    provider.add_span_processor(
        BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint, insecure=insecure, timeout=EXPORT_SECONDS))
    )
    return provider


class OpenTelemetry:
    """Implements `service.observability.tracing.Tracing` with a provider. `close` shuts the provider down."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("mobilevision")

    def begin(
        self, record: RequestRecord, service: str, metadata: Iterable[tuple[str, str | bytes]], *, system: str
    ) -> "RequestTrace":
        """See `service.observability.tracing.Tracing.begin`."""
        context = {key: value for key, value in metadata if key in _W3C.fields and isinstance(value, str)}
        return RequestTrace(self._tracer, _W3C.extract(context), record, service, system)

    def close(self) -> None:
        """See `service.observability.tracing.Tracing.close`."""
        # The provider waits up to 30 s for a collector that does not answer.
        closing = threading.Thread(target=self._provider.shutdown, name="close-tracing", daemon=True)
        closing.start()
        closing.join(CLOSE_SECONDS)


class RequestTrace:
    """Implements `service.observability.tracing.Trace`: a server span that is open until `end`."""

    def __init__(self, tracer: Tracer, parent: Context, record: RequestRecord, service: str, system: str) -> None:
        self._tracer = tracer
        self._started_ns = time.time_ns()
        self._span = tracer.start_span(
            f"{service}/{record.method}",
            parent,
            SpanKind.SERVER,
            {"rpc.system": system, "rpc.service": service, "rpc.method": record.method},
            start_time=self._started_ns,
        )
        if self._span.is_recording():
            record.trace_id = format_trace_id(self._span.get_span_context().trace_id)

    def end(self, record: RequestRecord, error: ServiceError | None) -> None:
        """See `service.observability.tracing.Trace.end`."""
        ended_ns = time.time_ns()
        if self._span.is_recording():
            self._set_attributes(record, error)
            self._add_stages(record, ended_ns)
        self._span.end(ended_ns)

    def _set_attributes(self, record: RequestRecord, error: ServiceError | None) -> None:
        self._span.set_attributes(
            {
                "rpc.grpc.status_code": _OK if error is None else error.code.value,
                "mobilevision.request_id": record.request_id,
                "mobilevision.model": record.model,
                "mobilevision.batch_size": record.batch_size,
            }
        )
        if record.caller:
            self._span.set_attribute("mobilevision.caller", record.caller)
        if error is not None:
            self._span.set_attribute("error.type", error.reason)
            if error.code in _SERVER_FAILURES:
                self._span.set_status(Status(StatusCode.ERROR, str(error)))

    def _add_stages(self, record: RequestRecord, ended_ns: int) -> None:
        context = set_span_in_context(self._span)
        spent_ns = {stage: round(seconds * 1e9) for stage, seconds in record.stage_seconds.items()}
        at_ns = self._started_ns
        for stage in ("decode", "queue"):
            if stage in spent_ns:
                at_ns = self._add_child(stage, context, at_ns, spent_ns[stage])
        if "transport" in spent_ns:
            inference_ns = spent_ns["inference"]
            backend_ns = spent_ns["transport"] + inference_ns
            backend = self._tracer.start_span("backend", context, SpanKind.CLIENT, start_time=at_ns)
            self._add_child("inference", set_span_in_context(backend), at_ns + spent_ns["transport"] // 2, inference_ns)
            backend.end(at_ns + backend_ns)
        if "results" in spent_ns:
            self._add_child("results", context, ended_ns - spent_ns["results"], spent_ns["results"])

    def _add_child(self, name: str, parent: Context, started_ns: int, spent_ns: int) -> int:
        self._tracer.start_span(name, parent, start_time=started_ns).end(started_ns + spent_ns)
        return started_ns + spent_ns
