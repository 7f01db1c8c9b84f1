"""Traces end to end: client, gateway, OTLP receiver, log line, exemplar."""

import asyncio
import json
import logging
import threading
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from access_keys import KEY, caller, write_callers
from fakes import RunningGateway, picture, running_gateway
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.sdk.trace import TracerProvider

from mobilevision.client import VisionClient
from service.core.logs import JsonFormatter
from service.observability import spans
from service.observability.tracing import start_tracing

OPENMETRICS = (
    "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"  # as Prometheus asks
)


class Receiver(trace_service_pb2_grpc.TraceServiceServicer):
    """An OTLP collector that keeps what it gets."""

    def __init__(self) -> None:
        self.spans: dict[str, object] = {}
        self.services: set[str] = set()

    def Export(
        self, request: trace_service_pb2.ExportTraceServiceRequest, context: grpc.ServicerContext
    ) -> trace_service_pb2.ExportTraceServiceResponse:
        for resource in request.resource_spans:
            named = {a.key: a.value.string_value for a in resource.resource.attributes}
            self.services.add(named["service.name"])
            self.spans |= {span.name: span for scope in resource.scope_spans for span in scope.spans}
        return trace_service_pb2.ExportTraceServiceResponse()


@pytest.fixture
def collector() -> Iterator[tuple[str, Receiver]]:
    receiver, server = Receiver(), grpc.server(ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(receiver, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"http://127.0.0.1:{port}", receiver
    server.stop(None).wait()


async def scrape(running: RunningGateway, accept: str) -> tuple[str, str]:
    request = urllib.request.Request(f"http://{running.http}/metrics", headers={"Accept": accept})

    def read() -> tuple[str, str]:
        with urllib.request.urlopen(request) as answer:
            return answer.headers["Content-Type"], answer.read().decode()

    return await asyncio.to_thread(read)


def classify(address: str) -> str:
    """One call inside a span of the program's own; the trace's id."""
    provider = TracerProvider(shutdown_on_exit=False)
    with (
        provider.get_tracer("program").start_as_current_span("page") as page,
        VisionClient(address) as client,
    ):
        client.classify(picture())
    return f"{page.get_span_context().trace_id:032x}"


async def test_caller_worker_log_and_histogram_share_one_trace(
    collector: tuple[str, Receiver], caplog: pytest.LogCaptureFixture
) -> None:
    endpoint, receiver = collector
    caplog.set_level(logging.INFO, "service.access")
    async with running_gateway(tracing=start_tracing(endpoint, 0.0)) as running:
        trace_id = await asyncio.to_thread(classify, running.grpc)
        kind, page = await scrape(running, OPENMETRICS)
        plain_kind, plain = await scrape(running, "text/plain")
    assert receiver.services == {"mobilevision"}
    names = {"mobilevision.v1.VisionService/Classify", "decode", "queue", "backend", "inference", "results"}
    assert set(receiver.spans) == names
    assert {span.trace_id.hex() for span in receiver.spans.values()} == {trace_id}  # type: ignore[attr-defined]
    line = json.loads(JsonFormatter().format(next(r for r in caplog.records if r.name == "service.access")))
    assert line["trace_id"] == trace_id
    assert kind.startswith("application/openmetrics-text; version=1.0.0")
    exemplar = f'# {{trace_id="{trace_id}"}}'
    assert any(exemplar in sample for sample in page.splitlines() if "request_duration_seconds_bucket" in sample)
    assert page.endswith("# EOF\n")
    assert plain_kind.startswith("text/plain; version=0.0.4")
    assert trace_id not in plain


async def test_a_trace_names_the_caller_and_never_its_key(collector: tuple[str, Receiver], tmp_path: Path) -> None:
    endpoint, receiver = collector
    file = write_callers(tmp_path / "callers.json", caller("camera", KEY))
    async with running_gateway(tracing=start_tracing(endpoint, 1.0), callers_file=file) as running:
        with VisionClient(running.grpc, api_key=KEY) as client:
            await asyncio.to_thread(client.classify, picture())
    text = str(receiver.spans)
    assert "mobilevision.caller" in text
    assert "camera" in text
    assert KEY not in text


async def test_traces_do_not_depend_on_the_log_level(
    collector: tuple[str, Receiver], caplog: pytest.LogCaptureFixture
) -> None:
    endpoint, receiver = collector
    caplog.set_level(logging.WARNING, "service.access")
    async with running_gateway(tracing=start_tracing(endpoint, 0.0)) as running:
        await asyncio.to_thread(classify, running.grpc)
    assert "mobilevision.v1.VisionService/Classify" in receiver.spans


async def test_an_absent_collector_does_not_delay_the_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spans, "CLOSE_SECONDS", 0.01)
    async with running_gateway(tracing=start_tracing("http://127.0.0.1:1", 1.0)) as running:
        await asyncio.to_thread(classify, running.grpc)
    # Stopped, while the exporter still tries.
    closing = [thread for thread in threading.enumerate() if thread.name == "close-tracing"]
    assert closing
    # Its retries draw from `random`, which the property tests of this process forbid.
    for thread in closing:
        await asyncio.to_thread(thread.join, 60)
