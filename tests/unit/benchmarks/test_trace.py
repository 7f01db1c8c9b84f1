import itertools
import statistics

import pytest

from benchmarks.trace import Trace, TraceError, poisson


def test_the_same_seed_gives_the_same_trace():
    assert poisson(seed=3, count=500) == poisson(seed=3, count=500)
    assert poisson(seed=3, count=500) != poisson(seed=4, count=500)
    # Equal on every machine and with every Python, so the values are fixed here.
    assert poisson(seed=1, count=3).arrivals_seconds == (0.144291, 2.024447, 3.467416)


def test_gaps_are_those_of_a_poisson_process():
    arrivals = poisson(seed=0, count=20_000).arrivals_seconds
    gaps = [b - a for a, b in itertools.pairwise(arrivals)]
    assert statistics.mean(gaps) == pytest.approx(1.0, rel=0.03)
    assert statistics.pstdev(gaps) == pytest.approx(
        1.0, rel=0.03
    )  # the standard deviation of an exponential distribution is its mean


def test_a_rate_compresses_the_same_gaps():
    trace = poisson(seed=0, count=1000)
    slow, fast = trace.at_rate(10.0, 5.0), trace.at_rate(20.0, 5.0)
    assert all(at < 5.0 for at in fast)
    assert [at * 2 for at in fast[: len(slow)]] == pytest.approx(list(slow))
    assert len(fast) == pytest.approx(100, abs=40)


def test_a_trace_that_is_too_short_is_refused():
    with pytest.raises(TraceError, match="too few"):
        poisson(seed=0, count=10).at_rate(100.0, 5.0)


def test_a_file_replays_the_trace(tmp_path):
    trace = poisson(seed=9, count=100)
    trace.write(tmp_path / "folder" / "trace.json")
    assert Trace.read(tmp_path / "folder" / "trace.json") == trace


@pytest.mark.parametrize(
    "content",
    ["", "[]", '{"seed": 1}', '{"seed": 1, "arrivals_seconds": [2, 1]}', '{"seed": 1, "arrivals_seconds": "x"}'],
)
def test_the_error_for_an_invalid_file_names_the_file(tmp_path, content):
    (tmp_path / "trace.json").write_text(content)
    with pytest.raises(TraceError, match=r"trace\.json"):
        Trace.read(tmp_path / "trace.json")


def test_parts_are_consecutive_and_do_not_overlap():
    trace = poisson(seed=3, count=10)
    first, second = trace.part(1, 2), trace.part(2, 2)
    assert first.arrivals_seconds == trace.arrivals_seconds[:5]
    assert [at + trace.arrivals_seconds[4] for at in second.arrivals_seconds] == pytest.approx(
        trace.arrivals_seconds[5:]
    )
