import subprocess
import sys
from collections.abc import Iterator

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio
from opentelemetry.trace import SpanKind, StatusCode

from mobilevision.tracing import client_span
from service.core.errors import BackendTimeout, ServiceError, TaskMismatch
from service.core.settings import SettingsError, load
from service.core.types import RequestRecord
from service.observability.spans import OpenTelemetry
from service.observability.tracing import OFF, TracingUnavailable, start_tracing

SERVICE = "mobilevision.v1.VisionService"
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Traced:
    """Tracing into memory."""

    def __init__(self, ratio: float = 1.0) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider(sampler=ParentBasedTraceIdRatio(ratio), shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracing = OpenTelemetry(self.provider)

    def request(
        self, record: RequestRecord, *metadata: tuple[str, str | bytes], error: ServiceError | None = None
    ) -> dict[str, ReadableSpan]:
        self.tracing.begin(record, SERVICE, metadata, system="grpc").end(record, error)
        return {span.name: span for span in self.exporter.get_finished_spans()}


@pytest.fixture
def traced() -> Iterator[Traced]:
    made = Traced()
    yield made
    made.provider.shutdown()


def answered() -> RequestRecord:
    record = RequestRecord(request_id="r1", method="Classify", model="m", batch_size=4)
    record.stage_seconds |= {"decode": 1e-3, "queue": 2e-3, "transport": 4e-3, "inference": 8e-3, "results": 5e-4}
    return record


def test_the_stages_of_a_request_are_spans_in_their_order(traced: Traced) -> None:
    spans = traced.request(answered())
    server_span = spans[f"{SERVICE}/Classify"]
    assert {name: spans[name].parent.span_id for name in ("decode", "queue", "backend", "results")} == dict.fromkeys(
        ("decode", "queue", "backend", "results"), server_span.context.span_id
    )
    assert spans["inference"].parent.span_id == spans["backend"].context.span_id
    assert (server_span.kind, spans["backend"].kind) == (SpanKind.SERVER, SpanKind.CLIENT)
    since_ms = {
        name: ((span.start_time - server_span.start_time) / 1e6, (span.end_time - span.start_time) / 1e6)
        for name, span in spans.items()
    }
    assert since_ms["decode"] == (0, 1)
    assert since_ms["queue"] == (1, 2)
    assert since_ms["backend"] == (3, 12)
    assert since_ms["inference"] == (5, 8)
    assert spans["results"].end_time == server_span.end_time
    assert since_ms["results"][1] == 0.5
    assert dict(server_span.attributes or {}) == {
        "rpc.system": "grpc",
        "rpc.service": SERVICE,
        "rpc.method": "Classify",
        "rpc.grpc.status_code": 0,
        "mobilevision.request_id": "r1",
        "mobilevision.model": "m",
        "mobilevision.batch_size": 4,
    }


def test_a_callers_trace_is_continued(traced: Traced) -> None:
    record = answered()
    spans = traced.request(record, ("x-request-id", "r1"), ("traceparent", f"00-{TRACE}-{PARENT}-01"))
    assert record.trace_id == TRACE
    assert {f"{span.context.trace_id:032x}" for span in spans.values()} == {TRACE}
    assert f"{spans[f'{SERVICE}/Classify'].parent.span_id:016x}" == PARENT


@pytest.mark.parametrize("broken", ["", "garbage", f"00-{'0' * 32}-{PARENT}-01", b"\xff"])
def test_a_broken_context_begins_a_new_trace(traced: Traced, broken: str | bytes) -> None:
    record = answered()
    spans = traced.request(record, ("traceparent", broken))
    assert spans[f"{SERVICE}/Classify"].parent is None
    assert record.trace_id == f"{spans['decode'].context.trace_id:032x}"


def test_a_caller_that_does_not_sample_is_not_traced(traced: Traced) -> None:
    record = answered()
    assert traced.request(record, ("traceparent", f"00-{TRACE}-{PARENT}-00")) == {}
    assert record.trace_id is None


def test_a_ratio_of_zero_traces_only_callers_that_do() -> None:
    silent = Traced(ratio=0.0)
    assert silent.request(answered()) == {}
    assert silent.request(answered(), ("traceparent", f"00-{TRACE}-{PARENT}-01"))


@pytest.mark.parametrize(
    ("error", "status", "number"),
    [
        (BackendTimeout("no answer"), StatusCode.ERROR, 14),
        (TaskMismatch("the caller's own mistake"), StatusCode.UNSET, 3),
    ],
)
def test_a_failed_request_has_spans_up_to_its_failure(
    traced: Traced, error: ServiceError, status: StatusCode, number: int
) -> None:
    record = RequestRecord(request_id="r1", method="Classify", stage_seconds={"decode": 1e-3})
    spans = traced.request(record, error=error)
    server_span = spans[f"{SERVICE}/Classify"]
    assert set(spans) == {f"{SERVICE}/Classify", "decode"}
    assert server_span.status.status_code is status
    assert (server_span.attributes or {})["rpc.grpc.status_code"] == number
    assert (server_span.attributes or {})["error.type"] == error.reason


def test_tracing_that_is_off_makes_no_object_per_request_and_imports_nothing() -> None:
    record = answered()
    assert OFF.begin(record, SERVICE, (), system="grpc") is OFF.begin(answered(), SERVICE, (), system="grpc")
    assert record.trace_id is None
    assert start_tracing(None, 1.0) is OFF
    code = (
        "import service.app.server, mobilevision.client, sys; print([m for m in sys.modules if 'opentelemetry' in m])"
    )
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "[]\n"


def test_the_error_for_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "service.observability.spans")
    monkeypatch.setitem(sys.modules, "opentelemetry.context", None)
    with pytest.raises(TracingUnavailable, match=r"pip install 'mobilevision\[tracing\]'"):
        start_tracing("http://localhost:4317", 1.0)


def test_an_endpoint_without_a_scheme_is_refused() -> None:
    with pytest.raises(SettingsError, match="otlp_endpoint"):
        load(otlp_endpoint="collector:4317")


def test_the_client_continues_the_trace_of_its_program(traced: Traced, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace, "get_tracer", traced.provider.get_tracer)
    with traced.provider.get_tracer("program").start_as_current_span("page"), client_span("Detect") as carried:
        pass
    call, page = traced.exporter.get_finished_spans()
    assert (call.name, call.kind) == (f"{SERVICE}/Detect", SpanKind.CLIENT)
    assert call.parent.span_id == page.context.span_id
    assert f"{call.context.span_id:016x}" in dict(carried)["traceparent"]


def test_the_client_sends_no_trace_context_without_a_trace() -> None:
    with client_span("Detect") as carried:
        assert carried == ()
