"""Which models answer, from what the backend really says, published to grpc.health.v1, readyz and the metrics.

A model is ready while the backend has a worker READY for it and no batch is stuck. Never trusts a ping: TorchServe
answers Healthy with dead workers. Draining makes everything NOT_SERVING for good.
"""

import asyncio
import logging
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Protocol

from grpc_health.v1 import health, health_pb2

from service.backend import Backend, ModelStatus
from service.errors import ServiceError
from service.metrics import Metrics

SERVICE = "mobilevision.v1.VisionService"

_log = logging.getLogger(__name__)


class Progress(Protocol):
    """The part of a model's lanes that shows which version stands for it, and whether work moves there."""

    @property
    def version(self) -> str:
        """The version that stands for the model."""
        ...

    def oldest_batch_seconds(self) -> float:
        """How long the oldest batch in work has been running."""
        ...


class Health:
    """State of the models. `check` reads it once, `run` keeps it fresh."""

    def __init__(
        self,
        *,
        backend: Backend,
        models: Iterable[str],
        progress: Mapping[str, Progress],
        metrics: Metrics,
        poll_seconds: float,
        stuck_seconds: float,
    ) -> None:
        self._backend = backend
        self._progress = progress
        self._metrics = metrics
        self._poll_seconds = poll_seconds
        self._stuck_seconds = stuck_seconds
        self._why_not_ready: dict[str, str | None] = dict.fromkeys(models, "its workers have not started yet")
        self._draining = False
        self._look_now = asyncio.Event()
        self.servicer = health.aio.HealthServicer()

    def why_not_ready(self, model: str) -> str | None:
        """Say why a model does not answer, None when it does. Known models only."""
        return self._why_not_ready[model]

    @property
    def ready(self) -> bool:
        """Whether every model answers and the server is not draining."""
        return not self._draining and not self.report()

    @property
    def draining(self) -> bool:
        """Whether the server is on its way out."""
        return self._draining

    def report(self) -> dict[str, str]:
        """Models that do not answer, with the reason."""
        return {model: why for model, why in self._why_not_ready.items() if why is not None}

    def suspect(self) -> None:
        """Look at once instead of at the next poll: a call just failed."""
        self._look_now.set()

    async def check(self) -> None:
        """Read the state of every model once and publish it."""
        for model in self._why_not_ready:
            try:
                status = await self._backend.model_status(model, self._progress[model].version)
            except ServiceError as error:
                status = ModelStatus(ready_workers=0, total_workers=0, detail=error.message)
            stuck = self._progress[model].oldest_batch_seconds()
            why = None
            if status.ready_workers == 0:
                why = status.detail or "none of its workers is ready"
            elif stuck > self._stuck_seconds:
                why = f"a batch has been stuck for {stuck:.0f} s"
            if why != self._why_not_ready[model]:
                _log.info("model %s: %s", model, why or "ready", extra={"model": model, "ready": why is None})
            self._why_not_ready[model] = why
            self._metrics.workers(model, ready=why is None, count=status.ready_workers)
        await self._publish()

    async def run(self) -> None:
        """Check for ever, every `poll_seconds` and whenever a call failed."""
        while True:
            await self.check()
            self._look_now.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._poll_seconds):
                    await self._look_now.wait()
                    # A failing backend must not turn the poll into a busy loop.
                    await asyncio.sleep(min(0.05, self._poll_seconds))

    async def drain(self) -> None:
        """Report NOT_SERVING everywhere, for good."""
        self._draining = True
        await self._publish()

    async def _publish(self) -> None:
        serving, not_serving = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
        for model, why in self._why_not_ready.items():
            await self.servicer.set(model, serving if why is None and not self._draining else not_serving)
        await self.servicer.set("", serving if self.ready else not_serving)
        # What balancers in clients watch: a model that does not answer must not keep calls from the others.
        await self.servicer.set(SERVICE, not_serving if self._draining else serving)
