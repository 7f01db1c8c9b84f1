"""The batching policy, driven by hand: a clock that only tests move, and batches that finish when tests say so."""

import asyncio
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.batcher import Batcher
from service.errors import BackendUnavailable, Bug, DeadlineExceeded, DeadlineUnreachable, QueueFull, ShuttingDown
from service.work import BatchResult, Job, Priority, Row


class Bench:
    """A batcher whose batches wait in `running` until `finish` lets the oldest one go."""

    def __init__(
        self, *, max_batch: int = 4, workers: int = 1, batches_per_worker: int = 1, max_queue: int = 100
    ) -> None:
        self.now = 0.0
        self.running: list[tuple[list[str], asyncio.Future[BatchResult]]] = []
        self.dispatched: list[tuple[int, str]] = []
        self.foreseen: list[tuple[float, float]] = []
        self.late_refusals: list[float] = []
        self.batcher = Batcher(
            max_batch=max_batch,
            workers=workers,
            batches_per_worker=batches_per_worker,
            max_queue=max_queue,
            run_batch=self._run,
            clock=lambda: self.now,
            on_dispatch=lambda size, reason: self.dispatched.append((size, reason)),
            on_batch=lambda predicted, spent: self.foreseen.append((predicted, spent)),
            on_late_refusal=lambda: self.late_refusals.append(self.now),
        )

    async def _run(self, jobs: Sequence[Job]) -> BatchResult:
        done: asyncio.Future[BatchResult] = asyncio.get_running_loop().create_future()
        self.running.append(([job.request_id for job in jobs], done))
        return await done

    def submit(
        self, name: str, *, deadline: float = 100.0, priority: Priority = Priority.INTERACTIVE
    ) -> asyncio.Task[Row]:
        job = Job(
            request_id=name,
            pixels=np.zeros((1, 1, 3), np.uint8),
            deadline_seconds=deadline,
            submitted_seconds=self.now,
            priority=priority,
        )
        return asyncio.ensure_future(self.batcher.submit(job))

    async def learn(self, seconds: float, *, size: int = 1, batches: int = 3) -> None:
        """Let batches of one size take so long, until the batcher believes it."""
        for _ in range(batches):
            answers = [self.submit("lesson", deadline=self.now + 1000) for _ in range(size)]
            await settle()
            self.now += seconds
            await self.finish()
            await asyncio.gather(*answers)
        self.dispatched.clear()

    async def finish(self, *, error: Exception | None = None, rows: int | None = None, part: int = 0) -> list[str]:
        names, done = self.running.pop(0)
        if error is not None:
            done.set_exception(error)
        else:
            count = len(names) if rows is None else rows
            outputs = [{"scores": np.array([float(i)], np.float32)} for i in range(count)]
            done.set_result(BatchResult(rows=outputs, transport_seconds=0.25, inference_seconds=0.5, part=part))
        await settle()
        return names


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


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
    ("part", "deadline", "sizes"),
    [
        (0, 12.0, [8, 1]),
        (2, 12.0, [2, 2, 2, 2, 1]),
        (4, 12.0, [4, 4, 1]),
        (16, 12.0, [8, 1]),
        (1, 1000.0, [4, 4, 1]),
        (2, 1000.0, [8, 1]),
    ],
)
async def test_a_batch_is_one_of_the_parts_that_workers_run_or_four_where_no_deadline_is_near(
    part: int, deadline: float, sizes: list[int]
) -> None:
    bench = Bench(max_batch=8)
    answers = [bench.submit("first", deadline=deadline)]
    await settle()
    answers += [bench.submit(name, deadline=deadline) for name in "abcdefghi"]
    while bench.running:
        bench.now += len(bench.running[0][0])
        await bench.finish(part=part)
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


async def test_a_deadline_shorter_than_a_batch_is_refused_and_retrying_is_not_suggested() -> None:
    bench = Bench()
    await bench.learn(1.0)
    with pytest.raises(DeadlineUnreachable, match="allow more time") as refused:
        bench.batcher.check(bench.now + 0.5)
    assert refused.value.retry_after_seconds is None
    assert float(refused.value.metadata["needed_seconds"]) > 1.0
    with pytest.raises(DeadlineUnreachable):
        await bench.submit("a", deadline=bench.now + 0.5)
    bench.batcher.check(bench.now + 2.0)
    assert bench.batcher.queue_length == 0


async def test_what_runs_and_what_waits_count_and_the_refusal_says_when_to_come_back() -> None:
    bench = Bench(max_batch=1)
    await bench.learn(1.0)
    answers = [bench.submit(name, deadline=bench.now + 50) for name in ("runs", "waits")]
    await settle()
    bench.now += 0.75
    with pytest.raises(DeadlineUnreachable, match="retry later") as refused:
        bench.batcher.check(bench.now + 1.45)  # enough on an idle server
    assert refused.value.retry_after_seconds is not None
    assert 0.05 <= refused.value.retry_after_seconds < 1.0
    bench.batcher.check(bench.now + 10)
    for _ in range(2):
        await bench.finish()
    await asyncio.gather(*answers)


async def test_nothing_is_refused_without_evidence() -> None:
    bench = Bench()
    bench.batcher.check(0.001)
    await bench.learn(1.0, batches=2)
    bench.batcher.check(bench.now + 0.001)
    await bench.learn(1.0, batches=1)
    with pytest.raises(DeadlineUnreachable):
        bench.batcher.check(bench.now + 0.001)


