"""Metrics of callers: calls by caller and outcome, with a bounded number of label values.

In: names of callers. Out: Prometheus series. Callers that the operator named have a label value each. Of the others
(certificates, tokens) the first `MOST_UNLISTED` have one, and all further ones share `OTHER`. Never sees a key.
"""

from service.observability.registry import MetricFactory

MOST_LISTED = 2000  # twice as many as a callers file may have: it can change while the server runs
MOST_UNLISTED = 100
OTHER = "other"
UNAUTHENTICATED = "unauthenticated"  # calls that were refused for their credentials


class CallerMetrics:
    """Records each finished call once."""

    def __init__(self, factory: MetricFactory) -> None:
        self._requests = factory.counter(
            "caller_requests", "Finished calls, by caller and gRPC code.", "caller", "code"
        )
        self._listed: set[str] = set()
        self._unlisted: set[str] = set()

    def observe(self, caller: str, *, listed: bool, code: str) -> None:
        """Record a finished call. `listed`: the operator named the caller. `code` is OK or a name of `ErrorCode`."""
        names, most = (self._listed, MOST_LISTED) if listed else (self._unlisted, MOST_UNLISTED)
        if caller not in names and len(names) < most:
            names.add(caller)
        self._requests.labels(caller if caller in names else OTHER, code).inc()
