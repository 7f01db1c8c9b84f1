"""What became of each request sent, and the counts of it: every request has exactly one outcome, so the counts add up.

| outcome | gRPC | HTTP |
| --- | --- | --- |
| answered | OK, within the deadline | 200, within the deadline |
| refused | RESOURCE_EXHAUSTED, UNAVAILABLE | 429, 503 |
| missed | DEADLINE_EXCEEDED, or OK too late | 408, 504, no answer in time, or 200 too late |
| failed | anything else, a broken connection | anything else, a broken connection |
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from benchmarks.figures import percentile


class Outcome(StrEnum):
    """Of one request."""

    ANSWERED = "answered"
    REFUSED = "refused"
    MISSED = "missed"
    FAILED = "failed"


@dataclass(frozen=True)
class Row:
    """One request: when it was due, how much later it was sent, and how it ended, counted from when it was due."""

    due_seconds: float
    lag_seconds: float
    outcome: Outcome
    seconds: float


@dataclass(frozen=True)
class Tally:
    """All requests of one run. Latencies are of answered ones and count from the time the request was due."""

    sent: int
    answered: int
    refused: int
    missed: int
    failed: int
    p50_ms: float
    p99_ms: float
    generator_lag_p99_ms: float

    def adds_up(self) -> bool:
        """Whether every request sent has its outcome."""
        return self.sent == self.answered + self.refused + self.missed + self.failed


def grpc_outcome(code: str) -> Outcome:
    """Of a finished gRPC call, by the name of its code."""
    return {
        "OK": Outcome.ANSWERED,
        "RESOURCE_EXHAUSTED": Outcome.REFUSED,
        "UNAVAILABLE": Outcome.REFUSED,
        "DEADLINE_EXCEEDED": Outcome.MISSED,
    }.get(code, Outcome.FAILED)


def http_outcome(status: int) -> Outcome:
    """Of a finished HTTP call, by its status."""
    return {
        200: Outcome.ANSWERED,
        429: Outcome.REFUSED,
        503: Outcome.REFUSED,
        408: Outcome.MISSED,
        504: Outcome.MISSED,
    }.get(status, Outcome.FAILED)


def in_time(row: Row, deadline_seconds: float) -> Row:
    """The row as judged by the deadline: an answer that came too late is a miss."""
    if row.outcome is Outcome.ANSWERED and row.seconds > deadline_seconds:
        return Row(row.due_seconds, row.lag_seconds, Outcome.MISSED, row.seconds)
    return row


def tally(rows: Sequence[Row], *, sent: int) -> Tally:
    """Count; `sent` is what the generator says, independently of the rows, so that `adds_up` can fail."""
    counts = Counter(row.outcome for row in rows)
    latencies = [row.seconds for row in rows if row.outcome is Outcome.ANSWERED]
    return Tally(
        sent=sent,
        answered=counts[Outcome.ANSWERED],
        refused=counts[Outcome.REFUSED],
        missed=counts[Outcome.MISSED],
        failed=counts[Outcome.FAILED],
        p50_ms=percentile(latencies, 0.50) * 1e3,
        p99_ms=percentile(latencies, 0.99) * 1e3,
        generator_lag_p99_ms=percentile([row.lag_seconds for row in rows], 0.99) * 1e3,
    )
