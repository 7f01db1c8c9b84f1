"""Percentiles, medians over rounds and ratios: the arithmetic of every benchmark, on plain numbers.

Rounds are turns: in each, everything that is compared was measured once, minutes apart at most. A ratio is therefore
taken within each round first and its median after, so that a machine that slows down for a while slows both sides.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Spread:
    """The median of some rounds, and how far they lie apart."""

    median: float
    low: float
    high: float
    rounds: int


def percentile(values: Sequence[float], share: float) -> float:
    """The value that `share` (0..1) of `values` do not exceed, interpolated linearly; NaN of none."""
    if not values:
        return math.nan
    ordered = sorted(values)
    position = share * (len(ordered) - 1)
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def spread(values: Sequence[float]) -> Spread:
    """Median, least and greatest of one or more rounds."""
    return Spread(median=statistics.median(values), low=min(values), high=max(values), rounds=len(values))


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Spread | None:
    """`ours / theirs` round by round; rounds in which theirs is zero or either is missing are left out."""
    ratios = [a / b for a, b in zip(ours, theirs, strict=False) if b > 0]
    return spread(ratios) if ratios else None


def slope(xs: Sequence[float], ys: Sequence[float]) -> float:
    """Least-squares slope of `ys` over `xs`; 0 of fewer than two points."""
    if len(xs) < 2 or len(set(xs)) < 2:
        return 0.0
    return statistics.linear_regression(xs, ys).slope
