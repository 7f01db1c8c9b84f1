"""How a checked batch gets through the module: the buffers it is gathered into, the size it is run at.

In: rows, either one array [N, H, W, 3] or N arrays [H, W, 3], uint8. Out: the module's outputs on the host, N rows or
more. The gathering is the only copy of the pixels made here. Never checks shapes against the card (`runtime` does).
One thread only. The tensors that come out are overwritten by the next run.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch

SIZES = (1, 2, 4, 8, 16, 32, 64)

Array = np.ndarray[Any, np.dtype[Any]]
Rows = Array | Sequence[Array]
Module = Callable[[torch.Tensor], torch.Tensor | tuple[torch.Tensor, ...]]


class Execution(Protocol):
    """One way to run batches."""

    def run(self, rows: Rows) -> tuple[torch.Tensor, ...]:
        """The outputs for N rows, on the host, N rows or more each."""
        ...


class Bucket(Protocol):
    """The module at one batch size. `pixels` is uint8 [size, H, W, 3] on the host, filled before each run."""

    pixels: torch.Tensor

    def run(self) -> tuple[torch.Tensor, ...]:
        """The outputs for what lies in `pixels`, on the host, `size` rows each."""
        ...


class Direct:
    """On a CPU: a batch runs at its own size, from where it lies if it is one array, else from one buffer kept."""

    def __init__(self, module: Module, *, max_batch: int, height_px: int, width_px: int) -> None:
        self._module = module
        self._pixels = torch.empty((max_batch, height_px, width_px, 3), dtype=torch.uint8)

    def run(self, rows: Rows) -> tuple[torch.Tensor, ...]:
        """See `Execution.run`."""
        # torch warns about memory that it may not write.
        if isinstance(rows, np.ndarray) and rows.flags.writeable and rows.flags.c_contiguous:
            return outputs_of(self._module(torch.from_numpy(rows)))
        gather(rows, self._pixels)
        return outputs_of(self._module(self._pixels[: len(rows)]))


class Bucketed:
    """On a GPU: a batch is gathered into the smallest bucket that holds it; the rows behind it stay what they were."""

    def __init__(self, max_batch: int, make: Callable[[int], Bucket]) -> None:
        # The largest first: the smaller ones find the memory that it took.
        self._buckets = {size: make(size) for size in reversed(bucket_sizes(max_batch))}

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
