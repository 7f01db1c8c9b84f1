"""The batcher under traffic: Poisson arrivals, noisy and failing batches, all in virtual time.

The model takes 40 + 10 * N milliseconds for N pictures, 80 pictures per second in full batches of 16.
"""

import asyncio
import random
from collections.abc import Callable

import pytest
import virtual
from hypothesis import given, settings
from hypothesis import strategies as st
from virtual import Outcome, World, poisson

from service.batching.policy import BATCH_PRIORITY_SHARE
from service.core.types import Priority

CAPACITY = 80.0
FULL_SECONDS = 0.2
DEADLINE_SECONDS = 0.8
WARM_SECONDS = 2.0


def line(size: int) -> float:
    return 0.04 + 0.01 * size


def noisy(seconds: Callable[[int, float], float] = lambda size, now: line(size)) -> Callable[[int, float], float]:
    """The same with a standard deviation of a tenth."""
    generator = random.Random(11)
    return lambda size, now: seconds(size, now) * max(0.5, generator.gauss(1.0, 0.1))


def answered_per_second(world: World, since: float, until: float) -> float:
    return sum(o.kind == "answered" and since <= o.done < until for o in world.outcomes) / (until - since)


@pytest.mark.parametrize(("workers", "batches_per_worker"), [(1, 1), (1, 2), (2, 2)])
def test_at_twice_the_capacity_nine_tenths_of_it_are_answered_in_time(workers: int, batches_per_worker: int) -> None:
    async def play() -> None:
        world = World(service=noisy(), workers=workers, batches_per_worker=batches_per_worker)
        capacity = workers * CAPACITY
        await world.arrive(poisson(2 * capacity, seconds=12, seed=1), lambda: DEADLINE_SECONDS)
        assert answered_per_second(world, WARM_SECONDS, 12) >= 0.9 * capacity
        assert sum(size for _, size in world.batches) / len(world.batches) > 14, "batches became small"
        # An accepted call may be late by no more than the batches before it and its own were mispredicted.
        error = max(abs(predicted - spent) for predicted, spent in world.errors if predicted)
        for late in (o for o in world.outcomes if o.kind == "late" and o.came > WARM_SECONDS):
            finished = world.finished.get(late.request_id)
            assert finished is not None, "accepted, then left to expire in the queue"
            assert finished - late.deadline <= (batches_per_worker + 1) * error
        assert world.late_refusals < 0.02 * len(world.outcomes)

    virtual.run(play())


@pytest.mark.parametrize("share", [0.5, 0.8, 1.0])
def test_two_gateways_before_the_same_workers_answer_as_much_as_one(share: float) -> None:
    """Each counts with all workers and sends one batch to each; `share` of the connections are with the first."""

    async def play() -> None:
        first = World(service=noisy(), workers=4, batches_per_worker=1)
        second = World(service=noisy(), workers=4, batches_per_worker=1, beside=first)
        rates = 2 * 4 * CAPACITY * share, 2 * 4 * CAPACITY * (1 - share)
        async with asyncio.TaskGroup() as group:
            for seed, (world, rate) in enumerate(zip((first, second), rates, strict=True)):
                if rate:
                    times = poisson(rate, seconds=8, seed=seed)
                    group.create_task(world.arrive(times, lambda: DEADLINE_SECONDS))
        worlds = first, second
        assert sum(answered_per_second(world, WARM_SECONDS, 8) for world in worlds) >= 0.9 * 4 * CAPACITY
        outcomes = [outcome for world in worlds for outcome in world.outcomes]
        assert sum(world.late_refusals for world in worlds) < 0.02 * len(outcomes)
        assert sum(o.kind == "late" for o in outcomes if o.came > WARM_SECONDS) < 0.02 * len(outcomes)

    virtual.run(play())


