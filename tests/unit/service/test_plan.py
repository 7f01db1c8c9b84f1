"""The policy on numbers: every cut against what it could have been, and the foreseen future against playing it out."""

from hypothesis import given, settings
from hypothesis import strategies as st

from service.plan import BATCH_PRIORITY_SHARE, Cut, Forecast, Situation, foresee, next_batch

DEADLINES = st.lists(st.integers(0, 20).map(float), max_size=8).map(sorted)  # 16 batches: the horizon
TABLES = st.lists(st.integers(0, 5), min_size=1, max_size=8).map(
    lambda steps: [0.0] + [float(1 + sum(steps[: i + 1])) for i in range(len(steps))]
)
FORECASTS = st.builds(Forecast, TABLES, st.integers(0, 2).map(float))
SITUATIONS = st.builds(
    Situation,
    DEADLINES,
    DEADLINES,
    st.floats(0, 2),
    st.lists(st.integers(0, 10).map(float), min_size=1, max_size=3).map(sorted),
)


def taken(situation: Situation, cut: Cut) -> tuple[list[float], list[float]]:
    return list(situation.interactive[slice(*cut.interactive)]), list(situation.batch[slice(*cut.batch)])


@settings(max_examples=500, deadline=None)
@given(SITUATIONS, FORECASTS)
def test_a_batch_is_in_time_as_large_as_possible_and_leaves_out_only_the_hopeless(
    situation: Situation, forecast: Forecast
) -> None:
    cut = next_batch(situation, forecast)
    first, riders = taken(situation, cut)
    ready = situation.free_seconds[0] + forecast.margin_seconds
    hopeful = [d for d in situation.interactive if d > ready + forecast.table[1]]
    hopeful_batch = [d for d in situation.batch if d > ready + forecast.table[1]]
    possible = min(len(hopeful) + len(hopeful_batch), forecast.max_batch)
    assert cut.interactive[0] == len(situation.interactive) - len(hopeful)
    assert cut.hopeless_batch == len(situation.batch) - len(hopeful_batch)
    assert (cut.size > 0) == (possible > 0), "a worker idles while something can be done in time"
    assert all(deadline >= ready + forecast.table[cut.size] for deadline in first + riders)
    if not cut.size:
        return
    tightest = hopeful[0] if hopeful else hopeful_batch[0]
    allowed = max(n for n in range(1, possible + 1) if ready + forecast.table[n] <= tightest)
    assert cut.limited == (allowed < possible)
    passed_over = cut.batch[0] - cut.hopeless_batch
    assert allowed - passed_over <= cut.size <= allowed
    if not passed_over:
        assert cut.size == allowed, "the batch could be larger"
    owed = int(situation.owed_rows + allowed * BATCH_PRIORITY_SHARE)
    if len(riders) > max(owed, 0):
        assert first == hopeful, "batch priority took more than its share while interactive pictures waited"


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 16), st.integers(1, 40), st.integers(0, 30))
def test_batch_priority_leaves_within_its_bound_whatever_comes(max_batch: int, waiting: int, flood: int) -> None:
    forecast = Forecast([0.0] + [1.0] * max_batch, 0.0)
    batch, owed, rows = [float(1000 + i) for i in range(waiting)], 0.0, 0
    left_after: list[int] = []
    while batch:
        situation = Situation([500.0] * (max_batch + flood), batch, owed, [0.0])
        cut = next_batch(situation, forecast)
        rows += cut.size
        left_after += [rows] * (cut.batch[1] - cut.batch[0])
        del batch[slice(*cut.batch)]
        owed = cut.owed_rows(owed, still_waiting=bool(batch))
    for ahead, seen in enumerate(left_after):
        assert seen <= 8 * (ahead + 1) + max_batch
        assert seen >= 8 * ahead, "more than its share, while interactive pictures waited"


def play(situation: Situation, forecast: Forecast) -> tuple[list[float], list[float]]:
    """The deadlines of both lines that are never met, by dispatching for real."""
    lines = list(situation.interactive), list(situation.batch)
    owed, free = situation.owed_rows, sorted(situation.free_seconds)
    lost: tuple[list[float], list[float]] = ([], [])
    while any(lines):
        cut = next_batch(Situation(*lines, owed, free), forecast)
        lost[0].extend(lines[0][: cut.interactive[0]])
        lost[1].extend(lines[1][: cut.batch[0]])
        del lines[0][: cut.interactive[1]], lines[1][: cut.batch[1]]
        owed = cut.owed_rows(owed, still_waiting=bool(lines[1]))
        free = sorted([free[0] + forecast.table[cut.size], *free[1:]])
    return lost


@settings(max_examples=300, deadline=None)
@given(SITUATIONS, FORECASTS, st.integers(0, 40))
def test_what_is_foreseen_for_bulk_work_is_what_happens(situation: Situation, forecast: Forecast, place: int) -> None:
    if not situation.batch:
        return
    place %= len(situation.batch)
    seen = foresee(situation, forecast, interactive=False, place=place)
    lost = play(situation, forecast)
    assert seen.lost + (seen.size == 0) == len(lost[0]) + len(lost[1])


@settings(max_examples=300, deadline=None)
@given(SITUATIONS, FORECASTS, st.integers(0, 40))
def test_interactive_work_that_is_foreseen_in_time_is_so_with_the_share_of_bulk_work_taken(
    situation: Situation, forecast: Forecast, place: int
) -> None:
    if not situation.interactive:
        return
    place %= len(situation.interactive)
    seen = foresee(situation, forecast, interactive=True, place=place)
    lost = play(situation, forecast)
    assert seen.lost + (seen.size == 0) >= len(lost[0])
    if seen.size:
        assert seen.start_seconds + forecast.table[seen.size] + forecast.margin_seconds <= situation.interactive[place]
    if seen.leads:
        assert seen.start_seconds >= situation.free_seconds[0]


def test_beyond_the_horizon_full_batches_are_assumed() -> None:
    forecast = Forecast([0.0, 1.0, 2.0], 0.0)
    deadlines = [1e9] * 10_000
    seen = foresee(Situation(deadlines, [], 0.0, [0.0]), forecast, interactive=True, place=9_999)
    assert (seen.lost, seen.size) == (0, 2)
    assert 10_000 <= seen.start_seconds + 2.0 <= 10_000 * 8 / 7 + 2.0
