"""Measured points, candidates that were refused, and the choice of the best point. Nothing is measured here."""

from collections.abc import Iterable
from dataclasses import dataclass

from service.tune.candidates import Candidate


@dataclass(frozen=True, slots=True)
class Point:
    """One candidate under the load of a number of clients. Each client sends the next picture after the last reply.

    `per_second` counts answered pictures. Milliseconds are measured by the clients. `computed_by` is what the workers
    say that they computed with, as `engine/dtype`; empty: they did not say.
    """

    candidate: Candidate
    clients: int
    per_second: float
    p50_ms: float
    p99_ms: float
    computed_by: str = ""


@dataclass(frozen=True, slots=True)
class Refused:
    """A candidate that was not measured: the workers computed with `computed_by` in place of what it asks for."""

    candidate: Candidate
    computed_by: str


def front(points: Iterable[Point]) -> list[Point]:
    """The points that no other point beats in both throughput and p99, lowest p99 first."""
    kept: list[Point] = []
    for point in sorted(points, key=lambda point: (point.p99_ms, -point.per_second)):
        if not kept or point.per_second > kept[-1].per_second:
            kept.append(point)
    return kept


def best(points: Iterable[Point], goal_ms: float) -> Point | None:
    """The point with most pictures per second among those with p99 within the goal; None where there is none."""
    return max((p for p in points if p.p99_ms <= goal_ms), key=lambda p: (p.per_second, -p.p99_ms), default=None)
