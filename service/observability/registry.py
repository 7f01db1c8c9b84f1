"""Makes the gateway's own metrics: a noun and its labels in, a registered Prometheus metric out.

All names begin with `mobilevision_`. Durations are in seconds and share one set of buckets. Never records anything.
"""

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

SECONDS_BUCKETS = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.0, 2.0, 4.0, 8.0)

_PREFIX = "mobilevision_"


class MetricFactory:
    """Registers metrics in one registry. `text` is the HELP line; `labels` are label names."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def counter(self, name: str, text: str, *labels: str) -> Counter:
        """Make a counter. Prometheus sees it as `mobilevision_{name}_total`."""
        return Counter(_PREFIX + name, text, labels, registry=self._registry)

    def gauge(self, name: str, text: str, *labels: str) -> Gauge:
        """Make a gauge."""
        return Gauge(_PREFIX + name, text, labels, registry=self._registry)

    def seconds(self, name: str, text: str, *labels: str) -> Histogram:
        """Make a histogram of durations, with buckets from 0.5 ms to 8 s."""
        return self.histogram(name, text, *labels, buckets=SECONDS_BUCKETS)

    def histogram(self, name: str, text: str, *labels: str, buckets: Sequence[float]) -> Histogram:
        """Make a histogram with buckets of its own."""
        return Histogram(_PREFIX + name, text, labels, registry=self._registry, buckets=buckets)
