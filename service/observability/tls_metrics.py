"""Metrics of the TLS files of the gRPC port.

In: functions that read when the certificates of a file expire. Out: Prometheus series, none without TLS.
"""

from collections.abc import Callable

from service.observability.registry import MetricFactory


class TlsMetrics:
    """Shows when the certificates expire."""

    def __init__(self, factory: MetricFactory) -> None:
        self._not_after = factory.gauge(
            "tls_not_after_timestamp_seconds",
            "Unix time at which the first certificate of a file expires. file: certificate (shown to clients) or "
            "client_ca (checks those of clients).",
            "file",
        )

    def watch(self, file: str, not_after: Callable[[], float]) -> None:
        """Read the expiry of a file whenever Prometheus scrapes. `not_after` returns Unix seconds."""
        self._not_after.labels(file).set_function(not_after)
