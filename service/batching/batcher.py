"""The queue of one model: pictures in, batches out, each picture answered in time or refused early.

`admission` decides which calls are admitted, `policy` which pictures make the next batch. The batcher connects both to
the event loop and to the workers:

* A batch leaves as soon as a worker is free and a picture waits. No picture waits for others while a worker is idle.
  Pictures that arrive in the same turn of the event loop share a batch.
* A worker on a CPU runs a large batch in micro-batches, as many pictures as its caches hold. More than one micro-batch
  saves only the overhead of a call, and its pictures wait for each other. So where a deadline is near, a full batch is
  one micro-batch. Where no deadline is near, it is four.
* Where no deadline is near, a full batch leaves before a worker is free, so that the worker is never idle. Smaller
  batches stay, because a batch that has left can neither grow nor be overtaken.
* A picture that turns out hopeless when its turn comes is refused at once. A picture whose caller has gone leaves the
  queue at once.
* Where several callers share the queue, admission keeps one of them from filling it, and a picture waits no longer than
  a full queue takes if the machine is as fast as predicted. See `admission`.

The clock and `run_batch` are injected, so that tests control time and batches. The batcher never decodes a picture and
never knows a wire protocol.
"""

import asyncio
import math
from bisect import bisect_left, bisect_right
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from service.batching.admission import AdmissionState, decide, error_of, fair_wait_seconds, late_error
from service.batching.deadline_queue import DeadlineQueue
from service.batching.inflight import InflightBatches
from service.batching.latency_model import LatencyModel
from service.batching.policy import LatencyTable, QueueState, next_batch
from service.batching.rendering_model import RenderingModel
from service.core.call_scope import ANONYMOUS
from service.core.callers import RecentCallers
from service.core.errors import Bug, DeadlineUnreachable, ShuttingDown
from service.core.types import BatchResult, Job, Prediction, Priority

RunBatch = Callable[[Sequence[Job]], Awaitable[BatchResult]]

# A prediction is evidence after this many batches, for this long after the last one, and while a batch runs. Without
# evidence all calls are admitted, so that an idle worker shows how fast it is now.
EVIDENCE_BATCHES = 3
EVIDENCE_SECONDS = 1.0

WAY_BACK_SECONDS = 0.002  # to serialise the reply and send it; the time of rendering is learned per size

_ERROR_MARGIN = 1.0  # in mean prediction errors; admission takes more
# No deadline is near if the earliest one leaves time for this many of the largest batches.
_BATCHES_BEFORE_DEADLINE = 5
_MICRO_BATCHES = 4  # in a full batch where no deadline is near


class Admission(NamedTuple):
    """Proof that a call was admitted, for `submit`.

    The decision holds until `until_at` while no other picture is added to the queue. `added`: pictures added before it.
    """

    until_at: float
    added: int


@dataclass(slots=True)
class _Entry:
    job: Job
    due_at: float  # its place in the queue: when it should be answered
    latest_at: float  # its deadline, less the time of rendering
    answer: asyncio.Future[Prediction]


