import dataclasses

import pytest

from benchmarks import results
from benchmarks.machine import describe
from benchmarks.soak import Sample, passed, trend

PROCESS = (7, "python")


def samples(mib_at, count=61, every_seconds=60.0):
    return [Sample(n * every_seconds, {PROCESS: mib_at(n * every_seconds / 3600)}) for n in range(count)]


def test_a_leak_is_over_its_bound():
    found = trend(PROCESS, samples(lambda hours: 100 + 50 * hours), bound_mib_per_hour=30)
    assert found is not None
    assert found.slope_mib_per_hour == pytest.approx(50.0)
    assert not found.within_bound


def test_growth_in_the_first_fifth_does_not_count():
    found = trend(PROCESS, samples(lambda hours: 100 + 500 * min(hours, 0.19)), bound_mib_per_hour=30)
    assert found is not None
    assert found.slope_mib_per_hour == pytest.approx(0.0)
    assert found.within_bound


def test_a_short_run_may_grow_by_the_noise_of_allocators():
    found = trend(PROCESS, samples(lambda hours: 100 + 60 * hours, every_seconds=2.0), bound_mib_per_hour=30)
    assert found is not None
    assert found.within_bound, "2 MiB in two minutes prove nothing"


def test_a_process_that_ended_or_started_has_no_trend():
    gone = [*samples(lambda hours: 100), Sample(3700.0, {})]
    assert trend(PROCESS, gone, bound_mib_per_hour=30) is None


def test_one_failed_check_fails_the_soak():
    head = results.Head("soak", describe(), {}, complete=True)
    good = results.SoakResult(
        head, "toy", 10.0, 90.0, 100.0, 10, 10, 0, 0, 0, True, 5.0, [], True, 0, 0.0, {"free": 8.0, "busy": 0.0}
    )
    assert passed(good)
    assert passed(dataclasses.replace(good, slots_in_use_at_end=None))
    for wrong in (
        {"within_bound": False},
        {"adds_up": False},
        {"failed": 1},
        {"processes_that_ended": 1},
        {"slots_in_use_at_end": 1.0},
        {"head": dataclasses.replace(head, complete=False)},
    ):
        assert not passed(dataclasses.replace(good, **wrong)), wrong
