"""What the gateway needs from an inference backend, and a fake one for tests and dry runs.

The fake passes the same contract test as `torchserve.TorchServeBackend` (tests/contract/test_backend.py).
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from handlers import exchange
from handlers.frame import Array, FrameError, unpack
from handlers.shm import Memory
from service.errors import BackendFault, BackendTimeout, ServiceError


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """Workers of one model as the backend sees them; `detail` says why none is ready."""

    ready_workers: int
    total_workers: int
    detail: str = ""


class Backend(Protocol):
    """Runs frames. Safe to call concurrently from one event loop."""

    async def infer(self, model: str, frame: bytes, *, timeout_seconds: float) -> bytes:
        """Run one batch: a request frame in, an answer frame out, as `handlers.exchange` describes them.

        Raises `BackendUnavailable` (unreachable, or the worker died: may be sent again), `BackendTimeout`,
        `BackendFault` (the model failed on it: sending it again would fail again).
        """
        ...

    async def model_status(self, model: str) -> ModelStatus:
        """Report the workers of a model. Raises `BackendUnavailable`."""
        ...

    async def close(self) -> None:
        """Close connections."""
        ...


class FakeBackend:
    """A backend in this process: `run` maps pixels to outputs, `failures` are raised before answering, in order.

    `gate`, when set, holds every batch until it is opened, so that tests decide when a batch finishes. `shm_dir` is
    what its workers are given as `MOBILEVISION_SHM_DIR`; `call` is how they call a gateway back, None: they do not.
    """

    def __init__(
        self,
        run: Callable[[str, Array], Mapping[str, Array]],
        *,
        shm_dir: Path | None = None,
        call: Callable[[str], None] | None = None,
    ) -> None:
        self._run = run
        self._call = call
        self.memory = Memory(shm_dir)
        self.failures: list[ServiceError] = []
        self.gate: asyncio.Event | None = None
        self.batch_sizes: list[int] = []
        self.ready_workers = 1

    async def infer(self, model: str, frame: bytes, *, timeout_seconds: float) -> bytes:
        """See `Backend.infer`."""
        tensors, _ = unpack(frame)
        rows = tensors.get(exchange.SLOTS, tensors.get(exchange.PIXELS))
        if rows is not None:
            self.batch_sizes.append(len(rows))
            try:
                async with asyncio.timeout(timeout_seconds):
                    if self.gate is not None:
                        await self.gate.wait()
            except TimeoutError as error:
                raise BackendTimeout(f"no answer within {timeout_seconds:.3f} s") from error
            if self.failures:
                raise self.failures.pop(0)

        def run(pixels: Array | Sequence[Array]) -> Mapping[str, Array]:
            return self._run(model, np.stack(list(pixels)))

        try:
            return exchange.answer(frame, run=run, memory=self.memory, about={}, call=self._call)
        except FrameError as error:
            raise BackendFault(str(error)) from error

    async def model_status(self, model: str) -> ModelStatus:
        """See `Backend.model_status`."""
        return ModelStatus(ready_workers=self.ready_workers, total_workers=1)

    async def close(self) -> None:
        """Nothing to close."""
