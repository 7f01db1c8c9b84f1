"""The batcher, driven by hand: deadlines, admission and priorities."""

import asyncio

import pytest
from batcher_bench import Bench, settle

from service.batching.admission import AdmissionState, Decision, decide
from service.core.errors import DeadlineUnreachable, QueueFull
from service.core.types import Priority


async def test_a_deadline_shorter_than_a_batch_is_refused_and_retrying_is_not_suggested() -> None:
    bench = Bench()
    await bench.learn(1.0)
    with pytest.raises(DeadlineUnreachable, match="allow more time") as refused:
        bench.batcher.admit(bench.now + 0.5)
    assert refused.value.retry_after_seconds is None
    assert float(refused.value.metadata["needed_seconds"]) > 1.0
    with pytest.raises(DeadlineUnreachable):
        await bench.submit("a", deadline=bench.now + 0.5)
    bench.batcher.admit(bench.now + 2.0)
    assert bench.batcher.queue_length == 0


async def test_what_runs_and_what_waits_count_and_the_refusal_says_when_to_come_back() -> None:
    bench = Bench(max_batch=1)
    await bench.learn(1.0)
    answers = [bench.submit(name, deadline=bench.now + 50) for name in ("runs", "waits")]
    await settle()
    bench.now += 0.75
    with pytest.raises(DeadlineUnreachable, match="retry later") as refused:
        bench.batcher.admit(bench.now + 1.45)  # enough on an idle server
    assert refused.value.retry_after_seconds is not None
    assert 0.05 <= refused.value.retry_after_seconds < 1.0
    bench.batcher.admit(bench.now + 10)
    for _ in range(2):
        await bench.finish()
    await asyncio.gather(*answers)


async def test_nothing_is_refused_without_evidence() -> None:
    bench = Bench()
    bench.batcher.admit(0.001)
    await bench.learn(1.0, batches=2)
    bench.batcher.admit(bench.now + 0.001)
    await bench.learn(1.0, batches=1)
    with pytest.raises(DeadlineUnreachable):
        bench.batcher.admit(bench.now + 0.001)


async def test_an_idle_worker_tries_again_once_the_evidence_is_old() -> None:
    bench = Bench()
    await bench.learn(1.0)
    bench.now += 2.0
    answer = bench.submit("a", deadline=bench.now + 0.5)
    await settle()
    bench.now += 0.1  # it has become fast meanwhile
    await bench.finish()
    assert (await answer).batch_size == 1
    bench.batcher.admit(bench.now + 0.5)


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
    bench.batcher.admit(bench.now + 2.5)
    answers.append(bench.submit("promised", deadline=bench.now + 2.6))
    await settle()
    with pytest.raises(DeadlineUnreachable):
        bench.batcher.admit(bench.now + 2.5)
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


async def test_interactive_priority_goes_first_and_batch_priority_takes_what_is_left() -> None:
    bench = Bench(max_batch=2)
    answers = [bench.submit("busy")]
    await settle()
    answers += [bench.submit(name, deadline=10, priority=Priority.BATCH) for name in ("x", "y")]
    answers += [bench.submit(name, deadline=90) for name in "abc"]
    await settle()
    assert [await bench.finish() for _ in range(4)] == [["busy"], ["a", "b"], ["c", "x"], ["y"]]
    await asyncio.gather(*answers)


async def test_batch_priority_cannot_fill_the_queue_for_interactive_priority() -> None:
    bench = Bench(max_batch=1, max_queue=1)
    answers = [bench.submit("busy")]
    await settle()
    answers.append(bench.submit("bulk", priority=Priority.BATCH))
    await settle()
    with pytest.raises(QueueFull):
        bench.batcher.admit(100.0, Priority.BATCH)
    answers.append(bench.submit("interactive"))
    await settle()
    assert bench.batcher.queue_length == 2
    assert [await bench.finish() for _ in range(3)] == [["busy"], ["interactive"], ["bulk"]]
    await asyncio.gather(*answers)


async def test_admission_takes_no_place_in_the_queue() -> None:
    bench = Bench(max_queue=1, max_batch=1)
    await bench.learn(1.0)
    busy = bench.submit("busy")
    await settle()
    for _ in range(3):
        bench.batcher.admit(bench.now + 50)
    assert bench.batcher.queue_length == 0
    await bench.finish()
    await busy