def test_without_noise_every_promise_is_kept() -> None:
    async def play() -> None:
        world = World(service=lambda size, now: line(size))
        generator = random.Random(3)
        await world.arrive(poisson(2 * CAPACITY, seconds=12, seed=2), lambda: generator.choice((0.5, 0.8, 1.6)))
        kinds = world.kinds(since=WARM_SECONDS)
        assert kinds["late"] == 0
        assert answered_per_second(world, WARM_SECONDS, 12) >= 0.9 * CAPACITY

    virtual.run(play())


@pytest.mark.parametrize("load", [0.3, 0.7])
def test_under_its_capacity_nothing_is_refused_and_nothing_late(load: float) -> None:
    async def play() -> None:
        world = World(service=noisy())
        await world.arrive(poisson(load * CAPACITY, seconds=20, seed=4), lambda: DEADLINE_SECONDS)
        assert set(world.kinds()) == {"answered"}

    virtual.run(play())


def test_refusals_come_at_once_and_a_burst_is_served_as_far_as_it_fits() -> None:
    async def play() -> None:
        world = World(service=lambda size, now: line(size))
        for _ in range(3):
            await asyncio.gather(*(world.call(10.0) for _ in range(16)))
        world.outcomes.clear()
        await asyncio.gather(*(world.call(1.0) for _ in range(500)))
        kinds = world.kinds()
        assert kinds["late"] == 0
        assert kinds["answered"] >= 3 * 16  # in one second five full batches, less the margins
        for outcome in world.outcomes:
            assert outcome.kind == "answered" or outcome.done == outcome.came

    virtual.run(play())


@pytest.mark.parametrize("decode_seconds", [0.01, 0.05])
def test_promises_are_kept_to_a_burst_whose_pictures_are_decoded_at_the_same_time(decode_seconds: float) -> None:
    """All of the burst is admitted before one of it is in the queue: `submit` has to look again."""

    async def play() -> None:
        world = World(service=lambda size, now: line(size), decode_seconds=decode_seconds)
        for _ in range(3):
            await asyncio.gather(*(world.call(10.0) for _ in range(16)))
        world.outcomes.clear()
        await asyncio.gather(*(world.call(1.0) for _ in range(120)))
        kinds = world.kinds()
        assert kinds["late"] == world.late_refusals == 0
        assert kinds["answered"] >= 3 * 16

    virtual.run(play())


def test_one_slow_batch_costs_no_more_than_itself() -> None:
    async def play() -> None:
        world = World(service=lambda size, now: 3.0 if 5.0 <= now < 5.2 else line(size))
        await world.arrive(poisson(0.5 * CAPACITY, seconds=14, seed=5), lambda: DEADLINE_SECONDS)
        slow = next(time for time, _ in world.batches if time >= 5.0)
        assert set(world.kinds(since=slow + 3.0 + FULL_SECONDS)) == {"answered"}
        # While it hangs, callers are told at once instead of waiting for their deadline.
        waiting = [o for o in world.outcomes if slow + 1.0 <= o.came < slow + 2.0]
        assert {o.kind for o in waiting} == {"unreachable"}
        assert all(o.done == o.came for o in waiting)

    virtual.run(play())


def test_a_model_three_times_slower_is_followed_within_a_few_batches_both_ways() -> None:
    async def play() -> None:
        world = World(service=noisy(lambda size, now: line(size) * (3 if 6 <= now < 18 else 1)))
        await world.arrive(poisson(CAPACITY, seconds=24, seed=6), lambda: 2.0)
        slow = sorted(spent / predicted for predicted, spent in world.errors[4:] if predicted)
        assert sum(ratio > 2 for ratio in slow) <= 4, "slow batches kept surprising"
        assert sum(ratio < 0.5 for ratio in slow) <= 4, "fast batches kept surprising"
        # A new speed costs what was promised at the old one; three full slow batches later all is well again.
        assert answered_per_second(world, 6 + 9 * FULL_SECONDS, 18) >= 0.8 * CAPACITY / 3
        assert answered_per_second(world, 18 + 9 * FULL_SECONDS, 24) >= 0.85 * CAPACITY
        late = [o for o in world.outcomes if o.kind == "late" and 6 + 12 * FULL_SECONDS < o.came < 17]
        assert len(late) <= 0.05 * sum(o.kind == "answered" for o in world.outcomes)

    virtual.run(play())


