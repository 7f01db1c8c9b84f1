"""Several callers share the queue of one model: shares, bounds and promises, in virtual time.

The model takes 40 + 10 * N milliseconds for N pictures, 80 pictures per second in full batches of 16.
"""

import asyncio
import random
from collections import Counter

import pytest
import virtual
from hypothesis import given, settings
from hypothesis import strategies as st
from virtual import World, poisson

from service.core.callers import SHARED_SECONDS
from service.core.types import Priority

CAPACITY = 80.0
SECONDS = 12.0
WARM_SECONDS = 3.0


def line(size: int, now: float = 0.0) -> float:
    return 0.04 + 0.01 * size


def rate_of(world: World, caller: str) -> float:
    kinds = Counter(o.kind for o in world.outcomes if o.caller == caller and o.came > WARM_SECONDS)
    return kinds["answered"] / (SECONDS - WARM_SECONDS)


async def traffic(world: World, *callers: tuple[str, float, float]) -> None:
    """Poisson calls of each (caller, calls per second, deadline)."""
    await asyncio.gather(
        *(
            world.arrive(poisson(rate, seconds=SECONDS, seed=seed), lambda within=within: within, caller=caller)
            for seed, (caller, rate, within) in enumerate(callers)
        )
    )


DEADLINES = [(0.8, 0.8), (10.0, 10.0), (10.0, 0.8), (0.8, 10.0), (2.0, 10.0), (0.3, 10.0)]


@pytest.mark.parametrize(("flood_within", "modest_within"), DEADLINES)
def test_a_modest_caller_beside_a_flood_is_answered_and_the_flood_gets_the_rest(
    flood_within: float, modest_within: float
) -> None:
    async def play() -> None:
        world = World(service=line)
        await traffic(world, ("flood", 2 * CAPACITY, flood_within), ("modest", 0.2 * CAPACITY, modest_within))
        asked = sum(o.caller == "modest" and o.came > WARM_SECONDS for o in world.outcomes) / (SECONDS - WARM_SECONDS)
        assert rate_of(world, "modest") >= 0.9 * asked
        if flood_within > 0.5:  # shorter deadlines make small batches
            assert rate_of(world, "modest") + rate_of(world, "flood") >= 0.9 * CAPACITY

    virtual.run(play())


@pytest.mark.parametrize(("first_within", "second_within"), DEADLINES[:-1])
def test_two_floods_get_a_quarter_each_at_least_whatever_their_rates_and_deadlines(
    first_within: float, second_within: float
) -> None:
    async def play() -> None:
        world = World(service=line)
        await traffic(world, ("first", 2 * CAPACITY, first_within), ("second", CAPACITY, second_within))
        first, second = rate_of(world, "first"), rate_of(world, "second")
        assert first + second >= 0.9 * CAPACITY
        assert min(first, second) >= 0.25 * CAPACITY

    virtual.run(play())


def test_batch_priority_is_shared_too() -> None:
    async def play() -> None:
        world = World(service=line)
        await asyncio.gather(
            *(
                world.arrive(poisson(rate, seconds=SECONDS, seed=8), lambda: 20.0, priority, caller)
                for caller, rate, priority in (
                    ("web", 0.5 * CAPACITY, Priority.INTERACTIVE),
                    ("flood", 4 * CAPACITY, Priority.BATCH),
                    ("modest", 0.1 * CAPACITY, Priority.BATCH),
                )
            )
        )
        asked = sum(o.caller == "modest" and o.came > WARM_SECONDS for o in world.outcomes) / (SECONDS - WARM_SECONDS)
        assert rate_of(world, "modest") >= 0.9 * asked
        assert {o.kind for o in world.outcomes if o.caller == "web"} == {"answered"}

    virtual.run(play())


def test_one_caller_alone_has_the_whole_queue_and_again_when_the_other_has_gone() -> None:
    async def play() -> None:
        world = World(service=lambda size, now: 1000.0, max_batch=1, batches_per_worker=1, max_queue=8)

        async def burst(caller: str) -> int:
            """How many of ten calls are in the queue after them."""
            calls = [asyncio.ensure_future(world.call(5.0, caller=caller)) for _ in range(10)]
            await asyncio.sleep(1.0)
            waiting = world.batcher.queue_length
            await asyncio.gather(*calls)
            return waiting

        assert await burst("a") == 8  # and one runs
        assert await burst("b") == 4
        assert await burst("b") == 4
        await asyncio.sleep(SHARED_SECONDS)
        assert await burst("b") == 8

    virtual.run(play())


