"""Limits of one caller: rate, calls in work, bytes in work. Callers that use nothing are forgotten."""

import contextlib

import pytest

from service.access.caller_limits import FORGET_SECONDS, FULL_FORGET_SECONDS, CallerLimiter
from service.access.callers import Caller, CallerLimits
from service.core.errors import RateLimited


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def calls(limiter: CallerLimiter, caller: Caller, count: int) -> int:
    """How many of `count` calls, one after the other, are admitted."""
    admitted = 0
    for _ in range(count):
        with contextlib.suppress(RateLimited), limiter.admitted(caller, 1):
            admitted += 1
    return admitted


def test_a_caller_gets_its_burst_and_then_its_rate(clock: Clock) -> None:
    limiter = CallerLimiter(clock)
    caller = Caller("a", CallerLimits(requests_per_second=2.0, burst=3))
    assert calls(limiter, caller, 10) == 3
    with pytest.raises(RateLimited) as raised, limiter.admitted(caller, 1):
        pass
    assert raised.value.retry_after_seconds == 0.5
    assert raised.value.metadata == {"limit": "requests_per_second"}
    clock.now += 1.0
    assert calls(limiter, caller, 10) == 2
    assert calls(limiter, Caller("b", caller.limits), 10) == 3, "another caller has a bucket of its own"


@pytest.mark.parametrize(("rate", "burst"), [(0.5, 1), (20.0, 20)])
def test_without_a_burst_it_is_that_of_one_second(clock: Clock, rate: float, burst: int) -> None:
    assert calls(CallerLimiter(clock), Caller("a", CallerLimits(requests_per_second=rate)), 100) == burst


def test_a_tiny_rate_names_a_time_that_fits_into_a_reply(clock: Clock) -> None:
    limiter, caller = CallerLimiter(clock), Caller("a", CallerLimits(requests_per_second=1e-300))
    assert calls(limiter, caller, 1) == 1
    with pytest.raises(RateLimited) as raised, limiter.admitted(caller, 1):
        pass
    assert raised.value.retry_after_seconds == 3600


def test_calls_in_work_are_limited_and_a_failed_call_gives_its_place_back(clock: Clock) -> None:
    limiter, caller = CallerLimiter(clock), Caller("a", CallerLimits(inflight_requests=2))
    with limiter.admitted(caller, 1):
        with contextlib.suppress(ZeroDivisionError), limiter.admitted(caller, 1):
            assert calls(limiter, caller, 1) == 0
            raise ZeroDivisionError
        assert calls(limiter, caller, 1) == 1
    assert calls(limiter, caller, 5) == 5


def test_bytes_in_work_are_limited(clock: Clock) -> None:
    limiter, caller = CallerLimiter(clock), Caller("a", CallerLimits(inflight_bytes=100))
    with limiter.admitted(caller, 60):
        with pytest.raises(RateLimited) as raised, limiter.admitted(caller, 41):
            pass
        assert raised.value.retry_after_seconds is not None
        with limiter.admitted(caller, 40):
            pass
    with pytest.raises(RateLimited, match="smaller picture") as raised, limiter.admitted(caller, 101):
        pass
    assert raised.value.retry_after_seconds is None, "repeating cannot help"


def test_a_call_refused_for_its_bytes_costs_no_call_per_second(clock: Clock) -> None:
    limiter = CallerLimiter(clock)
    caller = Caller("a", CallerLimits(requests_per_second=1.0, burst=1, inflight_bytes=100))
    with pytest.raises(RateLimited), limiter.admitted(caller, 101):
        pass
    assert calls(limiter, caller, 2) == 1


def test_changed_limits_hold_at_once_and_keep_the_calls_in_work(clock: Clock) -> None:
    limiter = CallerLimiter(clock)
    before = Caller("a", CallerLimits(requests_per_second=1.0, burst=5, inflight_requests=9))
    after = Caller("a", CallerLimits(requests_per_second=1.0, burst=100, inflight_requests=1))
    with limiter.admitted(before, 1):
        assert calls(limiter, after, 1) == 0
    assert calls(limiter, after, 100) == 4, "no new burst"


def test_a_caller_without_limits_is_not_tracked(clock: Clock) -> None:
    limiter = CallerLimiter(clock)
    assert calls(limiter, Caller("a"), 1000) == 1000
    assert limiter.tracked == 0


def test_callers_that_use_nothing_are_forgotten(clock: Clock) -> None:
    limiter, limits = CallerLimiter(clock), CallerLimits(requests_per_second=0.01, burst=1, inflight_requests=5)
    with limiter.admitted(Caller("working", limits), 1):
        calls(limiter, Caller("empty", limits), 1)
        clock.now += FORGET_SECONDS
        calls(limiter, Caller("other", limits), 1)
        assert limiter.tracked == 3, "a bucket that is not full yet is remembered"
        clock.now += 100.0
        calls(limiter, Caller("last", limits), 1)
        assert limiter.tracked == 2
    assert calls(limiter, Caller("empty", limits), 2) == 1


def test_the_number_of_callers_is_bounded(clock: Clock) -> None:
    limiter, limits = CallerLimiter(clock, most_tracked=3), CallerLimits(requests_per_second=1.0, burst=1)
    assert [calls(limiter, Caller(str(number), limits), 1) for number in range(5)] == [1, 1, 1, 0, 0]
    assert limiter.tracked == 3
    with pytest.raises(RateLimited) as raised, limiter.admitted(Caller("9", limits), 1):
        pass
    assert raised.value.metadata == {"limit": "callers"}
    clock.now += FULL_FORGET_SECONDS
    assert calls(limiter, Caller("9", limits), 1) == 1
    assert limiter.tracked <= 3
