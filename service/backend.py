"""What the gateway needs from an inference backend, and a fake one for tests and dry runs.

The fake passes the same contract test as `torchserve.TorchServeBackend` (tests/contract/test_backend.py).
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from handlers.frame import Array, pack, unpack
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
        """Run one batch: a frame with tensor `pixels` uint8 [N,H,W,3] in, a frame with the card's outputs out.

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

    `gate`, when set, holds every call until it is opened, so that tests decide when a batch finishes.
    """

    def __init__(self, run: Callable[[str, Array], Mapping[str, Array]]) -> None:
        self._run = run
        self.failures: list[ServiceError] = []
        self.gate: asyncio.Event | None = None
        self.batch_sizes: list[int] = []
        self.ready_workers = 1

    async def infer(self, model: str, frame: bytes, *, timeout_seconds: float) -> bytes:
        """See `Backend.infer`."""
        tensors, _ = unpack(frame)
        if "pixels" not in tensors:
            raise BackendFault("the frame has no tensor 'pixels'")
        self.batch_sizes.append(len(tensors["pixels"]))
        try:
            async with asyncio.timeout(timeout_seconds):
                if self.gate is not None:
                    await self.gate.wait()
        except TimeoutError as error:
            raise BackendTimeout(f"no answer within {timeout_seconds:.3f} s") from error
        if self.failures:
            raise self.failures.pop(0)
        return pack(self._run(model, tensors["pixels"]), {"inference_seconds": 0.0})

    async def model_status(self, model: str) -> ModelStatus:
        """See `Backend.model_status`."""
        return ModelStatus(ready_workers=self.ready_workers, total_workers=1)

    async def close(self) -> None:
        """Nothing to close."""