def test_a_cold_start_does_not_shut_the_door_for_good() -> None:
    async def play() -> None:
        seen: list[int] = []

        def cold(size: int, now: float) -> float:
            seen.append(size)
            return 2.0 if len(seen) <= 5 else line(size)

        world = World(service=cold)
        await world.arrive(poisson(0.5 * CAPACITY, seconds=20, seed=7), lambda: DEADLINE_SECONDS)
        warm = world.batches[5][0]
        assert set(world.kinds(since=warm + 2.0)) == {"answered"}

    virtual.run(play())


def test_batch_priority_gets_its_share_under_an_interactive_flood_and_no_more() -> None:
    async def play() -> None:
        world = World(service=noisy())
        await asyncio.gather(
            world.arrive(poisson(2 * CAPACITY, seconds=14, seed=8), lambda: DEADLINE_SECONDS),
            world.arrive(poisson(CAPACITY, seconds=14, seed=9), lambda: 8.0, priority=Priority.BATCH),
        )
        sent = [job for jobs in world.sent for job in jobs if WARM_SECONDS < world.finished[job.request_id] < 14]
        rows = [job.priority for job in sent]
        share = rows.count(Priority.BATCH) / len(rows)
        assert 0.9 * BATCH_PRIORITY_SHARE <= share <= 1.5 * BATCH_PRIORITY_SHARE
        assert answered_per_second(world, WARM_SECONDS, 14) >= 0.9 * CAPACITY

    virtual.run(play())


def test_a_flood_of_batch_priority_turns_no_interactive_call_away() -> None:
    async def play() -> None:
        world = World(service=noisy())
        await asyncio.gather(
            world.arrive(poisson(0.3 * CAPACITY, seconds=12, seed=8), lambda: DEADLINE_SECONDS),
            world.arrive(poisson(2 * CAPACITY, seconds=12, seed=9), lambda: 5.0, priority=Priority.BATCH),
        )
        assert set(world.kinds(since=WARM_SECONDS, priority=Priority.INTERACTIVE)) == {"answered"}
        assert answered_per_second(world, WARM_SECONDS, 12) >= 0.95 * CAPACITY

    virtual.run(play())


CALLS = st.lists(
    st.tuples(
        st.floats(0, 0.2),  # seconds since the call before
        st.floats(0.01, 2.0),  # time it is given
        st.sampled_from(Priority),
        st.floats(0, 3.0),  # hangs up after
    ),
    max_size=60,
)


@settings(max_examples=60, deadline=None)
@given(
    calls=CALLS,
    workers=st.integers(1, 2),
    batches_per_worker=st.integers(1, 2),
    seconds=st.lists(st.floats(0.001, 1.0), min_size=1, max_size=6),
)
def test_every_call_ends_once_and_in_time_whatever_comes(
    calls: list[tuple[float, float, Priority, float]], workers: int, batches_per_worker: int, seconds: list[float]
) -> None:
    async def play() -> None:
        world = World(
            service=lambda size, now: seconds[(size + int(now * 10)) % len(seconds)],
            max_batch=4,
            workers=workers,
            batches_per_worker=batches_per_worker,
            max_queue=8,
        )
        tasks: list[asyncio.Task[Outcome]] = []
        for gap, within, priority, patience in calls:
            await asyncio.sleep(gap)
            task = asyncio.ensure_future(world.call(within, priority))
            asyncio.get_running_loop().call_later(patience, task.cancel)
            tasks.append(task)
            assert world.batcher.queue_length <= 16
        await asyncio.gather(*tasks, return_exceptions=True)
        await world.batcher.close()
        names = [job.request_id for jobs in world.sent for job in jobs]
        assert len(names) == len(set(names)), "a picture was sent twice"
        assert world.batcher.queue_length == 0
        for outcome in world.outcomes:
            assert outcome.kind != "open"
            assert outcome.done <= outcome.deadline + 1e-6

    virtual.run(play())
