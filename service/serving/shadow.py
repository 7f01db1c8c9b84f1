"""Shadow runs: the candidate runs a picture that the stable version has answered, only to compare the two.

In: the picture and the stable version's output. Out: agreement and times in the metrics. Callers never get a
candidate's output from here, and never wait for it. A shadow run starts after the answer, with batch priority and a
short deadline. It is dropped, and counted as dropped, if pictures wait for the candidate, if a whole batch waits for
the stable version, or if enough shadow runs are in work.
"""

import asyncio
import logging
from concurrent.futures import Executor

from service.core.call_scope import CallScope
from service.core.errors import CapacityError, DeadlineExceeded, ServiceError
from service.core.types import Priority, RequestRecord
from service.observability.metrics import Metrics
from service.serving.agreement import ModelOutput
from service.serving.deployment import Deployment
from service.serving.tasks import TASKS
from service.serving.traffic_split import TrafficSplit

MOST_AT_ONCE = 4
SECONDS = 5.0  # for a whole shadow run. A longer one would measure the load, not the version.

_log = logging.getLogger(__name__)


class ShadowRunner:
    """Shadow runs of all models. For one event loop. Outputs are compared in `pool`."""

    def __init__(self, *, metrics: Metrics, pool: Executor) -> None:
        self._metrics = metrics
        self._pool = pool
        self._tasks: set[asyncio.Task[None]] = set()

    def offer(self, split: TrafficSplit, image: bytes, answered: ModelOutput) -> None:
        """Run a picture on the candidate, if there is one and there is room. Returns at once."""
        candidate, stable = split.candidate, split.stable
        if candidate is None:
            return
        crowded = stable.queue_length >= stable.card.max_batch
        if len(self._tasks) >= MOST_AT_ONCE or candidate.queue_length or crowded:
            self._metrics.rollouts.shadowed(candidate.card.name, candidate.version, "dropped")
            return
        task = asyncio.create_task(self._run(candidate, stable.version, image, answered))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Cancel the shadow runs in work."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _run(self, candidate: Deployment, stable: str, image: bytes, answered: ModelOutput) -> None:
        card, outcome = candidate.card, "compared"
        try:
            await self._compare(candidate, stable, image, answered)
        except (CapacityError, DeadlineExceeded, TimeoutError):
            outcome = "dropped"
        except ServiceError as error:
            outcome = "failed"
            _log.info("shadow run on version %s of %s: %s", card.version, card.name, error)
        except Exception:  # noqa: BLE001 - no caller waits for this error
            outcome = "failed"
            _log.exception("shadow run on version %s of %s: this is a bug", card.version, card.name)
        self._metrics.rollouts.shadowed(card.name, card.version, outcome)

    async def _compare(self, candidate: Deployment, stable: str, image: bytes, answered: ModelOutput) -> None:
        loop = asyncio.get_running_loop()
        scope = CallScope(record=RequestRecord(request_id=""), deadline_at=loop.time() + SECONDS)
        async with asyncio.timeout_at(scope.deadline_at):
            inference = await candidate.infer(image, Priority.BATCH, scope)
        card = candidate.card
        task = TASKS[card.task]
        share = await loop.run_in_executor(self._pool, task.agreement, answered, inference.output)
        rollouts = self._metrics.rollouts
        rollouts.agreed(card.name, stable=stable, candidate=card.version, metric=task.metric, share=share)
        rollouts.inferred(card.name, card.version, inference.prediction.inference_seconds)
