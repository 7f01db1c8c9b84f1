"""Batches of one model version that go through the engine, and what happens when none of its workers answers.

In: request frames. Out: answer frames, or a backend error. The engine chooses the worker, so one batch without an
answer does not tell which worker is hung. When as many batches are overdue as there are workers, all workers are hung:
the engine is asked to end them, and loses their batches as those of workers that died.
"""

import asyncio
import logging
import math
from collections.abc import Callable

from service.transport.patience import Patience
from service.transport.runner import Runner

_log = logging.getLogger(__name__)


class EngineCalls:
    """The calls of one model version. `workers` gives the number of workers now."""

    def __init__(
        self, model: str, version: str, *, runner: Runner, patience: Patience, workers: Callable[[], int]
    ) -> None:
        self._model = model
        self._version = version
        self._runner = runner
        self._patience = patience
        self._workers = workers
        self._overdue = 0

    async def infer(self, frame: bytes, timeout_seconds: float, *, pictures: int) -> bytes:
        """Run one request frame with so many pictures. Raises what `Runner.infer` raises."""
        loop = asyncio.get_running_loop()
        patience_seconds = self._patience.seconds(pictures)
        started_at = loop.time()
        watch = None
        if patience_seconds < math.inf:
            watch = asyncio.create_task(self._watch(patience_seconds))
        try:
            answer = await self._runner.infer(
                self._model, frame, version=self._version, timeout_seconds=timeout_seconds
            )
        finally:
            if watch is not None:
                watch.cancel()
        self._patience.answered(pictures, loop.time() - started_at)
        return answer

    async def _watch(self, patience_seconds: float) -> None:
        await asyncio.sleep(patience_seconds)
        self._overdue += 1
        try:
            if self._overdue == self._workers():
                await self._end_workers(patience_seconds)
            await asyncio.Event().wait()  # overdue until the batch is answered or given up: this task is cancelled
        finally:
            self._overdue -= 1

    async def _end_workers(self, patience_seconds: float) -> None:
        self._patience.hung()
        try:
            ended = await self._runner.end_workers(self._model, self._version)
        except Exception:  # noqa: BLE001 - the batch must go on, whatever fails here
            _log.exception("model %s: its workers cannot be ended", self._model, extra={"model": self._model})
            return
        outcome = "they are killed" if ended else "their processes cannot be killed from here"
        text = "model %s: no worker answered through the engine for %.1f s; %s"
        _log.warning(text, self._model, patience_seconds, outcome, extra={"model": self._model})