async def test_admission_is_decided_once_while_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    decided: list[float] = []

    def counting(deadline_at: float, priority: Priority, state: AdmissionState) -> Decision:
        decided.append(deadline_at)
        return decide(deadline_at, priority, state)

    monkeypatch.setattr("service.batching.batcher.decide", counting)
    bench = Bench(max_batch=1)
    await bench.learn(1.0)
    decided.clear()
    answers = [bench.submit("first", deadline=bench.now + 4)]
    await settle()
    assert len(decided) == 1
    early = bench.batcher.admit(bench.now + 4)
    answers.append(bench.submit("added", deadline=bench.now + 4))
    await settle()
    assert len(decided) == 3
    with pytest.raises(DeadlineUnreachable):  # there is a picture in the queue that admission did not know of
        await bench.batcher.submit(bench.job("late", deadline=bench.now + 2.0), early)
    assert len(decided) == 4
    for _ in range(2):
        await bench.finish()
    await asyncio.gather(*answers)


async def test_admission_does_not_hold_when_the_time_it_left_was_spent_on_decoding() -> None:
    bench = Bench(max_batch=1)
    await bench.learn(1.0)
    deadline = bench.now + 2.0
    admission = bench.batcher.admit(deadline)
    bench.now += 0.9
    with pytest.raises(DeadlineUnreachable):
        await bench.batcher.submit(bench.job("slow", deadline=deadline), admission)


async def test_time_for_rendering_is_left() -> None:
    bench = Bench()
    await bench.learn(1.0)
    deadline = bench.now + 1.6
    admission = bench.batcher.admit(deadline)
    for _ in range(200):
        bench.batcher.observe_rendering(0.5, 1000)
    with pytest.raises(DeadlineUnreachable, match=r"1\.600 s this call has left"):
        await bench.batcher.submit(bench.job("large", deadline=deadline, picture_px=1000), admission)
    small = asyncio.create_task(bench.batcher.submit(bench.job("small", deadline=deadline, picture_px=1), admission))
    await settle()
    assert await bench.finish() == ["small"]
    await small


async def test_a_picture_waits_by_the_time_when_its_reply_must_be_rendered() -> None:
    bench = Bench(max_batch=1)
    await bench.learn(1.0)
    for _ in range(3):
        bench.batcher.observe_rendering(5.0, 1000)
    running = bench.submit("running", deadline=bench.now + 50)
    await settle()
    small = bench.submit("small", deadline=bench.now + 20)
    large = bench.submit("large", deadline=bench.now + 24, picture_px=1000)
    await settle()
    assert [(await bench.finish())[0] for _ in range(3)] == ["running", "large", "small"]
    await asyncio.gather(running, small, large)


async def test_a_wrong_prediction_of_rendering_ends_by_itself() -> None:
    bench = Bench()
    await bench.learn(0.1)
    for _ in range(3):
        bench.batcher.observe_rendering(100.0, 1000)
    with pytest.raises(DeadlineUnreachable):
        await bench.submit("refused", deadline=bench.now + 1.0, picture_px=1000)
    for _ in range(6):  # calls for pictures of other sizes keep the latency model's evidence recent
        bench.now += 0.8
        await bench.learn(0.1, batches=1)
    tried = bench.submit("tried", deadline=bench.now + 1.0, picture_px=1000)
    await settle()
    assert await bench.finish() == ["tried"]
    await tried


async def test_a_call_whose_picture_would_wait_too_long_for_decoding_is_refused() -> None:
    bench = Bench()
    with pytest.raises(DeadlineUnreachable) as refused:  # no batch is needed to know that
        bench.batcher.admit(bench.now + 1.0, decode_wait_seconds=1.5)
    assert refused.value.retry_after_seconds == pytest.approx(0.5)
    bench.batcher.admit(bench.now + 1.0, decode_wait_seconds=0.9)
    await bench.learn(0.2)
    with pytest.raises(DeadlineUnreachable, match="retry later"):
        bench.batcher.admit(bench.now + 1.0, decode_wait_seconds=0.9)
    bench.batcher.admit(bench.now + 1.0, decode_wait_seconds=0.5)
