import math

import pytest

from benchmarks.figures import percentile, ratio, slope, spread


def test_percentiles_are_interpolated_linearly():
    values = [4.0, 1.0, 3.0, 2.0]
    assert percentile(values, 0.0) == 1.0
    assert percentile(values, 0.5) == 2.5
    assert percentile(values, 0.99) == pytest.approx(3.97)
    assert percentile(values, 1.0) == 4.0
    assert percentile([7.0], 0.99) == 7.0
    assert math.isnan(percentile([], 0.5))


def test_a_spread_is_the_median_the_lowest_and_the_highest():
    found = spread([3.0, 1.0, 2.0])
    assert (found.median, found.low, found.high, found.rounds) == (2.0, 1.0, 3.0, 3)


def test_a_ratio_is_taken_within_each_round():
    # The machine had half its speed in the second round. The ratio stays 0.9; a ratio of medians would not.
    found = ratio([90.0, 45.0, 90.0], [100.0, 50.0, 100.0])
    assert found is not None
    assert found.median == found.low == found.high == pytest.approx(0.9)


def test_rounds_without_both_sides_are_left_out():
    found = ratio([90.0, 45.0, 10.0], [0.0, 50.0])
    assert found is not None
    assert found.rounds == 1
    assert ratio([1.0], [0.0]) is None


def test_a_slope_is_least_squares():
    assert slope([0.0, 1.0, 2.0, 3.0], [5.0, 7.0, 9.0, 11.0]) == pytest.approx(2.0)
    assert slope([1.0], [5.0]) == 0.0
    assert slope([1.0, 1.0], [5.0, 9.0]) == 0.0
