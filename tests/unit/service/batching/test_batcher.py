"""The batcher, driven by hand: batches, slots, callers that go away, failures, the end."""

import asyncio

import pytest
from batcher_bench import Bench, settle
from hypothesis import given, settings
from hypothesis import strategies as st

from service.core.errors import BackendUnavailable, Bug, DeadlineExceeded, QueueFull, ShuttingDown
from service.core.types import Prediction, Priority


async def test_a_lone_picture_leaves_at_once() -> None:
    bench = Bench()
    answer = bench.submit("a")
    await settle()
    assert bench.dispatched == [(1, "idle")]
    await bench.finish()
    row = await answer
    assert (row.batch_size, row.queue_seconds, row.transport_seconds, row.inference_seconds) == (1, 0.0, 0.25, 0.5)


async def test_pictures_of_the_same_turn_share_a_batch() -> None:
    bench = Bench()
    answers = [bench.submit(name) for name in "abc"]
    await settle()
    assert await bench.finish() == ["a", "b", "c"]
    rows = await asyncio.gather(*answers)
    assert [row.outputs["scores"][0] for row in rows] == [0.0, 1.0, 2.0]


@pytest.mark.parametrize(
    ("micro_batch", "deadline", "sizes"),
    [
        (0, 12.0, [8, 1]),
        (2, 12.0, [2, 2, 2, 2, 1]),
        (4, 12.0, [4, 4, 1]),
        (16, 12.0, [8, 1]),
        (1, 1000.0, [4, 4, 1]),
        (2, 1000.0, [8, 1]),
    ],
)
async def test_a_full_batch_is_one_micro_batch_or_four_where_no_deadline_is_near(
    micro_batch: int, deadline: float, sizes: list[int]
) -> None:
    bench = Bench(max_batch=8)
    answers = [bench.submit("first", deadline=deadline)]
    await settle()
    answers += [bench.submit(name, deadline=deadline) for name in "abcdefghi"]
    while bench.running:
        bench.now += len(bench.running[0][0])
        await bench.finish(micro_batch=micro_batch)
    await asyncio.gather(*answers)
    assert [size for size, _ in bench.dispatched] == [1, *sizes]
    assert [reason for size, reason in bench.dispatched if size > 1] == ["full"] * (len(sizes) - 1)


async def test_what_waited_leaves_together_when_a_slot_is_free_and_no_batch_is_too_large() -> None:
    bench = Bench(max_batch=2)
    answers = [bench.submit("first")]
    await settle()
    bench.now = 1.0
    answers += [bench.submit(name) for name in "abc"]
    await settle()
    assert len(bench.running) == 1
    assert bench.batcher.queue_length == 3
    bench.now = 3.0
    assert bench.batcher.queue_age_seconds() == 2.0
    assert bench.batcher.oldest_batch_seconds() == 3.0
    await bench.finish()
    assert await bench.finish() == ["a", "b"]
    assert await bench.finish() == ["c"]
    assert bench.dispatched == [(1, "idle"), (2, "full"), (1, "idle")]
    assert (await answers[1]).queue_seconds == 2.0
    await asyncio.gather(*answers)


async def test_the_earliest_deadline_goes_first() -> None:
    bench = Bench(max_batch=1)
    answers = [bench.submit("busy")]
    await settle()
    answers += [bench.submit("late", deadline=30), bench.submit("soon", deadline=10), bench.submit("mid", deadline=20)]
    await settle()
    order = [await bench.finish() for _ in range(4)]
    assert order == [["busy"], ["soon"], ["mid"], ["late"]]
    await asyncio.gather(*answers)


async def test_as_many_batches_run_as_there_are_slots() -> None:
    bench = Bench(max_batch=1, workers=2)
    answers = [bench.submit(name) for name in "abc"]
    await settle()
    assert len(bench.running) == 2
    for _ in range(3):
        await bench.finish()
    await asyncio.gather(*answers)


