"""Run checked batches through a loaded module.

In: batches of 1 to `max_batch` pictures, uint8. Out: the outputs that the card declares. Shapes are checked against the
card on the way in and on the way out.
"""

import logging
import time

import numpy as np
import torch

from handlers import cuda_graphs
from handlers.archive import ModuleSpec
from handlers.errors import BatchError, DeviceLost, ModuleRunError, RuntimeLoadError
from handlers.execution import Array, Execution, Rows
from handlers.options import TORCHSCRIPT

WARMUP_ROUNDS = 3
# TorchScript reports every failure as a RuntimeError, so that the text has to tell.
_NO_MEMORY = ("out of memory", "can't allocate memory")

logger = logging.getLogger(__name__)


class Runner:
    """A loaded module and the way it is executed. A worker process has one. `run` is for one thread at a time."""

    def __init__(
        self,
        spec: ModuleSpec,
        execution: Execution,
        *,
        device: torch.device,
        dtype: torch.dtype,
        engine: str = TORCHSCRIPT,
        refused: tuple[str, ...] = (),
    ) -> None:
        self.spec = spec
        self.device = device
        self.engine = engine
        self.refused = refused  # faster engines that were tried and do not fit, as `engine/dtype`
        self.dtype_name = str(dtype).removeprefix("torch.")
        self._execution = execution

    @property
    def micro_batch(self) -> int:
        """Number of pictures that run at once. A larger batch runs as several micro-batches."""
        return self._execution.micro_batch

    def warm_up(self, batches: tuple[int, ...], *, micro_batch: int | None = None, each_size: bool = False) -> float:
        """Run each batch size three times on black pictures, then calibrate; returns the seconds taken.

        `micro_batch` is the result of an earlier calibration: then it is not measured again. `each_size`: at last, run
        every number of pictures that can run at once. Raises `RuntimeLoadError` if the outputs contradict the card.
        """
        started = time.perf_counter()
        for batch in batches:
            self._warm(batch, rounds=WARMUP_ROUNDS)
        if micro_batch is not None:
            self._execution.micro_batch = micro_batch
        else:
            with torch.inference_mode():
                self._execution.calibrate()
        if each_size:
            for batch in range(1, self.micro_batch + 1):
                self._warm(batch, rounds=1)
        return time.perf_counter() - started

    def _warm(self, batch: int, *, rounds: int) -> None:
        pixels = np.zeros((batch, self.spec.height_px, self.spec.width_px, 3), np.uint8)
        for _ in range(rounds):
            try:
                self.run(pixels)
            except BatchError as error:
                raise RuntimeLoadError(f"the module does not do what its card says: {error}") from error

    def run(self, rows: Rows) -> dict[str, Array]:
        """uint8 RGB, [N, H, W, 3] or N times [H, W, 3] -> the card's outputs, N rows each.

        The outputs are valid until the next run. A batch for which memory is too small runs in halves. Raises
        `BatchError`, `ModuleRunError`, and `DeviceLost`, after which no other run can succeed.
        """
        self._check(rows)
        try:
            with torch.inference_mode():
                tensors = self._run(rows)
        except (RuntimeError, torch.jit.Error) as error:
            if self.device.type == "cuda" and not cuda_graphs.context_works(self.device):
                raise DeviceLost(f"{self.device} does not answer this process any more: {_last_line(error)}") from error
            raise ModuleRunError(f"the module failed: {_last_line(error)}") from error
        spec = self.spec
        if len(tensors) != len(spec.outputs):
            raise BatchError(f"the module returned {len(tensors)} tensors; its card declares {len(spec.outputs)}")
        answer: dict[str, Array] = {}
        for declared, tensor in zip(spec.outputs, tensors, strict=True):
            array: Array = tensor.numpy()
            if array.dtype != declared.dtype or array.shape[1:] != declared.shape or len(array) < len(rows):
                raise BatchError(
                    f"output {declared.name!r} is {array.dtype.name} {list(array.shape)}; its card declares "
                    f"{declared.dtype} [N, {', '.join(map(str, declared.shape))}]"
                )
            answer[declared.name] = array[: len(rows)]
        return answer

    def _run(self, rows: Rows) -> tuple[torch.Tensor, ...]:
        """The outputs, N rows or more each. Where memory is too small for the batch, its halves run one by one."""
        try:
            return self._execution.run(rows)
        except RuntimeError as error:
            if len(rows) == 1 or not any(sign in str(error).lower() for sign in _NO_MEMORY):
                raise
            logger.warning("a batch of %d runs in halves: %s", len(rows), _last_line(error))
        # Outside of the handler: the traceback holds the tensors of the failed run.
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        middle = len(rows) // 2
        first = tuple(output[:middle].clone() for output in self._run(rows[:middle]))  # the next run overwrites them
        second = self._run(rows[middle:])
        return tuple(torch.cat((one, other)) for one, other in zip(first, second, strict=True))

    def _check(self, rows: Rows) -> None:
        spec = self.spec
        picture = (spec.height_px, spec.width_px, 3)
        pictures = (rows[0],) if isinstance(rows, np.ndarray) and rows.ndim == 4 and len(rows) else rows
        for row in pictures:
            if row.dtype != np.uint8 or row.shape != picture:
                raise BatchError(
                    f"the module takes uint8 [N, {spec.height_px}, {spec.width_px}, 3]; a row of this batch is "
                    f"{row.dtype} {list(row.shape)}"
                )
        if not 1 <= len(rows) <= spec.max_batch:
            raise BatchError(f"the batch has {len(rows)} rows; this archive takes 1 to {spec.max_batch}")


def _last_line(error: Exception) -> str:
    # TorchScript's message ends with the module's own words; the lines before are its traceback.
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1].strip()
