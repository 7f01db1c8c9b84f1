"""The part of an engine that a transport needs."""

from typing import Protocol


class Runner(Protocol):
    """Runs one frame on a worker of a model version. Safe to call concurrently from one event loop."""

    async def infer(self, model: str, frame: bytes, *, version: str, timeout_seconds: float) -> bytes:
        """Run one request frame and return the answer frame (see `handlers.contract.worker_protocol`).

        Raises:
            BackendUnavailable: the engine is unreachable or the worker died. The frame may be sent again.
            BackendTimeout: no answer within `timeout_seconds`.
            BackendFault: the model failed on this frame. Sending it again would fail again.
        """
        ...

    async def end_workers(self, model: str, version: str) -> int:
        """End the processes of all workers of a version, because they hang. Returns how many were ended."""
        ...
