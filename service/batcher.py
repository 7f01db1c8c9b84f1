"""The queue of one model: jobs in, batches out, on time or refused early.

The policy is in `plan`: earliest deadline first, interactive before batch priority, batches as large as the earliest
deadline allows by the times `predict` learns. Here it meets the event loop:

* No larger than pays: a worker on a CPU runs a large batch in parts, of as many pictures as its caches hold. More than
  one part saves no more than a call, and its pictures wait for each other: where a deadline is near, one part is a full
  batch; where none is, four are.
* Work-conserving: a batch leaves as soon as a worker is free and something waits; nothing waits for company while a
  worker idles. Jobs that arrive in the same turn of the event loop share a batch. Where no deadline is near, a full
  batch leaves before a worker is free, so that it finds its work waiting; any other stays, because what has left can
  neither grow nor be overtaken.
* Early: `check` before any work and `submit` refuse what cannot be in time given what runs and what waits, or would
  make another interactive job late that was accepted; so accepted ones keep their promise and overload does not
  spread. A picture that will lead its batch must leave room for a batch half as long as its whole time, or tight
  deadlines would shrink batches, and with them the throughput, for all. What is added for errors of the prediction is
  at most a quarter of a job's time: a machine that cannot be predicted still works, and some of its answers are late.
* Never without evidence: too few batches seen, or none for a while and none running, and everything is accepted.
* A job that turns out hopeless when its turn comes is answered at once; one whose caller went away leaves at once.

The clock and `run_batch` are injected, so that tests drive time and batches by hand. Never decodes, never speaks gRPC.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from service.errors import Bug, DeadlineExceeded, DeadlineUnreachable, QueueFull, ShuttingDown
from service.line import Line
from service.plan import Forecast, Situation, foresee, next_batch
from service.predict import BatchTime
from service.work import BatchResult, Job, Priority, Row
from service.workers import Workers

RunBatch = Callable[[Sequence[Job]], Awaitable[BatchResult]]

EVIDENCE_BATCHES = 3  # batches seen before a prediction may refuse anything
EVIDENCE_SECONDS = 1.0  # how long it may after the last one; then an idle worker tries again
LEAST_RETRY_SECONDS = 0.05
WAY_BACK_SECONDS = 0.002  # serialising the reply and gRPC's part of the way; rendering is measured

# Margins in mean prediction errors. More is asked of promises than when the time comes, so that noise is absorbed
# before it makes batches smaller.
_ADMISSION_ERRORS = 3.0
_DISPATCH_ERRORS = 1.0
_RENDERING_GAIN = 0.05
_MOST_FOR_ERRORS = 0.25  # of the time a job has
# Full batches that fit into a job's time where its batch may be large, and leave before a worker is free.
_AHEAD_BATCHES = 5
_PARTS_IN_PEACE = 4  # of a full batch where no deadline is near
_PLAINLY_SECONDS = 1.0  # rendering, and errors of the prediction


@dataclass(slots=True)
class _Entry:
    job: Job
    answer: asyncio.Future[Row]


class Batcher:
    """Queue of one model. All methods are for one event loop.

    `workers` batches are worked on at once, at most `batches_per_worker` times as many are sent. At most `max_queue`
    jobs wait per priority. `on_dispatch(size, reason)` is called for each batch: `full`, `deadline` (smaller to meet
    one), or `idle` (all that waited); `on_batch(predicted_seconds, spent_seconds)` when one was answered;
    `on_late_refusal()` for each job that was accepted and then found hopeless.
    """

    def __init__(
        self,
        *,
        max_batch: int,
        workers: int,
        batches_per_worker: int,
        max_queue: int,
        run_batch: RunBatch,
        clock: Callable[[], float],
        on_dispatch: Callable[[int, str], None] = lambda size, reason: None,
        on_batch: Callable[[float, float], None] = lambda predicted_seconds, spent_seconds: None,
        on_late_refusal: Callable[[], None] = lambda: None,
    ) -> None:
        self._full = self._fullest = self._max_batch = max_batch
        self._workers = Workers(workers)
        self._batches_per_worker = batches_per_worker
        self._max_queue = max_queue
        self._run_batch = run_batch
        self._clock = clock
        self._on_dispatch = on_dispatch
        self._on_batch = on_batch
        self._on_late_refusal = on_late_refusal
        self._interactive: Line[_Entry] = Line()
        self._batch: Line[_Entry] = Line()
        self._owed_rows = 0.0
        self._times = BatchTime(max_batch)
        self._learned_seconds = -math.inf
        self._rendering_seconds = 0.0
        self._tasks: set[asyncio.Task[None]] = set()
        self._pump_scheduled = False
        self._closed = False

    def check(self, deadline_seconds: float, priority: Priority = Priority.INTERACTIVE) -> None:
        """Raise what `submit` would raise now: ask before work is spent on a picture."""
        if self._closed:
            raise ShuttingDown("the server is shutting down; call another replica")
        now = self._clock()
        if deadline_seconds <= now:
            raise DeadlineExceeded("the deadline passed before the picture reached the queue")
        line = self._line(priority)
        if len(line) >= self._max_queue:
            self._pump()  # what an idle slot can take does not count as waiting
        if len(line) >= self._max_queue:
            batches = math.ceil(self.queue_length / self._full / self._workers.count)
            raise QueueFull(
                f"{len(line)} pictures already wait for this model; retry later or add replicas",
                retry_after_seconds=max(LEAST_RETRY_SECONDS, batches * self._times.table[self._full]),
            )
        if self._has_evidence(now) and not self._plainly_in_time(now, deadline_seconds, priority):
            self._require_in_time(now, deadline_seconds, priority)

    async def submit(self, job: Job) -> Row:
        """Wait for the job's row. Cancelling the caller takes the job out of the queue.

        Raises `QueueFull`, `DeadlineUnreachable`, `DeadlineExceeded`, `ShuttingDown`, or what `run_batch` raised.
        """
        self.check(job.deadline_seconds, job.priority)
        entry = _Entry(job, asyncio.get_running_loop().create_future())
        line = self._line(job.priority)
        line.add(job.deadline_seconds, entry)
        self._schedule_pump()
        try:
            return await entry.answer
        except asyncio.CancelledError:
            line.discard(job.deadline_seconds, entry)
            raise

    def observe_rendering(self, seconds: float) -> None:
        """Learn how long an answer takes after its batch, so that predictions leave time for it."""
        self._rendering_seconds += (seconds - self._rendering_seconds) * _RENDERING_GAIN

    def resize(self, workers: int) -> None:
        """Count with another number of workers from now on."""
        self._workers.resize(workers, self._clock())
        self._schedule_pump()

    @property
    def queue_length(self) -> int:
        """Jobs waiting."""
        return len(self._interactive) + len(self._batch)

    def queue_age_seconds(self) -> float:
        """Age of the job that waits longest, 0 when none waits."""
        waiting = self._interactive.items + self._batch.items
        return max((self._clock() - entry.job.submitted_seconds for entry in waiting), default=0.0)

    def oldest_batch_seconds(self) -> float:
        """How long the oldest batch has been with a worker, 0 when none is."""
        return self._workers.oldest_seconds(self._clock())

    async def close(self) -> None:
        """Refuse what waits, finish what runs."""
        self._closed = True
        for entry in self._interactive.clear() + self._batch.clear():
            _refuse(entry, ShuttingDown("the server is shutting down; call another replica"))
        await asyncio.gather(*self._tasks)

    def _line(self, priority: Priority) -> Line[_Entry]:
        return self._interactive if priority is Priority.INTERACTIVE else self._batch

    def _has_evidence(self, now: float) -> bool:
        recent = len(self._workers) > 0 or now - self._learned_seconds < EVIDENCE_SECONDS
        return recent and self._times.samples >= EVIDENCE_BATCHES

    def _look(self, now: float, full: int) -> tuple[Situation, Forecast]:
        if self._has_evidence(now):
            table = self._times.table
            errors_seconds = min(_DISPATCH_ERRORS * self._times.error_seconds, table[1] / 2)
            margin_seconds = WAY_BACK_SECONDS + self._rendering_seconds + errors_seconds
        else:
            table, margin_seconds = [0.0] * (self._max_batch + 1), 0.0
        forecast = Forecast(table[: full + 1], margin_seconds)
        free_seconds = self._workers.free_seconds(now, table)  # what was sent may be larger than what is full now
        situation = Situation(self._interactive.deadlines, self._batch.deadlines, self._owed_rows, free_seconds)
        return situation, forecast

    def _plainly_in_time(self, now: float, deadline_seconds: float, priority: Priority) -> bool:
        """Whether there is no need to look closer: it is the last in line, and there is time for twice all the work.

        Looking closer costs a twentieth of what a small picture costs the gateway in all.
        """
        line = self._line(priority)
        if priority is not Priority.INTERACTIVE or (line.deadlines and deadline_seconds < line.deadlines[-1]):
            return False
        batches = len(self._workers) + self.queue_length // self._full + 1
        overdue_seconds = self._workers.oldest_seconds(now)
        most_seconds = batches * self._times.table[self._full]
        return 2 * (most_seconds + overdue_seconds) + _PLAINLY_SECONDS < deadline_seconds - now

    def _require_in_time(self, now: float, deadline_seconds: float, priority: Priority) -> None:
        """Raise `DeadlineUnreachable` where a job with this deadline would be late, or make accepted ones late."""
        situation, forecast = self._look(now, self._full)
        given_seconds = deadline_seconds - now
        line, interactive = self._line(priority), priority is Priority.INTERACTIVE
        with line.trying(deadline_seconds) as place:
            seen = foresee(situation, forecast, interactive=interactive, place=place)
        wait_seconds = seen.start_seconds - now
        # Errors of the batches before it and of its own add up like independent ones.
        batches = 1.0 + wait_seconds / forecast.table[-1]
        errors_seconds = _ADMISSION_ERRORS * self._times.error_seconds * math.sqrt(batches)
        after_seconds = forecast.margin_seconds + min(errors_seconds, _MOST_FOR_ERRORS * given_seconds)
        size = seen.size
        if seen.leads:
            size = max(size, forecast.largest((given_seconds - after_seconds) / 2))
        needed_seconds = wait_seconds + forecast.table[max(size, 1)] + after_seconds
        if size and needed_seconds < given_seconds:
            if not seen.lost:
                return
            without = foresee(situation, forecast, interactive=interactive, place=len(line))
            if seen.lost <= without.lost:
                return  # they are lost anyway
            needed_seconds += forecast.table[-1]  # it has to let them go first
        hopeless = forecast.table[1] + after_seconds >= given_seconds  # even on an idle server
        raise DeadlineUnreachable(
            f"no answer within the {given_seconds:.3f} s this call has left: about {needed_seconds:.3f} s are needed; "
            + ("allow more time" if hopeless else "retry later, allow more time or add replicas"),
            metadata={"needed_seconds": f"{needed_seconds:.3f}"},
            retry_after_seconds=None if hopeless else max(LEAST_RETRY_SECONDS, needed_seconds - given_seconds),
        )

    def _schedule_pump(self) -> None:
        # One turn of the loop later, so that all jobs of this turn are seen together.
        if not self._pump_scheduled:
            self._pump_scheduled = True
            asyncio.get_running_loop().call_soon(self._pump)

    def _pump(self) -> None:
        self._pump_scheduled = False  # a pump too many finds nothing to do
        while self.queue_length and len(self._workers) < self._workers.count * self._batches_per_worker:
            ahead = len(self._workers) >= self._workers.count
            if ahead and not (self.queue_length >= self._fullest and self._in_peace(self._clock())):
                return  # until a worker is free
            self._dispatch()

    def _in_peace(self, now: float) -> bool:
        """Whether every deadline that waits is so far that its batch may be large, and may as well wait at a worker."""
        first = min(line.deadlines[0] for line in (self._interactive, self._batch) if line.deadlines)
        return first - now > _AHEAD_BATCHES * self._times.table[self._fullest]

    def _dispatch(self) -> None:
        """Send the next batch, and answer those whose turn has come too late."""
        now = self._clock()
        full = self._fullest if self._in_peace(now) else self._full
        situation, forecast = self._look(now, full)
        cut = next_batch(situation, forecast)
        entries = self._interactive.take(*cut.interactive) + self._batch.take(*cut.batch)
        for entry in self._interactive.take(0, cut.interactive[0]) + self._batch.take(0, cut.hopeless_batch):
            self._refuse_late(entry, now)
        self._owed_rows = cut.owed_rows(self._owed_rows, still_waiting=len(self._batch) > 0)
        if not entries:
            return
        self._on_dispatch(cut.size, "full" if cut.size == full else "deadline" if cut.limited else "idle")
        task = asyncio.get_running_loop().create_task(self._run(entries, self._times.table[cut.size]))
        self._workers.send(task, cut.size, now)
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def _refuse_late(self, entry: _Entry, now: float) -> None:
        if entry.job.deadline_seconds <= now:
            _refuse(entry, DeadlineExceeded("the deadline passed while the picture waited in the queue"))
            return
        self._on_late_refusal()
        _refuse(
            entry,
            DeadlineUnreachable(
                "batches take longer than predicted when this call was accepted: no answer within the "
                f"{entry.job.deadline_seconds - now:.3f} s it has left; retry, allow more time or add replicas",
                retry_after_seconds=LEAST_RETRY_SECONDS,
            ),
        )

    async def _run(self, entries: list[_Entry], predicted_seconds: float) -> None:
        task = asyncio.current_task()
        sent_seconds = self._clock()
        try:
            result = await self._run_batch([entry.job for entry in entries])
            if len(result.rows) != len(entries):
                raise Bug(f"this is a bug: {len(entries)} pictures gave {len(result.rows)} rows")  # noqa: TRY301
        except Exception as error:  # noqa: BLE001 - every caller of the batch gets it
            for entry in entries:
                _refuse(entry, error)
            return
        now = self._clock()
        started_seconds = self._workers.started_seconds(task)
        self._times.observe(len(entries), now - started_seconds)
        if result.part:
            self._full = min(result.part, self._max_batch)
            self._fullest = min(_PARTS_IN_PEACE * result.part, self._max_batch)
        self._learned_seconds = now
        self._on_batch(predicted_seconds, now - started_seconds)
        # The backend cannot tell waiting for a worker from the way there.
        waited_seconds = min(max(started_seconds - sent_seconds, 0.0), result.transport_seconds)
        for entry, outputs in zip(entries, result.rows, strict=True):
            if not entry.answer.done():
                entry.answer.set_result(
                    Row(
                        outputs=outputs,
                        batch_size=len(entries),
                        queue_seconds=sent_seconds + waited_seconds - entry.job.submitted_seconds,
                        transport_seconds=result.transport_seconds - waited_seconds,
                        inference_seconds=result.inference_seconds,
                    )
                )

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.remove(task)
        self._workers.finish(task, self._clock())
        self._pump()


def _refuse(entry: _Entry, error: Exception) -> None:
    if not entry.answer.done():
        entry.answer.set_exception(error)
