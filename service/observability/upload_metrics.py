"""Metrics of requests on their way in, and of the memory that calls take.

In: one cause per request that was not let in or was ended early, and functions that read the present state. Out:
Prometheus series.
"""

from collections.abc import Callable

from service.observability.registry import MetricFactory

CUT_OFF, TOO_SLOW, NO_MEMORY, TOO_MANY = "cut_off", "too_slow", "no_memory", "too_many"
CAUSES = (CUT_OFF, TOO_SLOW, NO_MEMORY, TOO_MANY)


class UploadMetrics:
    """Counts requests that did not arrive whole."""

    def __init__(self, factory: MetricFactory) -> None:
        self._refused = factory.counter(
            "uploads_refused",
            "Requests that did not arrive whole: cut off or refused for memory, too slow, or too many at once.",
            "cause",
        )
        for cause in CAUSES:
            self._refused.labels(cause)
        self._arriving = factory.gauge("uploads", "Requests that have not arrived whole.")
        self._call_bytes = factory.gauge(
            "call_memory_bytes", "Measured memory that calls take, decoding apart. Its bound is `call_megabytes`."
        )

    def watch(self, *, arriving: Callable[[], float], call_bytes: Callable[[], float]) -> None:
        """Read the present state whenever Prometheus scrapes. `call_bytes` is in bytes."""
        self._arriving.set_function(arriving)
        self._call_bytes.set_function(call_bytes)

    def refused(self, cause: str) -> None:
        """Count a request. `cause` is one of `CAUSES`."""
        self._refused.labels(cause).inc()
