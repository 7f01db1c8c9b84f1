"""Which models answer: the engine's reports in, a `HealthReport` and metrics out.

A model answers while its stable deployment is ready; the deployment decides that from the engine's report
(`Deployment.observe_workers`). The engine's own ping is never asked: TorchServe reports Healthy with dead workers.
Health knows no protocol: `publish` is called with each report, and a front passes it on.
"""

import asyncio
import logging
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from service.core.errors import ServiceError
from service.engines.base import ModelStatus, VersionManager
from service.observability.metrics import Metrics
from service.preprocess.decode_watch import DecodeWatch
from service.serving.traffic_split import TrafficSplit

UNREADABLE = "the state of its workers cannot be read; the log has the error"
_RECENT_SECONDS = 60.0  # a model that became ready or not ready within this time is looked at more often
_RECENT_POLL_SECONDS = 0.2
_SHORTEST_POLL_SECONDS = 0.05  # an engine that fails on every batch must not keep the event loop busy with polls

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class HealthReport:
    """The state of all models at one time. `why_not_ready` is by model; None: the model answers."""

    why_not_ready: Mapping[str, str | None]
    draining: bool

    @property
    def not_ready(self) -> dict[str, str]:
        """The models that do not answer, with the reason."""
        return {model: why for model, why in self.why_not_ready.items() if why is not None}

    @property
    def all_ready(self) -> bool:
        """Whether every model answers and the server is not draining."""
        return not self.draining and not self.not_ready

    @property
    def any_ready(self) -> bool:
        """Whether at least one model answers and the server is not draining: traffic may be sent to the server."""
        return not self.draining and len(self.not_ready) < len(self.why_not_ready)


Publish = Callable[[HealthReport], None]  # must return at once: a client must not hold up the reports


class Health:
    """State of the models in `splits`. For one event loop: `check` reads the state once, `run` keeps it fresh."""

    def __init__(
        self,
        *,
        versions: VersionManager,
        splits: Mapping[str, TrafficSplit],
        metrics: Metrics,
        poll_seconds: float,
        publish: Publish,
        decoding: DecodeWatch,
    ) -> None:
        self._versions = versions
        self._splits = splits
        self._metrics = metrics
        self._poll_seconds = poll_seconds
        self._publish = publish
        self._decoding = decoding
        self._logged: dict[str, str | None] = {}
        self._changed_at = -math.inf  # when a model became ready or not ready
        self._draining = False
        self._check_now = asyncio.Event()

    def why_not_ready(self, model: str) -> str | None:
        """Why a model does not answer; None if it does. Only for models that are served."""
        return self._splits[model].stable.why_not_ready

    def report(self) -> HealthReport:
        """The state of all models as it was read last. No model is ready while decoding is stuck. Any thread."""
        stuck = self._decoding.why_not_ready
        return HealthReport({model: self.why_not_ready(model) or stuck for model in self._splits}, self._draining)

    @property
    def why_restart(self) -> str | None:
        """Why the process should be restarted; None if there is no reason. Any thread."""
        return self._decoding.why_restart

    def suspect(self) -> None:
        """Check at once instead of at the next poll, because a batch failed or another version became stable."""
        self._check_now.set()

    async def check(self) -> None:
        """Read the state of every model once and publish it."""
        self._decoding.check()
        for model, split in self._splits.items():
            stable = split.stable
            try:
                status = await self._versions.model_status(model, stable.version)
            except ServiceError as error:
                status = ModelStatus(ready_workers=0, total_workers=0, detail=error.message, reported=False)
            except Exception:  # noqa: BLE001 - the engine may fail in any way
                # A model whose state is not known must not stay ready, and must not keep the others from being read.
                _log.exception("model %s: the state of its workers cannot be read", model, extra={"model": model})
                self._metrics.background_failed("health")
                status = ModelStatus(ready_workers=0, total_workers=0, detail=UNREADABLE)
            stable.observe_workers(status)
            why = stable.why_not_ready or self._decoding.why_not_ready
            if (why is None) != (self._logged.get(model, "") is None):
                self._changed_at = asyncio.get_running_loop().time()
            if model not in self._logged or why != self._logged[model]:
                _log.info("model %s: %s", model, why or "ready", extra={"model": model, "ready": why is None})
            self._logged[model] = why
            self._metrics.workers.observe(model, ready=why is None, count=status.ready_workers)
        self._publish(self.report())

    async def run(self) -> None:
        """Check for ever, every `poll_seconds` and after `suspect`. More often while a model has just failed.

        So callers do not wait for a model that is ready again.
        """
        while True:
            await self.check()
            self._check_now.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._wait_seconds()):
                    await self._check_now.wait()
                    await asyncio.sleep(min(_SHORTEST_POLL_SECONDS, self._poll_seconds))

    def _wait_seconds(self) -> float:
        recent = asyncio.get_running_loop().time() - self._changed_at < _RECENT_SECONDS
        if recent and not self.report().all_ready:
            return min(_RECENT_POLL_SECONDS, self._poll_seconds)
        return self._poll_seconds

    def drain(self) -> None:
        """Report that the server is shutting down, from now on."""
        self._draining = True
        self._publish(self.report())
