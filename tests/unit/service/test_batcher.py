"""The batching policy, driven by hand: a clock that only tests move, and batches that finish when tests say so."""

import asyncio
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.batcher import Batcher
from service.errors import BackendUnavailable, Bug, DeadlineExceeded, QueueFull, ShuttingDown
from service.work import BatchResult, Job, Row


class Bench:
    """A batcher whose batches wait in `running` until `finish` lets the oldest one go."""

    def __init__(self, *, max_batch: int = 4, slots: int = 1, max_queue: int = 100) -> None:
        self.now = 0.0
        self.running: list[tuple[list[str], asyncio.Future[BatchResult]]] = []
        self.dispatched: list[tuple[int, str]] = []
        self.batcher = Batcher(
            max_batch=max_batch,
            slots=slots,
            max_queue=max_queue,
            run_batch=self._run,
            clock=lambda: self.now,
            on_dispatch=lambda size, reason: self.dispatched.append((size, reason)),
        )

    async def _run(self, jobs: Sequence[Job]) -> BatchResult:
        done: asyncio.Future[BatchResult] = asyncio.get_running_loop().create_future()
        self.running.append(([job.request_id for job in jobs], done))
        return await done

    def submit(self, name: str, *, deadline: float = 100.0) -> asyncio.Task[Row]:
        job = Job(
            request_id=name,
            pixels=np.zeros((1, 1, 3), np.uint8),
            deadline_seconds=deadline,
            submitted_seconds=self.now,
        )
        return asyncio.ensure_future(self.batcher.submit(job))

    async def finish(self, *, error: Exception | None = None, rows: int | None = None) -> list[str]:
        names, done = self.running.pop(0)
        if error is not None:
            done.set_exception(error)
        else:
            count = len(names) if rows is None else rows
            outputs = [{"scores": np.array([float(i)], np.float32)} for i in range(count)]
            done.set_result(BatchResult(rows=outputs, transport_seconds=0.25, inference_seconds=0.5))
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
    bench = Bench(max_batch=1, slots=2)
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
    bench = Bench(max_batch=1, slots=2, max_queue=1)
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
        st.tuples(st.just("submit"), st.integers(1, 30)),
        st.tuples(st.just("finish"), st.just(0)),
        st.tuples(st.just("cancel"), st.integers(0, 20)),
        st.tuples(st.just("tick"), st.integers(1, 10)),
    ),
    max_size=60,
)


@settings(max_examples=200, deadline=None)
@given(steps=_STEPS, max_batch=st.integers(1, 4), slots=st.integers(1, 3), max_queue=st.integers(1, 8))
def test_whatever_happens_no_slot_idles_while_work_waits_and_every_caller_is_answered_once(
    steps: list[tuple[str, int]], max_batch: int, slots: int, max_queue: int
) -> None:
    async def play() -> None:
        bench = Bench(max_batch=max_batch, slots=slots, max_queue=max_queue)
        answers: list[asyncio.Task[Row]] = []
        seen: list[str] = []
        deadlines: dict[str, float] = {}
        for action, number in steps:
            if action == "submit":
                name = str(len(answers))
                deadlines[name] = bench.now + number
                answers.append(bench.submit(name, deadline=bench.now + number))
            elif action == "finish" and bench.running:
                await bench.finish()
            elif action == "cancel" and answers:
                answers[number % len(answers)].cancel()
            elif action == "tick":
                bench.now += number
            running_before = {name for names, _ in bench.running for name in names}
            await settle()
            assert len(bench.running) <= slots
            assert bench.batcher.queue_length <= max_queue
            assert bench.batcher.queue_length == 0 or len(bench.running) == slots, "a slot idles while work waits"
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
