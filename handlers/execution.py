"""How a checked batch gets through the module: the buffers it is gathered into, the size it is run at.

In: rows, either one array [N, H, W, 3] or N arrays [H, W, 3], uint8. Out: the module's outputs on the host, N rows or
more. The gathering is the only copy of the pixels made here. Never checks shapes against the card (`runtime` does).
One thread only. The tensors that come out are overwritten by the next run.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch

SIZES = (1, 2, 4, 8, 16, 32, 64)
# Two at once save what a run costs whatever its size. More must save a twentieth of the time: the pictures of a part
# wait for each other. That is played in rounds, until one side leads by so many or there is no more time.
_LEAST_PART, _WORTHWHILE = 2, 0.95
_CLEAR_LEAD, _DOUBTFUL_LEAD, _MOST_SECONDS = 4, 1, 2.0

Array = np.ndarray[Any, np.dtype[Any]]
Rows = Array | Sequence[Array]
Module = Callable[[torch.Tensor], torch.Tensor | tuple[torch.Tensor, ...]]


class Execution(Protocol):
    """One way to run batches. `part`: how many pictures are run at once; a larger batch is run in parts."""

    part: int

    def run(self, rows: Rows) -> tuple[torch.Tensor, ...]:
        """The outputs for N rows, on the host, N rows or more each."""
        ...

    def settle(self) -> None:
        """Choose what can only be chosen by measuring. Called once, when nothing is left to compile."""
        ...


class Bucket(Protocol):
    """The module at one batch size. `pixels` is uint8 [size, H, W, 3] on the host, filled before each run."""

    pixels: torch.Tensor

    def run(self) -> tuple[torch.Tensor, ...]:
        """The outputs for what lies in `pixels`, on the host, `size` rows each."""
        ...


class Direct:
    """On a CPU: from where it lies if a batch is one array, else from one buffer kept.

    A batch runs in parts of as many pictures as pay: the activations of more fall out of the caches, and then out of
    the memory that the process keeps (see `heap`). How many that is depends on module and machine.
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
        self.part = max_batch

    def run(self, rows: Rows) -> tuple[torch.Tensor, ...]:
        """See `Execution.run`."""
        # torch warns about memory that it may not write.
        if isinstance(rows, np.ndarray) and rows.flags.writeable and rows.flags.c_contiguous:
            pixels = torch.from_numpy(rows)
        else:
            gather(rows, self._pixels)
            pixels = self._pixels[: len(rows)]
        count = -(-len(rows) // self.part)
        if count == 1:
            return outputs_of(self._module(pixels))
        parts = [outputs_of(self._module(part)) for part in pixels.tensor_split(count)]
        return tuple(torch.cat(one) for one in zip(*parts, strict=True))

    def settle(self) -> None:
        """Double the part as long as that pays."""
        self.part = min(_LEAST_PART, len(self._pixels))
        while 2 * self.part <= len(self._pixels) and self._pays(2 * self.part):
            self.part *= 2

    def _pays(self, size: int) -> bool:
        """Whether so many pictures take clearly less time at once than in two halves.

        By turns: a machine that others use too changes its speed within a second by more than parts differ.
        """
        lead, began = 0, self._clock()
        while abs(lead) < _CLEAR_LEAD and self._clock() - began < _MOST_SECONDS:
            halves = self._seconds(size // 2) + self._seconds(size // 2)
            lead += 1 if self._seconds(size) < _WORTHWHILE * halves else -1
        return lead > _DOUBTFUL_LEAD

    def _seconds(self, size: int) -> float:
        pixels = self._pixels[:size].zero_()
        began = self._clock()
        self._module(pixels)
        return self._clock() - began


class Bucketed:
    """On a GPU: a batch is gathered into the smallest bucket that holds it; the rows behind it stay what they were."""

    def __init__(self, max_batch: int, make: Callable[[int], Bucket]) -> None:
        self.part = max_batch
        # The largest first: the smaller ones find the memory that it took.
        self._buckets = {size: make(size) for size in reversed(bucket_sizes(max_batch))}

    def settle(self) -> None:
        """Every size was captured when it was made."""

    def run(self, rows: Rows) -> tuple[torch.Tensor, ...]:
        """See `Execution.run`."""
        bucket = self._buckets[min(size for size in self._buckets if size >= len(rows))]
        gather(rows, bucket.pixels)
        return bucket.run()


def bucket_sizes(max_batch: int) -> tuple[int, ...]:
    """The batch sizes a bucketed run uses: powers of two, and `max_batch` itself."""
    return (*(size for size in SIZES if size < max_batch), max_batch)


def gather(rows: Rows, buffer: torch.Tensor) -> None:
    """Copy N rows into the first N of a host buffer."""
    target = buffer.numpy()
    if isinstance(rows, np.ndarray):
        target[: len(rows)] = rows
        return
    for index, row in enumerate(rows):
        target[index] = row


def outputs_of(results: torch.Tensor | tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """A module with one output returns it bare."""
    return (results,) if isinstance(results, torch.Tensor) else tuple(results)
