"""Batch -> carrier -> backend -> rows, for one model.

A batch lost to a dying worker is sent again once, if a deadline in it still allows. The backend call is bounded by the
operator's `batch_timeout_seconds`, not by the callers' deadlines: TorchServe cannot abort a batch, so giving up earlier
would hand its slot to a second batch while the worker is still busy with the first. Callers whose deadline
passes are released by the pipeline meanwhile.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from handlers.frame import Array
from model_store.card import Card
from service.carrier import Carrier
from service.errors import BackendFault, BackendTimeout, BackendUnavailable
from service.work import BatchResult, Job


class Dispatcher:
    """Sends the batches of one model. `on_trouble` is told when the backend failed, so that health looks again."""

    def __init__(
        self,
        *,
        card: Card,
        carrier: Carrier,
        batch_timeout_seconds: float,
        clock: Callable[[], float],
        on_retry: Callable[[], None] = lambda: None,
        on_trouble: Callable[[], None] = lambda: None,
    ) -> None:
        self._card = card
        self._carrier = carrier
        self._batch_timeout_seconds = batch_timeout_seconds
        self._clock = clock
        self._on_retry = on_retry
        self._on_trouble = on_trouble

    async def run(self, jobs: Sequence[Job]) -> BatchResult:
        """Run one batch. Raises `BackendUnavailable`, `BackendTimeout` or `BackendFault`."""
        started = self._clock()
        try:
            tensors, meta = await self._carry(jobs, self._batch_timeout_seconds)
        except BackendUnavailable:
            remaining = max(job.deadline_seconds for job in jobs) - self._clock()
            if remaining <= 0:
                raise
            self._on_retry()
            tensors, meta = await self._carry(jobs, min(remaining, self._batch_timeout_seconds))
        return self._rows(tensors, meta, len(jobs), spent_seconds=self._clock() - started)

    async def _carry(self, jobs: Sequence[Job], timeout_seconds: float) -> tuple[dict[str, Array], Mapping[str, Any]]:
        try:
            return await self._carrier.send(jobs, timeout_seconds=timeout_seconds)
        except (BackendUnavailable, BackendTimeout):
            self._on_trouble()
            raise

    def _rows(
        self, tensors: Mapping[str, Array], meta: Mapping[str, Any], size: int, *, spent_seconds: float
    ) -> BatchResult:
        for output in self._card.outputs:
            tensor = tensors.get(output.name)
            if tensor is None or tensor.dtype != output.dtype or tensor.shape != (size, *output.shape):
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
            part=int(meta.get("part", 0)),
        )
