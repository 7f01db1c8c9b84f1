"""An event loop whose time jumps to the next timer instead of passing, and a backend and callers that live in it.

Minutes of traffic run in seconds and always the same way, through the real batcher under the real asyncio.
"""

import asyncio
import random
import selectors
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from service.batching.batcher import Batcher
from service.core.errors import DeadlineExceeded, DeadlineUnreachable, QueueFull
from service.core.types import BatchResult, Job, Priority

PIXELS = np.zeros((1, 1, 3), np.uint8)


class VirtualLoop(asyncio.SelectorEventLoop):
    """A loop on which waiting takes no time."""

    def __init__(self) -> None:
        self.now = 0.0
        super().__init__(_Jumping(self))

    def time(self) -> float:
        return self.now


class _Jumping(selectors.SelectSelector):
    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> Any:
        assert timeout is not None, "everything waits for something that never comes"
        self._loop.now += max(timeout, 0.0)
        return super().select(0)


def run(main: Coroutine[Any, Any, Any]) -> Any:
    """`asyncio.run` in virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)


@dataclass
class Outcome:
    """What became of one call."""

    request_id: str
    came: float
    deadline: float
    priority: Priority
    caller: str = ""
    kind: str = "open"  # answered, late, unreachable, full, cancelled
    done: float = 0.0


@dataclass
class World:
    """A batcher in front of `workers` that take `service(size, now)` seconds per batch, and a record of everything."""

    service: Callable[[int, float], float]
    max_batch: int = 16
    workers: int = 1
    batches_per_worker: int = 2
    max_queue: int = 128
    beside: "World | None" = None  # another gateway, whose workers these are too
    decode_seconds: float = 0.0  # from admission until the picture is in the queue
    outcomes: list[Outcome] = field(default_factory=list)
    batches: list[tuple[float, int]] = field(default_factory=list)  # when taken by a worker, size
    sent: list[list[Job]] = field(default_factory=list)
    finished: dict[str, float] = field(default_factory=dict)  # request id -> when its batch came back
    reasons: Counter[str] = field(default_factory=Counter)
    errors: list[tuple[float, float]] = field(default_factory=list)  # predicted, spent
    late_refusals: int = 0

    def __post_init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._worker = asyncio.Semaphore(self.workers) if self.beside is None else self.beside._worker
        self.batcher = Batcher(
            max_batch=self.max_batch,
            workers=self.workers,
            batches_per_worker=self.batches_per_worker,
            max_queue=self.max_queue,
            run_batch=self._run,
            clock=self._loop.time,
            on_dispatch=lambda size, reason: self.reasons.update([reason]),
            on_batch=lambda predicted, spent: self.errors.append((predicted, spent)),
            on_late_refusal=self._late,
        )

    def _late(self) -> None:
        self.late_refusals += 1

    async def _run(self, jobs: Sequence[Job]) -> BatchResult:
        self.sent.append(list(jobs))
        sent = self._loop.time()
        async with self._worker:
            taken = self._loop.time()
            self.batches.append((taken, len(jobs)))
            seconds = self.service(len(jobs), taken)
            await asyncio.sleep(seconds)
        self.finished.update({job.request_id: self._loop.time() for job in jobs})
        return BatchResult(rows=[{} for _ in jobs], transport_seconds=taken - sent, inference_seconds=seconds)

    async def call(self, within: float, priority: Priority = Priority.INTERACTIVE, caller: str = "") -> Outcome:
        """One call as the pipeline makes it: released at its deadline, whatever happens."""
        now = self._loop.time()
        outcome = Outcome(
            request_id=str(len(self.outcomes)), came=now, deadline=now + within, priority=priority, caller=caller
        )
        self.outcomes.append(outcome)
        try:
            async with asyncio.timeout_at(outcome.deadline):
                admission = self.batcher.admit(outcome.deadline, priority, caller=caller)
                if self.decode_seconds:
                    await asyncio.sleep(self.decode_seconds)
                job = Job(
                    request_id=outcome.request_id,
                    pixels=PIXELS,
                    deadline_at=outcome.deadline,
                    submitted_at=self._loop.time(),
                    priority=priority,
                    caller=caller,
                )
                await self.batcher.submit(job, admission)
            outcome.kind = "answered"
        except (TimeoutError, DeadlineExceeded):
            outcome.kind = "late"
        except DeadlineUnreachable:
            outcome.kind = "unreachable"
        except QueueFull:
            outcome.kind = "full"
        except asyncio.CancelledError:
            outcome.kind = "cancelled"
            raise
        finally:
            outcome.done = self._loop.time()
        return outcome

    async def arrive(
        self,
        times: Iterator[float],
        within: Callable[[], float],
        priority: Priority = Priority.INTERACTIVE,
        caller: str = "",
    ) -> None:
        """Calls at these times; returns when all have ended."""
        async with asyncio.TaskGroup() as group:
            for time in times:
                await asyncio.sleep(time - self._loop.time())
                group.create_task(self.call(within(), priority, caller))

    def kinds(self, *, since: float = 0.0, priority: Priority | None = None) -> Counter[str]:
        """How the calls that came `since` then ended, of one priority or of both."""
        return Counter(o.kind for o in self.outcomes if o.came >= since and priority in {None, o.priority})


def poisson(rate: float, *, seconds: float, seed: int, start: float = 0.0) -> Iterator[float]:
    """Times of a Poisson process."""
    generator = random.Random(seed)
    time = start + generator.expovariate(rate)
    while time < start + seconds:
        yield time
        time += generator.expovariate(rate)