class Batcher:
    """Queue of one model. All methods are for one event loop.

    `workers` batches run at once, and up to `batches_per_worker` times as many are sent. At most `max_queue` pictures
    wait per priority. `on_dispatch(size, reason)` is called for each batch. The reason is `full`, `deadline` (smaller,
    to meet one), or `idle` (all that waited). `on_batch(predicted_seconds, spent_seconds)` is called for each answered
    batch, `on_late_refusal()` for each picture that was admitted and then found hopeless.
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
        self._full_batch = self._largest_batch = self._max_batch = max_batch
        self._inflight = InflightBatches(workers)
        self._batches_per_worker = batches_per_worker
        self._max_queue = max_queue
        self._run_batch = run_batch
        self._clock = clock
        self._on_dispatch = on_dispatch
        self._on_batch = on_batch
        self._on_late_refusal = on_late_refusal
        self._interactive: DeadlineQueue[_Entry] = DeadlineQueue()
        self._batch: DeadlineQueue[_Entry] = DeadlineQueue()
        self._owed_rows = 0.0
        self._added = 0  # pictures, to any queue
        self._callers = {priority: RecentCallers() for priority in Priority}
        self._latency = LatencyModel(max_batch)
        self._learned_at = -math.inf
        self._rendering = RenderingModel()
        self._tasks: set[asyncio.Task[None]] = set()
        self._pump_scheduled = False
        self._closed = False

    def admit(
        self,
        deadline_at: float,
        priority: Priority = Priority.INTERACTIVE,
        *,
        caller: str = ANONYMOUS,
        decode_wait_seconds: float = 0.0,
    ) -> Admission:
        """Decide on a call before its picture is decoded. Takes no place in the queue.

        `decode_wait_seconds`: predicted time until the decoding of the picture begins.
        The size of the picture is not known yet, so no time is left for rendering. `submit` leaves it.

        Raises `QueueFull`, `DeadlineUnreachable`, `DeadlineExceeded`, `ShuttingDown`.
        """
        return self._admit(deadline_at, priority, caller, decode_wait_seconds=decode_wait_seconds)

    def _admit(
        self,
        deadline_at: float,
        priority: Priority,
        caller: str,
        *,
        decode_wait_seconds: float = 0.0,
        rendering_seconds: float = 0.0,
    ) -> Admission:
        if self._closed:
            raise ShuttingDown("the server is shutting down; call another replica")
        queue = self._queue(priority)
        shared = self._callers[priority].note(caller, self._clock())
        if len(queue) >= (self._max_queue // 2 if shared else self._max_queue):
            self._pump()  # pictures that an idle worker can take do not count as waiting
        state = self._admission_state()._replace(
            decode_wait_seconds=decode_wait_seconds, rendering_seconds=rendering_seconds
        )
        if shared:
            own = [place for place, entry in enumerate(queue.items) if entry.job.caller == caller]
            wait_seconds = self._fair_wait_seconds(priority, state.now)
            due_at = min(deadline_at - rendering_seconds, state.now + wait_seconds)
            state = state._replace(
                own_waiting=len(own),
                own_ahead=bisect_left(own, bisect_right(queue.deadlines, due_at)),
                fair_wait_seconds=wait_seconds,
            )
        decision = decide(deadline_at, priority, state)
        if decision.rejection is not None:
            given_seconds = deadline_at - state.now
            raise error_of(decision, given_seconds=given_seconds, waiting=len(queue), own_waiting=state.own_waiting)
        return Admission(until_at=deadline_at - decision.needed_seconds, added=self._added)

    async def submit(self, job: Job, admission: Admission) -> Prediction:
        """Wait for the job's prediction. Cancelling the caller takes the job out of the queue.

        Raises what `admit` raises, or what `run_batch` raised.
        """
        queue = self._queue(job.priority)
        # Calls whose pictures are decoded at the same time are admitted without knowing of each other. Without a second
        # decision a burst of them would all be queued, and many would be late. A call whose picture was decoded in one
        # turn of the event loop needs no second decision, unless rendering its reply takes the time that was left.
        now = self._clock()
        rendering_seconds = self._rendering.predict(job.picture_px, now) if self._has_evidence(now) else 0.0
        changed = admission.added != self._added or now + rendering_seconds >= admission.until_at
        if self._closed or changed or len(queue) >= self._max_queue:
            self._admit(job.deadline_at, job.priority, job.caller, rendering_seconds=rendering_seconds)
        latest_at = due_at = job.deadline_at - rendering_seconds
        if self._callers[job.priority].shared(now):
            due_at = min(latest_at, now + self._fair_wait_seconds(job.priority, now))
        entry = _Entry(job, due_at, latest_at, asyncio.get_running_loop().create_future())
        queue.add(entry.due_at, entry)
        self._added += 1
        self._schedule_pump()
        try:
            return await entry.answer
        except asyncio.CancelledError:
            queue.discard(entry.due_at, entry)
            raise

    def observe_rendering(self, seconds: float, picture_px: int) -> None:
        """Learn how long rendering the reply to a picture of `picture_px` pixels takes. `submit` leaves time for it."""
        self._rendering.observe(picture_px, seconds, self._clock())

    def resize(self, workers: int) -> None:
        """Count with another number of workers from now on."""
        self._inflight.resize(workers, self._clock())
        self._schedule_pump()

    @property
    def queue_length(self) -> int:
        """Pictures that wait."""
        return len(self._interactive) + len(self._batch)

    def queue_age_seconds(self) -> float:
        """Age of the picture that waits longest, 0 when none waits."""
        waiting = self._interactive.items + self._batch.items
        return max((self._clock() - entry.job.submitted_at for entry in waiting), default=0.0)

    def oldest_batch_seconds(self) -> float:
        """How long the oldest batch has been with a worker, 0 when none is."""
        return self._inflight.oldest_seconds(self._clock())

    def all_stuck(self, seconds: float) -> bool:
        """Whether every worker has had its batch for longer than `seconds`."""
        return self._inflight.overdue(seconds, self._clock()) >= self._inflight.count

    async def close(self) -> None:
        """Refuse what waits, finish what runs."""
        self._closed = True
        for entry in self._interactive.clear() + self._batch.clear():
            _refuse(entry, ShuttingDown("the server is shutting down; call another replica"))
        await asyncio.gather(*self._tasks)

    def _queue(self, priority: Priority) -> DeadlineQueue[_Entry]:
        return self._interactive if priority is Priority.INTERACTIVE else self._batch

    def _fair_wait_seconds(self, priority: Priority, now: float) -> float:
        if not self._has_evidence(now):
            return math.inf
        return fair_wait_seconds(
            priority,
            max_queue=self._max_queue,
            full_batch=self._full_batch,
            full_batch_seconds=self._latency.table[self._full_batch],
            workers=self._inflight.count,
        )

    def _has_evidence(self, now: float) -> bool:
        recent = len(self._inflight) > 0 or now - self._learned_at < EVIDENCE_SECONDS
        return recent and self._latency.samples >= EVIDENCE_BATCHES

    def _admission_state(self) -> AdmissionState:
        now = self._clock()
        latency = self._latency_table(self._full_batch) if self._has_evidence(now) else None
        return AdmissionState(
            now=now,
            queues=self._queue_state(now, self._latency.table),
            latency=latency,
            full_batch=self._full_batch,
            full_batch_seconds=self._latency.table[self._full_batch],
            error_seconds=self._latency.error_seconds,
            max_queue=self._max_queue,
        )

    def _latency_table(self, full_batch: int) -> LatencyTable:
        table = self._latency.table
        error_seconds = min(_ERROR_MARGIN * self._latency.error_seconds, table[1] / 2)
        return LatencyTable(table[: full_batch + 1], WAY_BACK_SECONDS + error_seconds)

    def _queue_state(self, now: float, seconds: Sequence[float]) -> QueueState:
        # A batch that was sent may be larger than what is a full batch now, so `seconds` has all sizes.
        free_at = self._inflight.free_at(now, seconds)
        return QueueState(self._interactive.deadlines, self._batch.deadlines, self._owed_rows, free_at)

    def _schedule_pump(self) -> None:
        # One turn of the event loop later, so that all pictures of this turn are seen together.
        if not self._pump_scheduled:
            self._pump_scheduled = True
            asyncio.get_running_loop().call_soon(self._pump)

    def _pump(self) -> None:
        """Send batches as long as one may leave. Harmless if there is nothing to send."""
        self._pump_scheduled = False
        while self.queue_length and len(self._inflight) < self._inflight.count * self._batches_per_worker:
            all_busy = len(self._inflight) >= self._inflight.count
            if all_busy and not (self.queue_length >= self._largest_batch and self._no_deadline_is_near(self._clock())):
                return  # until a worker is free
            self._dispatch()

    def _no_deadline_is_near(self, now: float) -> bool:
        earliest = min(queue.deadlines[0] for queue in (self._interactive, self._batch) if queue.deadlines)
        return earliest - now > _BATCHES_BEFORE_DEADLINE * self._latency.table[self._largest_batch]

    def _dispatch(self) -> None:
        """Send the next batch, and refuse the pictures that are hopeless."""
        now = self._clock()
        full_batch = self._largest_batch if self._no_deadline_is_near(now) else self._full_batch
        if self._has_evidence(now):
            seconds, latency = self._latency.table, self._latency_table(full_batch)
        else:
            seconds = [0.0] * (self._max_batch + 1)
            latency = LatencyTable(seconds[: full_batch + 1], 0.0)
        plan = next_batch(self._queue_state(now, seconds), latency)
        entries = self._interactive.take(plan.interactive) + self._batch.take(plan.batch)
        hopeless = self._interactive.take(range(plan.interactive.start)) + self._batch.take(range(plan.hopeless_batch))
        alone_at = now + latency.seconds[1] + latency.margin_seconds
        for entry in hopeless:
            if entry.due_at < entry.latest_at and alone_at < entry.latest_at:
                self._give_its_deadline(entry)
                continue
            error = late_error(entry.job.deadline_at - now)
            if isinstance(error, DeadlineUnreachable):
                self._on_late_refusal()
            _refuse(entry, error)
        self._owed_rows = plan.owed_rows(self._owed_rows, still_waiting=len(self._batch) > 0)
        if not entries:
            return
        self._on_dispatch(plan.size, "full" if plan.size == full_batch else "deadline" if plan.limited else "idle")
        task = asyncio.get_running_loop().create_task(self._run(entries, self._latency.table[plan.size]))
        self._inflight.send(task, plan.size, now)
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def _give_its_deadline(self, entry: _Entry) -> None:
        """Queue a picture again that waited longer than a full queue takes, because batches were slow."""
        entry.due_at = entry.latest_at
        self._queue(entry.job.priority).add(entry.due_at, entry)

    async def _run(self, entries: list[_Entry], predicted_seconds: float) -> None:
        task = asyncio.current_task()
        sent_at = self._clock()
        try:
            result = await self._run_batch([entry.job for entry in entries])
            if len(result.rows) != len(entries):
                raise Bug(f"this is a bug: {len(entries)} pictures gave {len(result.rows)} rows")  # noqa: TRY301
        except Exception as error:  # noqa: BLE001 - every caller of the batch gets it
            for entry in entries:
                _refuse(entry, error)
            return
        now = self._clock()
        started_at = self._inflight.started_at(task)
        self._learn(result, now, now - started_at)
        self._on_batch(predicted_seconds, now - started_at)
        # The backend cannot tell waiting for a worker from the way there.
        waited_seconds = min(max(started_at - sent_at, 0.0), result.transport_seconds)
        for entry, outputs in zip(entries, result.rows, strict=True):
            if not entry.answer.done():
                entry.answer.set_result(
                    Prediction(
                        outputs=outputs,
                        batch_size=len(entries),
                        queue_seconds=sent_at + waited_seconds - entry.job.submitted_at,
                        transport_seconds=result.transport_seconds - waited_seconds,
                        inference_seconds=result.inference_seconds,
                        network_engine=result.network_engine,
                        dtype=result.dtype,
                        device=result.device,
                    )
                )

    def _learn(self, result: BatchResult, now: float, spent_seconds: float) -> None:
        self._latency.observe(len(result.rows), spent_seconds)
        self._learned_at = now
        if result.micro_batch:
            self._full_batch = min(result.micro_batch, self._max_batch)
            self._largest_batch = min(_MICRO_BATCHES * result.micro_batch, self._max_batch)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.remove(task)
        self._inflight.finish(task, self._clock())
        self._pump()


def _refuse(entry: _Entry, error: Exception) -> None:
    if not entry.answer.done():
        entry.answer.set_exception(error)
