"""The policy on numbers: each plan against what it could have been, and the simulation against playing it out."""

from hypothesis import example, given, settings
from hypothesis import strategies as st

from service.batching.policy import BATCH_PRIORITY_SHARE, BatchPlan, LatencyTable, QueueState, next_batch, simulate

DEADLINES = st.lists(st.integers(0, 20).map(float), max_size=8).map(sorted)  # 16 batches: the horizon
SECONDS = st.lists(st.integers(0, 5), min_size=1, max_size=8).map(
    lambda steps: [0.0] + [float(1 + sum(steps[: i + 1])) for i in range(len(steps))]
)
TABLES = st.builds(LatencyTable, SECONDS, st.integers(0, 2).map(float))
STATES = st.builds(
    QueueState,
    DEADLINES,
    DEADLINES,
    st.floats(0, 2),
    st.lists(st.integers(0, 10).map(float), min_size=1, max_size=3).map(sorted),
)


def taken(state: QueueState, plan: BatchPlan) -> tuple[list[float], list[float]]:
    return [state.interactive[place] for place in plan.interactive], [state.batch[place] for place in plan.batch]


@settings(max_examples=500, deadline=None)
@given(STATES, TABLES)
def test_a_batch_is_in_time_as_large_as_possible_and_leaves_out_only_the_hopeless(
    state: QueueState, latency: LatencyTable
) -> None:
    plan = next_batch(state, latency)
    first, from_batch = taken(state, plan)
    ready = state.free_at[0] + latency.margin_seconds
    hopeful = [d for d in state.interactive if d > ready + latency.seconds[1]]
    hopeful_batch = [d for d in state.batch if d > ready + latency.seconds[1]]
    possible = min(len(hopeful) + len(hopeful_batch), latency.max_batch)
    assert plan.interactive.start == len(state.interactive) - len(hopeful)
    assert plan.hopeless_batch == len(state.batch) - len(hopeful_batch)
    assert (plan.size > 0) == (possible > 0), "a worker idles while something can be done in time"
    assert all(deadline >= ready + latency.seconds[plan.size] for deadline in first + from_batch)
    if not plan.size:
        return
    tightest = hopeful[0] if hopeful else hopeful_batch[0]
    allowed = max(n for n in range(1, possible + 1) if ready + latency.seconds[n] <= tightest)
    assert plan.limited == (allowed < possible)
    passed_over = plan.batch.start - plan.hopeless_batch
    assert allowed - passed_over <= plan.size <= allowed
    if not passed_over:
        assert plan.size == allowed, "the batch could be larger"
    owed = int(state.owed_rows + allowed * BATCH_PRIORITY_SHARE)
    if len(from_batch) > max(owed, 0):
        assert first == hopeful, "batch priority took more than its share while interactive pictures waited"


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 16), st.integers(1, 40), st.integers(0, 30))
def test_batch_priority_leaves_within_its_bound_whatever_comes(max_batch: int, waiting: int, flood: int) -> None:
    latency = LatencyTable([0.0] + [1.0] * max_batch, 0.0)
    batch, owed, rows = [float(1000 + i) for i in range(waiting)], 0.0, 0
    left_after: list[int] = []
    while batch:
        state = QueueState([500.0] * (max_batch + flood), batch, owed, [0.0])
        plan = next_batch(state, latency)
        rows += plan.size
        left_after += [rows] * len(plan.batch)
        del batch[plan.batch.start : plan.batch.stop]
        owed = plan.owed_rows(owed, still_waiting=bool(batch))
    for ahead, seen in enumerate(left_after):
        assert seen <= 8 * (ahead + 1) + max_batch
        assert seen >= 8 * ahead, "more than its share, while interactive pictures waited"


def play(state: QueueState, latency: LatencyTable) -> tuple[list[float], list[float]]:
    """The deadlines of both queues that are never met, by dispatching for real."""
    interactive, batch = list(state.interactive), list(state.batch)
    owed, free = state.owed_rows, sorted(state.free_at)
    lost: tuple[list[float], list[float]] = ([], [])
    while interactive or batch:
        plan = next_batch(QueueState(interactive, batch, owed, free), latency)
        lost[0].extend(interactive[: plan.interactive.start])
        lost[1].extend(batch[: plan.batch.start])
        del interactive[: plan.interactive.stop], batch[: plan.batch.stop]
        owed = plan.owed_rows(owed, still_waiting=bool(batch))
        free = sorted([free[0] + latency.seconds[plan.size], *free[1:]])
    return lost


@settings(max_examples=300, deadline=None)
@given(STATES, TABLES, st.integers(0, 40))
def test_what_is_simulated_for_batch_priority_is_what_happens(
    state: QueueState, latency: LatencyTable, place: int
) -> None:
    if not state.batch:
        return
    place %= len(state.batch)
    simulated = simulate(state, latency, interactive=False, place=place)
    lost = play(state, latency)
    assert simulated.lost + (simulated.size == 0) == len(lost[0]) + len(lost[1])


@settings(max_examples=300, deadline=None)
@given(STATES, TABLES, st.integers(0, 40))
# The time that batch priority may take makes the second batch smaller, and so in time. Without it, the second batch
# has two pictures and ends when the last picture's deadline has passed.
@example(QueueState([2.0, 6.0, 6.0, 6.0], [], 0.0, [0.0]), LatencyTable([0.0, 1.0, 5.0], 0.0), 0)
@example(QueueState([2.0, 6.0, 6.0, 6.0], [], 0.0, [0.0]), LatencyTable([0.0, 1.0, 5.0], 0.0), 3)
@example(QueueState([0.0, 6.0, 6.0, 6.0, 9.0], [5.0], 0.0, [0.0]), LatencyTable([0.0, 1.0, 5.0], 1.0), 0)
def test_interactive_pictures_simulated_in_time_are_in_time_if_no_batch_priority_arrives(
    state: QueueState, latency: LatencyTable, place: int
) -> None:
    if not state.interactive:
        return
    place %= len(state.interactive)
    simulated = simulate(state, latency, interactive=True, place=place)
    lost = play(state, latency)
    assert simulated.lost + (simulated.size == 0) >= len(lost[0])
    if simulated.size:
        answered_at = simulated.start_at + latency.seconds[simulated.size] + latency.margin_seconds
        assert answered_at <= state.interactive[place]
    if simulated.leads:
        assert simulated.start_at >= state.free_at[0]


def test_the_simulation_reserves_the_share_of_batch_priority_for_interactive_pictures() -> None:
    latency = LatencyTable([0.0, 1.0], 0.0)
    state = QueueState([10.0, 10.0, 10.0], [], 0.0, [0.0])
    last = simulate(state, latency, interactive=True, place=2)
    assert (last.lost, last.size) == (0, 1)
    assert abs(last.start_at - 2 * 8 / 7) < 1e-9
    tight = QueueState([3.1, 3.1, 3.1], [], 0.0, [0.0])  # in time only if no batch priority arrives
    assert simulate(tight, latency, interactive=True, place=2).size == 0


def test_full_batches_are_assumed_beyond_the_horizon() -> None:
    latency = LatencyTable([0.0, 1.0, 2.0], 0.0)
    deadlines = [1e9] * 10_000
    simulated = simulate(QueueState(deadlines, [], 0.0, [0.0]), latency, interactive=True, place=9_999)
    assert (simulated.lost, simulated.size) == (0, 2)
    assert 10_000 <= simulated.start_at + 2.0 <= 10_000 * 8 / 7 + 2.0
