"""A batcher on a clock that only the test moves, with batches that finish when the test says so."""

import asyncio
from collections.abc import Sequence

import numpy as np

from service.batching.batcher import Batcher
from service.core.types import BatchResult, Job, Prediction, Priority


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

    def job(
        self, name: str, *, deadline: float = 100.0, priority: Priority = Priority.INTERACTIVE, picture_px: int = 0
    ) -> Job:
        return Job(
            request_id=name,
            pixels=np.zeros((1, 1, 3), np.uint8),
            deadline_at=deadline,
            submitted_at=self.now,
            priority=priority,
            picture_px=picture_px,
        )

    def submit(
        self, name: str, *, deadline: float = 100.0, priority: Priority = Priority.INTERACTIVE, picture_px: int = 0
    ) -> asyncio.Task[Prediction]:
        job = self.job(name, deadline=deadline, priority=priority, picture_px=picture_px)
        return asyncio.ensure_future(self._call(job))

    async def _call(self, job: Job) -> Prediction:
        return await self.batcher.submit(job, self.batcher.admit(job.deadline_at, job.priority))

    async def learn(self, seconds: float, *, size: int = 1, batches: int = 3) -> None:
        """Let batches of one size take so long, until the batcher believes it."""
        for _ in range(batches):
            answers = [self.submit("lesson", deadline=self.now + 1000) for _ in range(size)]
            await settle()
            self.now += seconds
            await self.finish()
            await asyncio.gather(*answers)
        self.dispatched.clear()

    async def finish(
        self, *, error: Exception | None = None, rows: int | None = None, micro_batch: int = 0
    ) -> list[str]:
        names, done = self.running.pop(0)
        if error is not None:
            done.set_exception(error)
        else:
            count = len(names) if rows is None else rows
            outputs = [{"scores": np.array([float(i)], np.float32)} for i in range(count)]
            done.set_result(
                BatchResult(rows=outputs, transport_seconds=0.25, inference_seconds=0.5, micro_batch=micro_batch)
            )
        await settle()
        return names


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)
