"""Metrics of recording: what became of the calls that were to be recorded.

In: one outcome per call. Out: a Prometheus series for each outcome.
"""

from service.observability.registry import MetricFactory

WRITTEN, DROPPED, FAILED = "written", "dropped", "failed"
OUTCOMES = (WRITTEN, DROPPED, FAILED)


class RecordingMetrics:
    """Counts calls that were to be recorded."""

    def __init__(self, factory: MetricFactory) -> None:
        self._calls = factory.counter(
            "recorded_calls",
            "Calls to record: written to disk, dropped because too many waited, or failed to be written.",
            "outcome",
        )
        for outcome in OUTCOMES:
            self._calls.labels(outcome)

    def count(self, outcome: str) -> None:
        """Count a call. `outcome` is one of `OUTCOMES`."""
        self._calls.labels(outcome).inc()
