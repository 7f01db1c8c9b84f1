"""A request as OpenTelemetry spans. Imported only where tracing is on.

    mobilevision.v1.VisionService/Classify      server; child of the caller's span (W3C `traceparent`)
    ├── decode, queue                           one after the other
    ├── backend                                 client: the batch's round trip to TorchServe
    │   └── inference                           what the worker measured of it
    └── results                                 up to the end

All are made when the request ends, from the seconds that its stages measured anyway: stages know nothing of traces, and
workers need no OpenTelemetry. A worker tells how long it took, not when by the gateway's clock, so `inference` stands
in the middle of `backend`.
"""

import threading
import time
from collections.abc import Iterable

import grpc
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio
from opentelemetry.trace import SpanKind, Status, StatusCode, Tracer, format_trace_id, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from service.errors import ServiceError
from service.work import Record

EXPORT_SECONDS = 5.0  # per attempt
CLOSE_SECONDS = 2.0

_W3C = TraceContextTextMapPropagator()
# By OpenTelemetry's conventions a server's span failed where the server did, not where the caller did.
_FAULTS = frozenset({"DEADLINE_EXCEEDED", "INTERNAL", "UNAVAILABLE"})


def otlp_provider(endpoint: str, sample_ratio: float) -> TracerProvider:
    """Spans in batches to an OTLP/gRPC collector."""
    provider = TracerProvider(
        sampler=ParentBasedTraceIdRatio(sample_ratio),
        resource=Resource.create({SERVICE_NAME: "mobilevision"}),
        shutdown_on_exit=False,  # `close` does it, in time
    )
    plain = not endpoint.startswith("https://")
    provider.add_span_processor(
        BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint, insecure=plain, timeout=EXPORT_SECONDS))
    )
    return provider


class OpenTelemetry:
    """A `service.tracing.Tracing` over a provider, which it closes."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("mobilevision")

    def begin(self, record: Record, service: str, metadata: Iterable[tuple[str, str | bytes]]) -> "RequestTrace":
        """See `service.tracing.Tracing.begin`."""
        carried = {key: value for key, value in metadata if key in _W3C.fields and isinstance(value, str)}
        return RequestTrace(self._tracer, _W3C.extract(carried), record, service)

    def close(self) -> None:
        """See `service.tracing.Tracing.close`."""
        # The provider would wait half a minute for a collector that is gone.
        closing = threading.Thread(target=self._provider.shutdown, name="close-tracing", daemon=True)
        closing.start()
        closing.join(CLOSE_SECONDS)


class RequestTrace:
    """A `service.tracing.Trace`: the server span, open until `end`."""

    def __init__(self, tracer: Tracer, parent: Context, record: Record, service: str) -> None:
        self._tracer = tracer
        self._began_ns = time.time_ns()
        self._span = tracer.start_span(
            f"{service}/{record.method}",
            parent,
            SpanKind.SERVER,
            {"rpc.system": "grpc", "rpc.service": service, "rpc.method": record.method},
            start_time=self._began_ns,
        )
        if self._span.is_recording():
            record.trace_id = format_trace_id(self._span.get_span_context().trace_id)

    def end(self, record: Record, error: ServiceError | None) -> None:
        """See `service.tracing.Trace.end`."""
        ended_ns = time.time_ns()
        if self._span.is_recording():
            self._describe(record, error)
            self._stages(record, ended_ns)
        self._span.end(ended_ns)

    def _describe(self, record: Record, error: ServiceError | None) -> None:
        code = grpc.StatusCode.OK if error is None else error.code
        self._span.set_attributes(
            {
                "rpc.grpc.status_code": code.value[0],
                "mobilevision.request_id": record.request_id,
                "mobilevision.model": record.model,
                "mobilevision.batch_size": record.batch_size,
            }
        )
        if error is not None:
            self._span.set_attribute("error.type", error.reason)
            if code.name in _FAULTS:
                self._span.set_status(Status(StatusCode.ERROR, error.message))

    def _stages(self, record: Record, ended_ns: int) -> None:
        inside = set_span_in_context(self._span)
        spent_ns = {stage: round(seconds * 1e9) for stage, seconds in record.stage_seconds.items()}
        at_ns = self._began_ns
        for stage in ("decode", "queue"):
            if stage in spent_ns:
                at_ns = self._child(stage, inside, at_ns, spent_ns[stage])
        if "transport" in spent_ns:
            inference_ns = spent_ns["inference"]
            backend_ns = spent_ns["transport"] + inference_ns
            backend = self._tracer.start_span("backend", inside, SpanKind.CLIENT, start_time=at_ns)
            self._child("inference", set_span_in_context(backend), at_ns + spent_ns["transport"] // 2, inference_ns)
            backend.end(at_ns + backend_ns)
        if "results" in spent_ns:
            self._child("results", inside, ended_ns - spent_ns["results"], spent_ns["results"])

    def _child(self, name: str, parent: Context, began_ns: int, spent_ns: int) -> int:
        self._tracer.start_span(name, parent, start_time=began_ns).end(began_ns + spent_ns)
        return began_ns + spent_ns