async def test_a_caller_that_goes_away_leaves_the_queue() -> None:
    bench = Bench(max_batch=4)
    busy = bench.submit("busy")
    await settle()
    gone, stays = bench.submit("gone"), bench.submit("stays")
    await settle()
    gone.cancel()
    await settle()
    assert bench.batcher.queue_length == 1
    await bench.finish()
    assert await bench.finish() == ["stays"]
    await asyncio.gather(busy, stays)


async def test_a_caller_that_goes_away_during_the_batch_does_not_disturb_the_others() -> None:
    bench = Bench()
    gone, stays = bench.submit("gone"), bench.submit("stays")
    await settle()
    gone.cancel()
    await bench.finish()
    assert (await stays).outputs["scores"][0] == 1.0


async def test_a_deadline_that_passed_in_the_queue_costs_no_work() -> None:
    bench = Bench()
    busy = bench.submit("busy")
    await settle()
    late = bench.submit("late", deadline=5.0)
    await settle()
    bench.now = 5.0
    await bench.finish()
    with pytest.raises(DeadlineExceeded):
        await late
    assert bench.running == []
    await busy


async def test_a_deadline_already_passed_is_not_queued() -> None:
    bench = Bench()
    with pytest.raises(DeadlineExceeded):
        await bench.submit("late", deadline=0.0)
    await settle()
    assert bench.dispatched == []


async def test_a_full_queue_refuses_and_says_when_to_come_back() -> None:
    bench = Bench(max_batch=1, max_queue=2)
    answers = [bench.submit("timed")]
    await settle()
    bench.now = 2.0
    await bench.finish()  # batches are now known to take 2 s
    answers += [bench.submit("busy")]
    await settle()
    answers += [bench.submit("a"), bench.submit("b")]
    await settle()
    with pytest.raises(QueueFull) as refused:
        await bench.submit("c")
    assert refused.value.retry_after_seconds == pytest.approx(4.0)
    for _ in range(3):
        await bench.finish()
    await asyncio.gather(*answers)


async def test_what_an_idle_slot_can_take_does_not_fill_the_queue() -> None:
    bench = Bench(max_batch=1, workers=2, max_queue=1)
    answers = [bench.submit(name) for name in "abc"]
    await settle()
    for _ in range(3):
        await bench.finish()
    await asyncio.gather(*answers)


async def test_a_failed_batch_fails_its_callers_and_only_them() -> None:
    bench = Bench(max_batch=2)
    a, b, c = bench.submit("a"), bench.submit("b"), bench.submit("c")
    await settle()
    await bench.finish(error=BackendUnavailable("died"))
    await bench.finish()
    for failed in (a, b):
        with pytest.raises(BackendUnavailable):
            await failed
    assert (await c).batch_size == 1


async def test_a_wrong_number_of_rows_is_a_bug_not_a_hang() -> None:
    bench = Bench()
    a, b = bench.submit("a"), bench.submit("b")
    await settle()
    await bench.finish(rows=1)
    for failed in (a, b):
        with pytest.raises(Bug):
            await failed


async def test_closing_refuses_what_waits_and_finishes_what_runs() -> None:
    bench = Bench()
    runs = bench.submit("runs")
    await settle()
    waits = bench.submit("waits")
    await settle()
    closing = asyncio.ensure_future(bench.batcher.close())
    await settle()
    assert not closing.done()
    await bench.finish()
    await closing
    assert (await runs).batch_size == 1
    with pytest.raises(ShuttingDown):
        await waits
    with pytest.raises(ShuttingDown):
        await bench.submit("later")


_STEPS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["submit", "bulk"]), st.integers(1, 30)),
        st.tuples(st.just("finish"), st.just(0)),
        st.tuples(st.just("cancel"), st.integers(0, 20)),
        st.tuples(st.just("tick"), st.integers(1, 10)),
    ),
    max_size=60,
)


