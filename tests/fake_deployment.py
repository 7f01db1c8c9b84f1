"""A deployment whose predictions are made by a function. It keeps the contract of `service.serving.deployment`."""

import asyncio
from collections.abc import Callable, Mapping

import numpy as np

from handlers.contract.card import Card
from handlers.contract.frame import Array
from service.core.call_scope import CallScope
from service.core.errors import DeadlineExceeded, ImageEmpty, ServiceError, ShuttingDown
from service.core.types import Computed, Decoded, Geometry, Prediction, Priority, Usage
from service.engines.base import ModelStatus
from service.serving.deployment import Inference


class FakeDeployment:
    """A deployment without queue, transport and workers.

    Attributes that tests set:
        failure: raised by the next calls, until it is None again.
        gate: if set, holds every call until the gate opens; the call fails or is answered then.
        why_not_ready, queue_length: as the test wants them.
    Attributes that tests read: `asked` (request id and priority of each call), `stable`, `closed`, `rendering_seconds`.
    """

    def __init__(self, card: Card, run: Callable[[str, Array], Mapping[str, Array]]) -> None:
        self.card = card
        self._run = run
        self.failure: Exception | None = None
        self.gate: asyncio.Event | None = None
        self.why_not_ready: str | None = "its workers have not started yet"
        self.workers = 1
        self.queue_length = 0
        self.asked: list[tuple[str, Priority]] = []
        self.stable = False
        self.closed = False
        self.rendering_seconds: list[float] = []
        self.uses_shared_memory = self.has_shared_memory = False
        self.connected_workers = 0
        self.computed = Computed()
        self._calls = 0
        self._changed = asyncio.Condition()

    @property
    def version(self) -> str:
        return self.card.version

    def first_look(self, priority: Priority, scope: CallScope) -> None:
        pass

    async def infer(self, image: bytes, priority: Priority, scope: CallScope) -> Inference:
        self.asked.append((scope.request_id, priority))
        scope.record.version = self.card.version
        if self.closed:
            raise ShuttingDown("closed")
        if scope.deadline_at <= asyncio.get_running_loop().time():
            raise DeadlineExceeded("too late")
        if not image:
            raise ImageEmpty("no bytes")
        self._calls += 1
        try:
            if self.gate is not None:
                await self.gate.wait()
            if self.failure is not None:
                raise self.failure
            return self._infer(image, scope)
        finally:
            self._calls -= 1
            async with self._changed:
                self._changed.notify_all()

    def _infer(self, image: bytes, scope: CallScope) -> Inference:
        size = self.card.input
        pixels = np.full((size.height, size.width, 3), image[0], np.uint8)
        outputs = {name: tensor[0] for name, tensor in self._run(self.card.name, pixels[None]).items()}
        scope.record.batch_size = 1
        scope.record.stage_seconds |= {"decode": 0.0, "queue": 0.0, "transport": 0.0, "inference": 0.0}
        geometry = Geometry(size.width, size.height, 0.0, 0.0, float(size.width), float(size.height))
        return Inference(Decoded(pixels, geometry, "PNG"), Prediction(outputs, 1, 0.0, 0.0, 0.0))

    def observe_rendering(self, seconds: float, picture_px: int) -> None:
        self.rendering_seconds.append(seconds)

    def observe_workers(self, status: ModelStatus) -> None:
        self.why_not_ready = None if status.ready_workers else status.detail or "none of its workers is ready"

    def resize(self, workers: int) -> None:
        self.workers = workers

    def become_stable(self, stable: bool) -> None:
        self.stable = stable

    def queue_age_seconds(self) -> float:
        return 0.0

    def memory_usage(self, kind: str) -> Usage:
        return Usage()

    async def open(self) -> None:
        pass

    async def close(self) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: self._calls == 0)
        self.closed = True


def failing(card: Card, error: ServiceError) -> FakeDeployment:
    """A deployment that is ready and fails every call."""
    deployment = FakeDeployment(card, lambda model, pixels: {})
    deployment.why_not_ready = None
    deployment.failure = error
    return deployment
