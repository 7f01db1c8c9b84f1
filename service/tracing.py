"""Traces of requests, off unless `otlp_endpoint` is set: then no OpenTelemetry module is even imported.

In: the metadata of a call, and its `Record` when it ends. Out: spans, made by `service.spans`, sent to an OTLP
collector by a thread of their own. Never holds a request up: spans are dropped when nobody takes them.
"""

from collections.abc import Iterable
from typing import Protocol

from service.errors import ServiceError
from service.work import Record

Metadata = Iterable[tuple[str, str | bytes]]


class TracingUnavailable(Exception):
    """Tracing was asked for and its packages are not installed."""


class Trace(Protocol):
    """The trace of one request."""

    def end(self, record: Record, error: ServiceError | None) -> None:
        """Finish: the stages `record` has seconds of, and the outcome."""
        ...


class Tracing(Protocol):
    """Begins traces."""

    def begin(self, record: Record, service: str, metadata: Metadata) -> Trace:
        """Trace the request whose call came with `metadata`. Sets `record.trace_id` if this one is sampled."""
        ...

    def close(self) -> None:
        """Export what is left; blocks for two seconds at most."""
        ...


class _Off:
    """Tracing that is off, and the trace of every request then: nothing is made per request."""

    def begin(self, record: Record, service: str, metadata: Metadata) -> Trace:
        return self

    def end(self, record: Record, error: ServiceError | None) -> None:
        pass

    def close(self) -> None:
        pass


OFF: Tracing = _Off()


def start_tracing(endpoint: str | None, sample_ratio: float) -> Tracing:
    """Tracing to the OTLP/gRPC collector at `endpoint` (https:// is TLS, http:// is not), or `OFF` where it is None.

    A share of `sample_ratio` of the requests is traced; the decision of a caller that traces goes first.
    Raises `TracingUnavailable`.
    """
    if endpoint is None:
        return OFF
    try:
        from service.spans import OpenTelemetry, otlp_provider  # noqa: PLC0415 - an extra, and slow to import
    except ModuleNotFoundError as error:
        raise TracingUnavailable(
            f"otlp_endpoint is set, but {error.name} is not installed: pip install 'mobilevision[tracing]'"
        ) from error
    return OpenTelemetry(otlp_provider(endpoint, sample_ratio))
