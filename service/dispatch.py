"""Batch -> frame -> backend -> rows, for one model.

A batch lost to a dying worker is sent again once, if a deadline in it still allows. The backend call is bounded by the
operator's `batch_timeout_seconds`, not by the callers' deadlines: TorchServe cannot abort a batch, so giving up earlier
would hand its slot to a second batch while the worker is still busy with the first. Callers whose deadline
passes are released by the pipeline meanwhile.

The frame travels inline, as bytes in the call. A second carrier (shared memory) would replace `_carry`.
"""

from collections.abc import Callable, Sequence

import numpy as np

from handlers.frame import FrameError, pack, unpack
from model_store.card import Card
from service.backend import Backend
from service.errors import BackendFault, BackendTimeout, BackendUnavailable
from service.work import BatchResult, Job


class Dispatcher:
    """Sends the batches of one model. `on_trouble` is told when the backend failed, so that health looks again."""

    def __init__(
        self,
        *,
        card: Card,
        backend: Backend,
        batch_timeout_seconds: float,
        clock: Callable[[], float],
        on_retry: Callable[[], None] = lambda: None,
        on_trouble: Callable[[], None] = lambda: None,
    ) -> None:
        self._card = card
        self._backend = backend
        self._batch_timeout_seconds = batch_timeout_seconds
        self._clock = clock
        self._on_retry = on_retry
        self._on_trouble = on_trouble

    async def run(self, jobs: Sequence[Job]) -> BatchResult:
        """Run one batch. Raises `BackendUnavailable`, `BackendTimeout` or `BackendFault`."""
        pixels = np.stack([job.pixels for job in jobs])  # (N, H, W, 3) uint8
        frame = pack({"pixels": pixels})
        started = self._clock()
        try:
            answer = await self._carry(frame, self._batch_timeout_seconds)
        except BackendUnavailable:
            remaining = max(job.deadline_seconds for job in jobs) - self._clock()
            if remaining <= 0:
                raise
            self._on_retry()
            answer = await self._carry(frame, min(remaining, self._batch_timeout_seconds))
        return self._rows(answer, len(jobs), spent_seconds=self._clock() - started)

    async def _carry(self, frame: bytes, timeout_seconds: float) -> bytes:
        try:
            return await self._backend.infer(self._card.name, frame, timeout_seconds=timeout_seconds)
        except (BackendUnavailable, BackendTimeout):
            self._on_trouble()
            raise

    def _rows(self, answer: bytes, size: int, *, spent_seconds: float) -> BatchResult:
        try:
            tensors, meta = unpack(answer)
        except FrameError as error:
            raise BackendFault(f"the worker of {self._card.name} answered no tensor frame: {error}") from error
        for output in self._card.outputs:
            tensor = tensors.get(output.name)
            if tensor is None or tensor.dtype.name != output.dtype or tensor.shape != (size, *output.shape):
                got = "nothing" if tensor is None else f"{tensor.dtype.name} {tensor.shape}"
                raise BackendFault(
                    f"the worker of {self._card.name} answered {got} for output {output.name!r}; its card says "
                    f"{output.dtype} {(size, *output.shape)}: rebuild the archive"
                )
        inference_seconds = min(float(meta.get("inference_seconds", 0.0)), spent_seconds)
        names = [output.name for output in self._card.outputs]
        return BatchResult(
            rows=[{name: tensors[name][index] for name in names} for index in range(size)],
            transport_seconds=spent_seconds - inference_seconds,
            inference_seconds=inference_seconds,
        )
