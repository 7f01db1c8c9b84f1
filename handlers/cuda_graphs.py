"""The module on a CUDA device: one captured graph per batch size, between pinned buffers that never move.

In: a module on its device. Out: buckets for `execution.Bucketed`. A call is then three things queued on one stream (the
copy in, the graph, the copies out) and one wait, with no Python or allocation between; the copies of one worker overlap
the computing of another on the same GPU. Where a size cannot be captured, that size runs without a graph and the log
says why. Ran on one NVIDIA H200 with torch 2.11: graphs of five models, eager buckets of four, graphs of one model in
eight processes at once (benchmarks/measured/gpu.json). Not run on a GPU: behind the server, a capture that fails, a
device that is lost.
"""

import logging
from collections.abc import Callable
from typing import Any

import torch

from handlers.execution import Bucket, Module, outputs_of

CAPTURE_WARMUP_ROUNDS = 3  # TorchScript's profiling, cuDNN's choice of algorithms: none of it may happen in a capture

logger = logging.getLogger(__name__)

MakeBucket = Callable[[int], Bucket]


class CudaDevice:
    """Makes the buckets of one device, on a stream of their own. `height_px`, `width_px`: of every picture."""

    def __init__(self, module: Module, device: torch.device, *, height_px: int, width_px: int) -> None:
        self._module = module
        self._device = device
        self._picture = (height_px, width_px, 3)
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool: Any = torch.cuda.graph_pool_handle()  # shared: only one graph runs at a time

    def eager(self, size: int) -> "EagerBucket":
        """The size without a graph."""
        return EagerBucket(self._module, (size, *self._picture), self._device, self._stream)

    def graphed(self, size: int) -> "GraphBucket":
        """The size as a graph. Raises what the capture raised."""
        return GraphBucket(self.eager(size), self._pool)


class EagerBucket:
    """One size, each kernel launched from here."""

    def __init__(self, module: Module, shape: tuple[int, ...], device: torch.device, stream: torch.cuda.Stream) -> None:
        self.module = module
        self.stream = stream
        self.pixels = torch.zeros(shape, dtype=torch.uint8, pin_memory=True)
        self.on_device = torch.zeros(shape, dtype=torch.uint8, device=device)

    def run(self) -> tuple[torch.Tensor, ...]:
        """See `handlers.execution.Bucket.run`."""
        with torch.cuda.stream(self.stream):
            self.on_device.copy_(self.pixels, non_blocking=True)
            return tuple(result.cpu() for result in outputs_of(self.module(self.on_device)))


class GraphBucket:
    """One size, captured once and replayed."""

    def __init__(self, eager: EagerBucket, pool: Any) -> None:
        self.pixels = eager.pixels
        self._eager = eager
        for _ in range(CAPTURE_WARMUP_ROUNDS):
            eager.run()
        eager.stream.synchronize()
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, pool=pool, stream=eager.stream, capture_error_mode="thread_local"):
            self._results = outputs_of(eager.module(eager.on_device))
        self._host = tuple(torch.empty(r.shape, dtype=r.dtype, pin_memory=True) for r in self._results)

    def run(self) -> tuple[torch.Tensor, ...]:
        """See `handlers.execution.Bucket.run`."""
        stream = self._eager.stream
        with torch.cuda.stream(stream):
            self._eager.on_device.copy_(self.pixels, non_blocking=True)
            self._graph.replay()
            for host, result in zip(self._host, self._results, strict=True):
                host.copy_(result, non_blocking=True)
        stream.synchronize()
        return self._host


def graphed_or_eager(graphed: MakeBucket, eager: MakeBucket) -> MakeBucket:
    """Try a graph for each size; where the capture fails, log the reason and run that size without one."""

    def make(size: int) -> Bucket:
        try:
            return graphed(size)
        except RuntimeError as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            logger.warning("no graph for batches of %d, each kernel is launched by itself: %s", size, reason)
            return eager(size)

    return make


def context_works(device: torch.device) -> bool:
    """Whether the device still computes. After some failures no call of this process will ever succeed again."""
    try:
        return bool(torch.ones(1, device=device).add_(1).item() == 2)
    except RuntimeError:
        return False