@settings(max_examples=200, deadline=None)
@given(
    steps=_STEPS,
    max_batch=st.integers(1, 4),
    workers=st.integers(1, 3),
    batches_per_worker=st.integers(1, 2),
    max_queue=st.integers(1, 8),
)
def test_whatever_happens_no_worker_idles_while_work_waits_and_every_caller_is_answered_once(
    steps: list[tuple[str, int]], max_batch: int, workers: int, batches_per_worker: int, max_queue: int
) -> None:
    async def play() -> None:
        slots = workers * batches_per_worker
        bench = Bench(max_batch=max_batch, workers=workers, batches_per_worker=batches_per_worker, max_queue=max_queue)
        answers: list[asyncio.Task[Prediction]] = []
        seen: list[str] = []
        deadlines: dict[str, float] = {}
        for action, number in steps:
            if action in {"submit", "bulk"}:
                name = str(len(answers))
                deadlines[name] = bench.now + number
                priority = Priority.INTERACTIVE if action == "submit" else Priority.BATCH
                answers.append(bench.submit(name, deadline=bench.now + number, priority=priority))
            elif action == "finish" and bench.running:
                await bench.finish()
            elif action == "cancel" and answers:
                answers[number % len(answers)].cancel()
            elif action == "tick":
                bench.now += number
            running_before = {name for names, _ in bench.running for name in names}
            await settle()
            assert len(bench.running) <= slots
            assert bench.batcher.queue_length <= 2 * max_queue
            assert bench.batcher.queue_length == 0 or len(bench.running) >= workers, "a worker idles while work waits"
            for names, _ in bench.running:
                assert 1 <= len(names) <= max_batch
                for name in names:
                    if name not in running_before and name not in seen:
                        seen.append(name)
                        assert deadlines[name] > bench.now, "work was started for a deadline that had passed"
        while bench.running:
            await bench.finish()
        await settle()
        assert all(answer.done() for answer in answers), "a caller was forgotten"
        for answer in answers:
            if not answer.cancelled():
                answer.exception()
        assert len(seen) == len(set(seen))

    asyncio.run(play())


async def test_only_full_batches_leave_ahead_of_a_free_worker() -> None:
    bench = Bench(max_batch=2, workers=1, batches_per_worker=2)
    answers = [bench.submit("first")]
    await settle()
    answers.append(bench.submit("a"))
    await settle()
    assert len(bench.running) == 1
    answers.append(bench.submit("b"))
    await settle()
    assert [names for names, _ in bench.running] == [["first"], ["a", "b"]]
    while bench.running:
        await bench.finish()
    await asyncio.gather(*answers)


async def test_batches_leave_ahead_of_a_free_worker_only_while_no_deadline_is_near() -> None:
    bench = Bench(max_batch=1, workers=1, batches_per_worker=2)
    await bench.learn(1.0)
    for name, after in (("first", 100.0), ("ahead", 100.0)):
        bench.submit(name, deadline=bench.now + after)
        await settle()
    assert [names for names, _ in bench.running] == [["first"], ["ahead"]]
    bench.now += 1.0
    await bench.finish()
    await settle()
    bench.submit("soon", deadline=bench.now + 4.0)
    await settle()
    assert [names for names, _ in bench.running] == [["ahead"]]
    bench.now += 1.0
    await bench.finish()
    await settle()
    assert [names for names, _ in bench.running] == [["soon"]]
    await bench.finish()


async def test_a_machine_that_cannot_be_predicted_still_works() -> None:
    """Errors as large as batches, and nobody is refused who has four times as long as a batch takes."""
    bench = Bench(max_batch=1, workers=1)
    for number in range(40):
        call = bench.submit(str(number), deadline=bench.now + 4.0)
        await settle()
        bench.now += 0.1 if number % 2 else 1.0
        await bench.finish()
        await call


async def test_one_hung_worker_of_two_is_not_a_stuck_model() -> None:
    bench = Bench(workers=2, max_batch=1)
    calls = [bench.submit("hung")]
    await settle()
    bench.now += 20.0
    calls.append(bench.submit("served"))
    await settle()
    assert bench.batcher.oldest_batch_seconds() == 20.0
    assert not bench.batcher.all_stuck(15.0)
    bench.now += 20.0
    assert bench.batcher.all_stuck(15.0)
    for _ in calls:
        await bench.finish()
    await asyncio.gather(*calls)
