"""What was measured, and which of it is worth having. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass

from service.tune.candidates import Candidate


@dataclass(frozen=True, slots=True)
class Point:
    """One candidate under a number of clients that each send the next picture when the last is answered.

    `per_second`: pictures answered; milliseconds are as the clients saw them.
    """

    candidate: Candidate
    clients: int
    per_second: float
    p50_ms: float
    p99_ms: float


def front(points: Iterable[Point]) -> list[Point]:
    """The points that no other beats in throughput and p99 both; the fastest answer first."""
    kept: list[Point] = []
    for point in sorted(points, key=lambda point: (point.p99_ms, -point.per_second)):
        if not kept or point.per_second > kept[-1].per_second:
            kept.append(point)
    return kept


def best(points: Iterable[Point], goal_ms: float) -> Point | None:
    """The most pictures per second with p99 within the goal; None where no point reaches it."""
    return max((p for p in points if p.p99_ms <= goal_ms), key=lambda p: (p.per_second, -p.p99_ms), default=None)
