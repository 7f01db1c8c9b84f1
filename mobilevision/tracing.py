"""The client's part of a trace: one span around a call, and the W3C trace context that the call carries.

A span is made only in a program that has imported OpenTelemetry, with the provider of that program. This module never
imports OpenTelemetry first.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def client_span(method: str) -> Iterator[tuple[tuple[str, str], ...]]:
    """Open a client span for one call of VisionService. Yields the call metadata with which the server continues it."""
    if "opentelemetry.trace" not in sys.modules:
        yield ()
        return
    from opentelemetry import propagate, trace  # noqa: PLC0415 - imported by the program already

    attributes = {"rpc.system": "grpc", "rpc.service": "mobilevision.v1.VisionService", "rpc.method": method}
    tracer = trace.get_tracer("mobilevision.client")
    name = f"mobilevision.v1.VisionService/{method}"
    with tracer.start_as_current_span(name, kind=trace.SpanKind.CLIENT, attributes=attributes):
        carried: dict[str, str] = {}
        propagate.inject(carried)
        yield tuple(carried.items())
