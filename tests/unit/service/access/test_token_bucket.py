"""The bucket never gives more than rate * t + burst, and gives again after the time that it names."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.access.token_bucket import TokenBucket

RATES = st.floats(0.01, 1e4)
BURSTS = st.integers(1, 1000)
STEPS = st.lists(st.floats(-1.0, 5.0), max_size=200)


@given(RATES, BURSTS, STEPS)
def test_any_stretch_of_time_has_at_most_rate_times_time_plus_burst(
    rate: float, burst: int, steps: list[float]
) -> None:
    now, latest = 100.0, 100.0
    bucket = TokenBucket(rate=rate, burst=burst, now=now)
    taken: list[float] = []
    for step in steps:
        now += step  # also backwards
        latest = max(latest, now)
        while not bucket.take(now) and len(taken) < 5000:
            taken.append(latest)
    for first in range(0, len(taken), max(1, len(taken) // 20)):
        for last in range(first, len(taken), max(1, len(taken) // 20)):
            allowed = rate * (taken[last] - taken[first]) + burst
            assert last - first + 1 <= allowed * (1 + 1e-9) + 1e-6


@given(RATES, BURSTS, st.floats(0.0, 10.0))
def test_a_refused_caller_succeeds_after_the_named_time(rate: float, burst: int, used_at: float) -> None:
    bucket = TokenBucket(rate=rate, burst=burst, now=0.0)
    wait_seconds = 0.0
    while not wait_seconds:
        wait_seconds = bucket.take(used_at)
    assert bucket.take(used_at + wait_seconds * (1 - 1e-3)) > 0
    assert bucket.take(used_at + wait_seconds * (1 + 1e-6) + 1e-9) == 0.0


@given(RATES, BURSTS, RATES, BURSTS, st.integers(0, 1000))
def test_other_limits_give_no_new_burst(rate: float, burst: int, new_rate: float, new_burst: int, used: int) -> None:
    bucket = TokenBucket(rate=rate, burst=burst, now=0.0)
    taken = sum(not bucket.take(0.0) for _ in range(min(used, burst)))
    changed = bucket.changed(rate=new_rate, burst=new_burst, now=0.0)
    more = sum(not changed.take(0.0) for _ in range(new_burst + 1))
    assert more == min(burst - taken, new_burst)


@pytest.mark.parametrize("seconds", [0.0, 0.5])
def test_a_bucket_is_full_again_when_it_is_as_new(seconds: float) -> None:
    bucket = TokenBucket(rate=2.0, burst=1, now=0.0)
    assert bucket.is_full(0.0)
    bucket.take(0.0)
    assert bucket.is_full(seconds) is (seconds == 0.5)
