"""What the predictor makes of batches it has seen: lines, steps, noise, outliers, and machines that change speed."""

import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.batching.latency_model import LatencyModel


def line(size: int) -> float:
    return 0.01 + 0.0025 * size


def taught(truth: Callable[[int], float], *, batches: int = 200, noise: float = 0.0, most: int = 16) -> LatencyModel:
    generator = random.Random(7)
    times = LatencyModel(16)
    for _ in range(batches):
        size = generator.randint(1, most)
        times.observe(size, truth(size) * generator.gauss(1.0, noise))
    return times


def test_nothing_is_predicted_before_a_batch_was_seen() -> None:
    times = LatencyModel(4)
    assert list(times.table) == [0.0] * 5
    assert (times.samples, times.error_seconds) == (0, 0.0)


def test_a_line_is_found_from_a_few_batches_and_reaches_beyond_them() -> None:
    times = taught(line, batches=12, most=8)
    for size in range(1, 17):
        assert times.table[size] == pytest.approx(line(size), rel=0.1)


def test_noise_is_averaged_and_measured() -> None:
    times = taught(line, noise=0.1)
    for size in range(1, 17):
        assert times.table[size] == pytest.approx(line(size), rel=0.12)
    mean = sum(line(size) for size in range(1, 17)) / 16
    assert 0.04 * mean < times.error_seconds < 0.16 * mean  # a normal's mean deviation is 0.8 of its standard one


def test_sizes_padded_to_buckets_are_learnt_as_steps() -> None:
    def padded(size: int) -> float:
        return line(next(bucket for bucket in (1, 2, 4, 8, 16) if bucket >= size))

    times = taught(padded, batches=1000)
    for size in range(1, 17):
        assert times.table[size] == pytest.approx(padded(size), rel=0.12)


def test_one_size_alone_says_something_sensible_of_the_others() -> None:
    times = LatencyModel(16)
    for _ in range(10):
        times.observe(8, 0.08)
    assert times.table[8] == pytest.approx(0.08)
    assert 0.01 <= times.table[1] < 0.08 < times.table[16] <= 0.16


@pytest.mark.parametrize("factor", [5.0, 100.0])
def test_one_outlier_changes_no_prediction(factor: float) -> None:
    times = taught(line)
    before = list(times.table)
    times.observe(8, factor * line(8))
    assert list(times.table) == before
    times.observe(8, line(8))
    assert list(times.table) == pytest.approx(before, rel=0.05)


def test_the_second_slow_batch_is_believed_at_every_size() -> None:
    times = taught(line)
    times.observe(8, 3 * line(8))
    times.observe(16, 3 * line(16))
    for size in range(1, 17):
        assert times.table[size] == pytest.approx(3 * line(size), rel=0.15)


def test_the_first_fast_batch_is_believed_at_every_size() -> None:
    times = taught(lambda size: 3 * line(size))
    times.observe(8, line(8))
    for size in range(1, 17):
        assert times.table[size] == pytest.approx(line(size), rel=0.15)


def test_a_machine_that_is_often_slow_raises_the_error() -> None:
    times = taught(line)
    for _ in range(20):
        times.observe(8, line(8))
        times.observe(8, 4 * line(8))
    assert times.error_seconds > 0.3 * line(8)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 8), st.floats(1e-6, 1e3)), max_size=50))
def test_whatever_was_seen_predictions_are_positive_and_never_fall_with_size(seen: list[tuple[int, float]]) -> None:
    times = LatencyModel(8)
    for size, seconds in seen:
        times.observe(size, seconds)
        assert times.error_seconds >= 0
        assert times.table[1] > 0
        assert all(a <= b < float("inf") for a, b in zip(times.table, times.table[1:], strict=False))
