"""Traces of requests. Tracing is off unless `otlp_endpoint` is set; no OpenTelemetry module is imported then.

In: the metadata of a call, and its `RequestRecord` when the call ends. Out: spans, made by
`service.observability.spans` and sent to an OTLP collector by a thread of their own. Never delays a request: spans are
dropped when the collector does not take them.
"""

from collections.abc import Iterable
from typing import Protocol

from service.core.errors import ServiceError
from service.core.types import RequestRecord

Metadata = Iterable[tuple[str, str | bytes]]


class TracingUnavailable(Exception):
    """`otlp_endpoint` is set, but the packages for tracing are not installed."""


class Trace(Protocol):
    """The trace of one request."""

    def end(self, record: RequestRecord, error: ServiceError | None) -> None:
        """Finish the trace with the stages in `record` and the outcome. `error` is None if the request was answered."""
        ...


class Tracing(Protocol):
    """Begins traces."""

    def begin(self, record: RequestRecord, service: str, metadata: Metadata, *, system: str) -> Trace:
        """Begin the trace of a call of proto service `service` that came with `metadata`.

        `system` is the protocol, one of OpenTelemetry's values of `rpc.system`. Sets `record.trace_id` if the request
        is sampled.
        """
        ...

    def close(self) -> None:
        """Export the remaining spans. Blocks for two seconds at most."""
        ...


class _Off:
    """Tracing that is off. It is also the trace of each request, so that no object is made per request."""

    def begin(self, record: RequestRecord, service: str, metadata: Metadata, *, system: str) -> Trace:
        return self

    def end(self, record: RequestRecord, error: ServiceError | None) -> None:
        pass

    def close(self) -> None:
        pass


OFF: Tracing = _Off()


def start_tracing(endpoint: str | None, sample_ratio: float) -> Tracing:
    """Return tracing to the OTLP/gRPC collector at `endpoint`, or `OFF` if `endpoint` is None.

    An endpoint with https:// uses TLS, one with http:// does not. `sample_ratio` (0 to 1) is the share of the requests
    that is traced. A caller that sends a trace context decides for its own requests. Raises `TracingUnavailable`.
    """
    if endpoint is None:
        return OFF
    try:
        # An optional extra that is slow to import.
        from service.observability.spans import OpenTelemetry, otlp_provider  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise TracingUnavailable(
            f"otlp_endpoint is set, but {error.name} is not installed: pip install 'mobilevision[tracing]'"
        ) from error
    return OpenTelemetry(otlp_provider(endpoint, sample_ratio))
