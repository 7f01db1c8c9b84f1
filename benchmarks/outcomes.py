"""The outcome of each request, and counts of outcomes. Every request has exactly one, so the counts add up.

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
    """Outcome of one request."""

    ANSWERED = "answered"
    REFUSED = "refused"
    MISSED = "missed"
    FAILED = "failed"


@dataclass(frozen=True)
class RequestRecord:
    """One request.

    `due_seconds`: its planned time, counted from the start of the run. `lag_seconds`: how much later it was sent.
    `seconds`: its latency, counted from the planned time.
    """

    due_seconds: float
    lag_seconds: float
    outcome: Outcome
    seconds: float


@dataclass(frozen=True)
class Tally:
    """Counts of one run. Latencies are those of answered requests, counted from their planned times."""

    sent: int
    answered: int
    refused: int
    missed: int
    failed: int
    p50_ms: float
    p99_ms: float
    generator_lag_p99_ms: float

    def adds_up(self) -> bool:
        """Whether every request sent has an outcome."""
        return self.sent == self.answered + self.refused + self.missed + self.failed


def grpc_outcome(code: str) -> Outcome:
    """Outcome of a finished gRPC call. `code` is the name of its status code."""
    return {
        "OK": Outcome.ANSWERED,
        "RESOURCE_EXHAUSTED": Outcome.REFUSED,
        "UNAVAILABLE": Outcome.REFUSED,
        "DEADLINE_EXCEEDED": Outcome.MISSED,
    }.get(code, Outcome.FAILED)


def http_outcome(status: int) -> Outcome:
    """Outcome of a finished HTTP call with a `status`."""
    return {
        200: Outcome.ANSWERED,
        429: Outcome.REFUSED,
        503: Outcome.REFUSED,
        408: Outcome.MISSED,
        504: Outcome.MISSED,
    }.get(status, Outcome.FAILED)


def in_time(record: RequestRecord, deadline_seconds: float) -> RequestRecord:
    """The record with the outcome MISSED if the answer came after the deadline; otherwise the same record."""
    if record.outcome is Outcome.ANSWERED and record.seconds > deadline_seconds:
        return RequestRecord(record.due_seconds, record.lag_seconds, Outcome.MISSED, record.seconds)
    return record


def tally(records: Sequence[RequestRecord], *, sent: int) -> Tally:
    """Count the outcomes. `sent` is counted by the generator, not from the records, so that `adds_up` can fail."""
    counts = Counter(record.outcome for record in records)
    latencies = [record.seconds for record in records if record.outcome is Outcome.ANSWERED]
    return Tally(
        sent=sent,
        answered=counts[Outcome.ANSWERED],
        refused=counts[Outcome.REFUSED],
        missed=counts[Outcome.MISSED],
        failed=counts[Outcome.FAILED],
        p50_ms=percentile(latencies, 0.50) * 1e3,
        p99_ms=percentile(latencies, 0.99) * 1e3,
        generator_lag_p99_ms=percentile([record.lag_seconds for record in records], 0.99) * 1e3,
    )
