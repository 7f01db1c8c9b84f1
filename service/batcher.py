"""The queue of one model: jobs in, batches out.

Policy: earliest deadline first, and work-conserving. A batch leaves as soon as a slot of the backend is free and
something waits; nothing waits while a slot idles. Jobs that arrive in the same turn of the event loop share a batch.
A job whose caller went away leaves the queue at once; one whose deadline passed is never dispatched. The queue
is bounded: what does not fit is refused with an estimate of when to come back.

The clock and `run_batch` are injected, so that tests drive time and batches by hand. Never decodes, never speaks gRPC.
"""

import asyncio
import heapq
import itertools
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from service.errors import Bug, DeadlineExceeded, QueueFull, ShuttingDown
from service.work import BatchResult, Job, Row

RunBatch = Callable[[Sequence[Job]], Awaitable[BatchResult]]

_SMOOTHING = 0.2  # weight of the newest batch in the running mean of batch seconds


@dataclass(order=True, slots=True)
class _Entry:
    deadline_seconds: float
    order: int
    job: Job = field(compare=False)
    answer: asyncio.Future[Row] = field(compare=False)


class Batcher:
    """Queue of one model. All methods are for one event loop.

    `slots` batches run at once; `on_dispatch(size, reason)` is called for each batch: `full`, or `idle` when everything
    that waited left on an idle slot.
    """

    def __init__(
        self,
        *,
        max_batch: int,
        slots: int,
        max_queue: int,
        run_batch: RunBatch,
        clock: Callable[[], float],
        on_dispatch: Callable[[int, str], None] = lambda size, reason: None,
    ) -> None:
        self._max_batch = max_batch
        self._slots = slots
        self._max_queue = max_queue
        self._run_batch = run_batch
        self._clock = clock
        self._on_dispatch = on_dispatch
        self._heap: list[_Entry] = []
        self._order = itertools.count()
        self._running: dict[asyncio.Task[None], float] = {}  # task -> when it was dispatched
        self._batch_seconds = 0.0
        self._pump_scheduled = False
        self._closed = False

    async def submit(self, job: Job) -> Row:
        """Wait for the job's row. Cancelling the caller takes the job out of the queue.

        Raises `QueueFull`, `DeadlineExceeded`, `ShuttingDown`, or what `run_batch` raised.
        """
        if self._closed:
            raise ShuttingDown("the server is shutting down; call another replica")
        if job.deadline_seconds <= self._clock():
            raise DeadlineExceeded("the deadline passed before the picture reached the queue")
        if len(self._heap) >= self._max_queue:
            self._pump()  # what an idle slot can take does not count as waiting
        if len(self._heap) >= self._max_queue:
            raise QueueFull(
                f"{len(self._heap)} pictures already wait for this model; retry later or add replicas",
                retry_after_seconds=self._seconds_until_room(),
            )
        entry = _Entry(job.deadline_seconds, next(self._order), job, asyncio.get_running_loop().create_future())
        heapq.heappush(self._heap, entry)
        self._schedule_pump()
        try:
            return await entry.answer
        except asyncio.CancelledError:
            self._remove(entry)
            raise

    @property
    def queue_length(self) -> int:
        """Jobs waiting."""
        return len(self._heap)

    def queue_age_seconds(self) -> float:
        """Age of the job that waits longest, 0 when none waits."""
        return max((self._clock() - entry.job.submitted_seconds for entry in self._heap), default=0.0)

    def oldest_batch_seconds(self) -> float:
        """How long the oldest batch in work has been running, 0 when none is."""
        return max((self._clock() - started for started in self._running.values()), default=0.0)

    async def close(self) -> None:
        """Refuse what waits, finish what runs."""
        self._closed = True
        while self._heap:
            entry = heapq.heappop(self._heap)
            if not entry.answer.done():
                entry.answer.set_exception(ShuttingDown("the server is shutting down; call another replica"))
        await asyncio.gather(*self._running)

    def _schedule_pump(self) -> None:
        # One turn of the loop later, so that all jobs of this turn are seen together.
        if not self._pump_scheduled:
            self._pump_scheduled = True
            asyncio.get_running_loop().call_soon(self._pump)

    def _pump(self) -> None:
        self._pump_scheduled = False  # a pump too many finds nothing to do
        while self._heap and len(self._running) < self._slots:
            entries = self._take()
            if not entries:
                break
            self._on_dispatch(len(entries), "full" if len(entries) == self._max_batch else "idle")
            task = asyncio.get_running_loop().create_task(self._run(entries))
            self._running[task] = self._clock()
            task.add_done_callback(self._finished)

    def _take(self) -> list[_Entry]:
        now = self._clock()
        entries: list[_Entry] = []
        while self._heap and len(entries) < self._max_batch:
            entry = heapq.heappop(self._heap)
            if entry.answer.done():
                continue
            if entry.deadline_seconds <= now:
                entry.answer.set_exception(
                    DeadlineExceeded("the deadline passed while the picture waited in the queue")
                )
                continue
            entries.append(entry)
        return entries

    async def _run(self, entries: list[_Entry]) -> None:
        dispatched = self._clock()
        try:
            result = await self._run_batch([entry.job for entry in entries])
            if len(result.rows) != len(entries):
                raise Bug(f"this is a bug: {len(entries)} pictures gave {len(result.rows)} rows")  # noqa: TRY301
        except Exception as error:  # noqa: BLE001 - every caller of the batch gets it
            for entry in entries:
                if not entry.answer.done():
                    entry.answer.set_exception(error)
            return
        spent = self._clock() - dispatched
        self._batch_seconds += (spent - self._batch_seconds) * (_SMOOTHING if self._batch_seconds else 1.0)
        for entry, outputs in zip(entries, result.rows, strict=True):
            if not entry.answer.done():
                entry.answer.set_result(
                    Row(
                        outputs=outputs,
                        batch_size=len(entries),
                        queue_seconds=dispatched - entry.job.submitted_seconds,
                        transport_seconds=result.transport_seconds,
                        inference_seconds=result.inference_seconds,
                    )
                )

    def _finished(self, task: asyncio.Task[None]) -> None:
        del self._running[task]
        self._pump()

    def _remove(self, entry: _Entry) -> None:
        # Linear in a bounded queue. Not there any more when the batch already left.
        if entry in self._heap:
            self._heap.remove(entry)
            heapq.heapify(self._heap)

    def _seconds_until_room(self) -> float:
        batches = math.ceil(len(self._heap) / self._max_batch / self._slots)
        return max(0.05, batches * self._batch_seconds)