CALLS = st.lists(
    st.tuples(
        st.floats(0, 0.2),  # seconds since the call before
        st.floats(0.05, 4.0),  # time it is given
        st.sampled_from(Priority),
        st.sampled_from("aaaabc"),
    ),
    max_size=80,
)


@settings(max_examples=25, deadline=None)
@given(calls=CALLS, workers=st.integers(1, 2), decode_seconds=st.sampled_from([0.0, 0.03]))
def test_no_caller_has_more_than_half_of_a_shared_queue_and_every_call_ends_in_time(
    calls: list[tuple[float, float, Priority, str]], workers: int, decode_seconds: float
) -> None:
    async def play() -> None:
        world = World(service=line, max_batch=2, workers=workers, max_queue=8, decode_seconds=decode_seconds)
        tasks = [asyncio.ensure_future(world.call(9.0, priority, caller)) for priority in Priority for caller in "ab"]
        for gap, within, priority, caller in calls:
            await asyncio.sleep(gap)
            tasks.append(asyncio.ensure_future(world.call(within, priority, caller)))
            for queue in (world.batcher._interactive, world.batcher._batch):
                waiting = Counter(entry.job.caller for entry in queue.items)
                assert sum(waiting.values()) <= 8
                assert max(waiting.values(), default=0) <= 4
                assert queue.deadlines == sorted(queue.deadlines)
        await asyncio.gather(*tasks)
        names = [job.request_id for jobs in world.sent for job in jobs]
        assert len(names) == len(set(names)), "a picture was sent twice"
        assert all(o.kind != "open" and o.done <= o.deadline + 1e-6 for o in world.outcomes)

    virtual.run(play())


def test_no_call_is_late_and_fewer_are_refused_late_than_if_one_caller_had_made_them_all() -> None:
    def late_refusals(seed: int, *, named: bool) -> int:
        async def play() -> int:
            world = World(service=line)
            generator = random.Random(seed)
            rates = [generator.choice((0.1, 1.0, 3.0)) * CAPACITY for _ in range(3)]
            await asyncio.gather(
                *(
                    world.arrive(
                        poisson(rate, seconds=6, seed=seed + number),
                        lambda: generator.choice((0.5, 0.8, 1.6, 10.0)),
                        caller=f"caller {number}" if named else "",
                    )
                    for number, rate in enumerate(rates)
                )
            )
            assert world.kinds(since=2.0)["late"] == 0
            return world.late_refusals

        result: int = virtual.run(play())
        return result

    seeds = range(100, 106)
    assert sum(late_refusals(seed, named=True) for seed in seeds) <= sum(
        late_refusals(seed, named=False) for seed in seeds
    )


@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 1000))
def test_one_caller_with_a_name_is_served_exactly_as_one_without(seed: int) -> None:
    def outcomes(caller: str) -> tuple[list[tuple[str, float]], list[list[str]]]:
        async def play() -> tuple[list[tuple[str, float]], list[list[str]]]:
            world = World(service=line)
            generator = random.Random(seed)
            await world.arrive(
                poisson(2 * CAPACITY, seconds=4, seed=seed), lambda: generator.choice((0.3, 0.8, 10.0)), caller=caller
            )
            sent = [[job.request_id for job in jobs] for jobs in world.sent]
            for jobs in world.sent:
                due = [job.deadline_at for job in jobs]
                assert due == sorted(due), "the earliest deadline goes first"
            return [(o.kind, o.done) for o in world.outcomes], sent

        result: tuple[list[tuple[str, float]], list[list[str]]] = virtual.run(play())
        return result

    assert outcomes("somebody") == outcomes("")


def test_a_picture_that_misses_its_fair_place_keeps_its_deadline() -> None:
    async def play() -> None:
        slow = False
        world = World(service=lambda size, now: 30.0 if slow else line(size), max_queue=16)
        for _ in range(4):
            await asyncio.gather(*(world.call(10.0, caller=caller) for caller in "ab" for _ in range(4)))
        slow = True
        first = asyncio.ensure_future(world.call(100.0, caller="a"))
        await asyncio.sleep(0.01)
        second = asyncio.ensure_future(world.call(100.0, caller="b"))
        await asyncio.sleep(0.01)
        slow = False
        assert (await first).kind == (await second).kind == "answered"
        assert world.late_refusals == 0

    virtual.run(play())
