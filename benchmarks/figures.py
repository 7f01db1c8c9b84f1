"""Percentiles, medians over rounds and ratios: the arithmetic of every benchmark, on plain numbers.

In one round every compared system is measured once, minutes apart at most. A ratio is taken within each round, and the
median over the rounds afterwards. A machine that slows down for a while then slows both sides of a ratio.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Spread:
    """The median, the lowest and the highest value over `rounds` rounds."""

    median: float
    low: float
    high: float
    rounds: int


def percentile(values: Sequence[float], share: float) -> float:
    """The value that a `share` (0 to 1) of `values` does not exceed, interpolated linearly. NaN without values."""
    if not values:
        return math.nan
    ordered = sorted(values)
    position = share * (len(ordered) - 1)
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def spread(values: Sequence[float]) -> Spread:
    """Median, lowest and highest of one or more values, one per round."""
    return Spread(median=statistics.median(values), low=min(values), high=max(values), rounds=len(values))


def ratio(ours: Sequence[float], other: Sequence[float]) -> Spread | None:
    """`ours / other`, round by round.

    Rounds in which `other` is zero or one side is missing are left out. None when no round is left.
    """
    ratios = [a / b for a, b in zip(ours, other, strict=False) if b > 0]
    return spread(ratios) if ratios else None


def slope(xs: Sequence[float], ys: Sequence[float]) -> float:
    """Least-squares slope of `ys` over `xs`. 0 when fewer than two different `xs` are given."""
    if len(xs) < 2 or len(set(xs)) < 2:
        return 0.0
    return statistics.linear_regression(xs, ys).slope
