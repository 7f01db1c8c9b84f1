import pytest

from benchmarks.gateway_cpu import Counts, CpuTurn, order, summary, turn_between
from benchmarks.load import LoadFailed
from benchmarks.systems import BEFORE, OURS


def test_cpu_time_is_divided_by_the_calls_answered_meanwhile():
    turn = turn_between(3, OURS, Counts(1.0, 100, 50), Counts(1.5, 350, 100))
    assert turn.cpu_ms_per_picture == pytest.approx(2.0)
    assert (turn.round, turn.system, turn.answered, turn.pictures_per_batch) == (3, OURS, 250, 5.0)


@pytest.mark.parametrize("after", [Counts(1.5, 100, 60), Counts(1.5, 110, 50)])
def test_a_turn_without_an_answer_is_no_figure(after):
    with pytest.raises(LoadFailed, match="no call"):
        turn_between(0, OURS, Counts(1.0, 100, 50), after)


def test_every_gateway_has_each_place_in_the_order():
    assert [order([OURS, BEFORE], number) for number in range(3)] == [[OURS, BEFORE], [BEFORE, OURS], [OURS, BEFORE]]


def test_ratios_are_taken_within_a_round():
    # The machine had half its speed in round 1, and that round was measured backwards.
    turns = [
        CpuTurn(0, OURS, 10, 4.0, 1.5),
        CpuTurn(0, BEFORE, 10, 4.0, 3.0),
        CpuTurn(1, BEFORE, 10, 4.0, 6.0),
        CpuTurn(1, OURS, 10, 4.0, 3.0),
    ]
    spreads, compared = summary(turns)
    assert (spreads[OURS].low, spreads[OURS].high) == (1.5, 3.0)
    assert compared is not None
    assert compared.median == compared.low == compared.high == pytest.approx(0.5)


def test_one_gateway_alone_has_no_ratio():
    assert summary([CpuTurn(0, OURS, 10, 4.0, 1.5)])[1] is None
