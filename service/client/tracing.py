"""The client's part of a trace: one span around a call, and the W3C context the call carries.

Only in programs that use OpenTelemetry themselves, with the provider they set; others get no span and no import.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def client_span(method: str) -> Iterator[tuple[tuple[str, str], ...]]:
    """A client span for one call of VisionService; yields the metadata that continues it at the server."""
    if "opentelemetry.trace" not in sys.modules:
        yield ()
        return
    from opentelemetry import propagate, trace  # noqa: PLC0415 - loaded already

    attributes = {"rpc.system": "grpc", "rpc.service": "mobilevision.v1.VisionService", "rpc.method": method}
    tracer = trace.get_tracer("mobilevision.client")
    name = f"mobilevision.v1.VisionService/{method}"
    with tracer.start_as_current_span(name, kind=trace.SpanKind.CLIENT, attributes=attributes):
        carried: dict[str, str] = {}
        propagate.inject(carried)
        yield tuple(carried.items())