async def test_an_idle_worker_tries_again_once_the_evidence_is_old() -> None:
    bench = Bench()
    await bench.learn(1.0)
    bench.now += 2.0
    answer = bench.submit("a", deadline=bench.now + 0.5)
    await settle()
    bench.now += 0.1  # it has become fast meanwhile
    await bench.finish()
    assert (await answer).batch_size == 1
    bench.batcher.check(bench.now + 0.5)


async def test_a_batch_is_cut_smaller_for_its_earliest_deadline_and_says_so() -> None:
    bench = Bench(max_batch=4)
    for size in (1, 4):
        await bench.learn(float(size), size=size, batches=10)
    busy = bench.submit("busy", deadline=bench.now + 100)
    await settle()
    answers = [bench.submit("soon", deadline=bench.now + 3.7)]
    answers += [bench.submit(name, deadline=bench.now + 100) for name in "abcd"]
    await settle()
    bench.now += 1.0
    await bench.finish()
    assert bench.dispatched[1] == (2, "deadline")
    assert (await bench.finish())[0] == "soon"
    await bench.finish()
    await asyncio.gather(busy, *answers)


async def test_a_job_that_became_hopeless_is_refused_before_its_deadline_and_takes_no_slot() -> None:
    bench = Bench(max_batch=1)
    await bench.learn(1.0)
    busy = bench.submit("busy")
    await settle()
    late = bench.submit("late", deadline=bench.now + 4.0)
    await settle()
    bench.now += 3.5  # the batch before it took far longer than predicted
    await bench.finish()
    with pytest.raises(DeadlineUnreachable) as refused:
        await late
    assert refused.value.retry_after_seconds is not None
    assert bench.late_refusals == [bench.now]
    assert bench.running == []
    await busy


async def test_a_promise_is_not_broken_for_a_more_urgent_newcomer() -> None:
    bench = Bench(max_batch=1)
    await bench.learn(1.0)
    answers = [bench.submit("runs")]
    await settle()
    bench.batcher.check(bench.now + 2.5)
    answers.append(bench.submit("promised", deadline=bench.now + 2.6))
    await settle()
    with pytest.raises(DeadlineUnreachable):
        bench.batcher.check(bench.now + 2.5)
    for _ in range(2):
        bench.now += 1.0
        await bench.finish()
    await asyncio.gather(*answers)


async def test_the_next_batch_waits_at_its_worker_and_that_wait_counts_as_queueing() -> None:
    bench = Bench(max_batch=1, batches_per_worker=2)
    first, second, third = bench.submit("1"), bench.submit("2"), bench.submit("3")
    await settle()
    assert len(bench.running) == 2
    bench.now = 2.0
    assert bench.batcher.oldest_batch_seconds() == 2.0
    await bench.finish()
    assert bench.batcher.oldest_batch_seconds() == 0.0  # the second has been with a worker since now
    bench.now = 3.0
    await bench.finish()
    await bench.finish()
    rows = await asyncio.gather(first, second, third)
    assert [spent for _, spent in bench.foreseen] == [2.0, 1.0, 0.0]
    # Of the time the backend reported (0.25 s on the way) no more than that can have been waiting.
    assert [row.queue_seconds for row in rows] == [0.0, 0.25, 2.25]
    assert [row.transport_seconds for row in rows] == [0.25, 0.0, 0.0]


async def test_interactive_work_goes_first_and_bulk_work_takes_what_is_left() -> None:
    bench = Bench(max_batch=2)
    answers = [bench.submit("busy")]
    await settle()
    answers += [bench.submit(name, deadline=10, priority=Priority.BATCH) for name in ("x", "y")]
    answers += [bench.submit(name, deadline=90) for name in "abc"]
    await settle()
    assert [await bench.finish() for _ in range(4)] == [["busy"], ["a", "b"], ["c", "x"], ["y"]]
    await asyncio.gather(*answers)


async def test_bulk_work_cannot_fill_the_queue_for_interactive_work() -> None:
    bench = Bench(max_batch=1, max_queue=1)
    answers = [bench.submit("busy")]
    await settle()
    answers.append(bench.submit("bulk", priority=Priority.BATCH))
    await settle()
    with pytest.raises(QueueFull):
        bench.batcher.check(100.0, Priority.BATCH)
    answers.append(bench.submit("interactive"))
    await settle()
    assert bench.batcher.queue_length == 2
    assert [await bench.finish() for _ in range(3)] == [["busy"], ["interactive"], ["bulk"]]
    await asyncio.gather(*answers)


async def test_checking_costs_no_place() -> None:
    bench = Bench(max_queue=1, max_batch=1)
    await bench.learn(1.0)
    busy = bench.submit("busy")
    await settle()
    for _ in range(3):
        bench.batcher.check(bench.now + 50)
    assert bench.batcher.queue_length == 0
    await bench.finish()
    await busy


async def test_time_for_rendering_is_left() -> None:
    bench = Bench()
    await bench.learn(1.0)
    bench.batcher.check(bench.now + 1.6)
    for _ in range(200):
        bench.batcher.observe_rendering(0.5)
    with pytest.raises(DeadlineUnreachable):
        bench.batcher.check(bench.now + 1.6)


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
        answers: list[asyncio.Task[Row]] = []
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
