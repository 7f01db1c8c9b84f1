"""How a checked batch runs through the module: the buffer that holds it, and the batch size it runs at.

In: rows, either one array [N, H, W, 3] or N arrays [H, W, 3], uint8. Out: the module's outputs on the host, N rows or
more. Rows are copied at most once, into the buffer. Shapes are not checked against the card; `handlers.runner` does
that. For one thread only. The next run overwrites the returned tensors.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch

SIZES = (1, 2, 4, 8, 16, 32, 64)

# Two pictures at once save the fixed cost of a run. A larger micro-batch must save a twentieth of the time, because its
# pictures wait for each other. Both sizes are timed in rounds until one is ahead by `_CLEAR_LEAD` rounds or the time is
# over; then a lead of more than `_DOUBTFUL_LEAD` rounds decides for the larger size.
_LEAST_MICRO_BATCH = 2
_WORTHWHILE = 0.95  # of the time of two halves
_CLEAR_LEAD, _DOUBTFUL_LEAD = 4, 1  # rounds
_LONGEST_SECONDS = 2.0

Array = np.ndarray[Any, np.dtype[Any]]
Rows = Array | Sequence[Array]
Module = Callable[[torch.Tensor], torch.Tensor | tuple[torch.Tensor, ...]]


class Execution(Protocol):
    """One way to run batches.

    `micro_batch` is the number of pictures that run at once. A larger batch runs as several micro-batches.
    """

    micro_batch: int

    def run(self, rows: Rows) -> tuple[torch.Tensor, ...]:
        """The outputs for N rows, [N, H, W, 3] or N times [H, W, 3]: on the host, N rows or more each."""
        ...

    def calibrate(self) -> None:
        """Measure and choose the micro-batch. Called once, when nothing is left to compile."""
        ...


class Bucket(Protocol):
    """The module at one batch size. `pixels` is uint8 [size, H, W, 3] on the host, filled before each run."""

    pixels: torch.Tensor

    def run(self) -> tuple[torch.Tensor, ...]:
        """The outputs [size, ...] for the pictures in `pixels`, on the host."""
        ...


class Direct:
    """On a CPU: a batch that is one array runs where it lies, other batches run from one buffer.

    A batch runs in micro-batches. With more pictures at once, the activations no longer fit the caches, and then no
    longer the memory that the process keeps (see `handlers.malloc_tuning`). The best number depends on the module and
    the machine, so `calibrate` measures it.
    """

    def __init__(
        self,
        module: Module,
        *,
        max_batch: int,
        height_px: int,
        width_px: int,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._module = module
        self._pixels = torch.empty((max_batch, height_px, width_px, 3), dtype=torch.uint8)
        self._clock = clock
        self.micro_batch = max_batch

    def run(self, rows: Rows) -> tuple[torch.Tensor, ...]:
        """Run N rows, [N, H, W, 3] or N times [H, W, 3]; see `Execution.run`."""
        # torch warns about memory that it may not write.
        if isinstance(rows, np.ndarray) and rows.flags.writeable and rows.flags.c_contiguous:
            pixels = torch.from_numpy(rows)
        else:
            gather(rows, self._pixels)
            pixels = self._pixels[: len(rows)]
        count = -(-len(rows) // self.micro_batch)
        if count == 1:
            return outputs_of(self._module(pixels))
        results = [outputs_of(self._module(micro_batch)) for micro_batch in pixels.tensor_split(count)]
        return tuple(torch.cat(output) for output in zip(*results, strict=True))

    def calibrate(self) -> None:
        """Double the micro-batch as long as that pays."""
        self.micro_batch = min(_LEAST_MICRO_BATCH, len(self._pixels))
        while 2 * self.micro_batch <= len(self._pixels) and self._pays(2 * self.micro_batch):
            self.micro_batch *= 2

    def _pays(self, size: int) -> bool:
        """Whether `size` pictures take clearly less time at once than in two halves.

        The two are timed by turns. The speed of a machine that other programs use changes within a second, by more than
        the two differ.
        """
        lead, started_at = 0, self._clock()
        while abs(lead) < _CLEAR_LEAD and self._clock() - started_at < _LONGEST_SECONDS:
            halves = self._seconds(size // 2) + self._seconds(size // 2)
            lead += 1 if self._seconds(size) < _WORTHWHILE * halves else -1
        return lead > _DOUBTFUL_LEAD

    def _seconds(self, size: int) -> float:
        pixels = self._pixels[:size].zero_()
        started_at = self._clock()
        self._module(pixels)
        return self._clock() - started_at


class Bucketed:
    """On a GPU: a batch is copied into the smallest bucket that holds it. Rows behind the batch keep old pixels."""

    def __init__(self, max_batch: int, make: Callable[[int], Bucket]) -> None:
        self.micro_batch = max_batch
        # The largest first: the smaller buckets reuse the memory that it took.
        self._buckets = {size: make(size) for size in reversed(bucket_sizes(max_batch))}

    def calibrate(self) -> None:
        """Do nothing: every size was captured when it was made."""

    def run(self, rows: Rows) -> tuple[torch.Tensor, ...]:
        """Run N rows, [N, H, W, 3] or N times [H, W, 3]; see `Execution.run`."""
        bucket = self._buckets[min(size for size in self._buckets if size >= len(rows))]
        gather(rows, bucket.pixels)
        return bucket.run()


def bucket_sizes(max_batch: int) -> tuple[int, ...]:
    """The batch sizes of a bucketed run: powers of two, and `max_batch` itself."""
    return (*(size for size in SIZES if size < max_batch), max_batch)


def gather(rows: Rows, buffer: torch.Tensor) -> None:
    """Copy N rows into the first N of a host buffer, uint8 [size, H, W, 3]."""
    target = buffer.numpy()
    if isinstance(rows, np.ndarray):
        target[: len(rows)] = rows
        return
    for index, row in enumerate(rows):
        target[index] = row


def outputs_of(results: torch.Tensor | tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """The outputs [N, ...] as a tuple: a module with one output returns it bare."""
    return (results,) if isinstance(results, torch.Tensor) else tuple(results)
