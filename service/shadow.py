"""Shadow runs: a request that the stable version has answered is run on the candidate as well, only to be compared.

In: the picture, and what the stable version made of it. Out: agreement and times on the metrics page. Nobody waits for
it and nothing gives way to it: it begins after the answer, has batch priority and a short deadline, and is dropped
(and counted) where anything waits for the candidate, a whole batch for the stable version, or enough runs are on.
"""

import asyncio
import logging
from concurrent.futures import Executor

from service.agreement import METRICS, Seen, agreement
from service.decoder import Decoder
from service.errors import CapacityError, DeadlineExceeded, ServiceError
from service.lanes import Lane, ModelLanes
from service.metrics import Metrics
from service.work import Job, Priority, Row

MOST_AT_ONCE = 4
SECONDS = 5.0  # for all of it; what takes longer would tell of the load, not of the version

_log = logging.getLogger(__name__)


class Shadows:
    """Shadow runs of all models. For one event loop; `pool` is where results are compared."""

    def __init__(self, *, decoder: Decoder, metrics: Metrics, pool: Executor) -> None:
        self._decoder = decoder
        self._metrics = metrics
        self._pool = pool
        self._tasks: set[asyncio.Task[None]] = set()

    def offer(self, lanes: ModelLanes, image: bytes, answered: Seen) -> None:
        """Run a picture on the candidate, if there is one and there is room. Returns at once."""
        lane = lanes.candidate
        if lane is None:
            return
        crowded = lanes.stable.batcher.queue_length >= lanes.stable.card.max_batch
        if len(self._tasks) >= MOST_AT_ONCE or lane.batcher.queue_length or crowded:
            self._metrics.shadowed(lane.card.name, lane.version, "dropped")
            return
        task = asyncio.create_task(self._run(lane, lanes.stable.version, image, answered))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Give up what runs."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _run(self, lane: Lane, stable: str, image: bytes, answered: Seen) -> None:
        card, outcome = lane.card, "compared"
        try:
            with lane.use():
                async with asyncio.timeout(SECONDS):
                    seen, row = await self._infer(lane, image)
                loop = asyncio.get_running_loop()
                share = await loop.run_in_executor(self._pool, agreement, card.task, answered, seen)
            self._metrics.version_agreed(
                card.name, stable=stable, candidate=card.version, metric=METRICS[card.task], share=share
            )
            self._metrics.version_inferred(card.name, card.version, row.inference_seconds)
        except (CapacityError, DeadlineExceeded, TimeoutError):
            outcome = "dropped"
        except ServiceError as error:
            outcome = "failed"
            _log.info("shadow run on version %s of %s: %s", card.version, card.name, error.message)
        except Exception:  # noqa: BLE001 - nobody waits for it who could be told
            outcome = "failed"
            _log.exception("shadow run on version %s of %s: this is a bug", card.version, card.name)
        self._metrics.shadowed(card.name, card.version, outcome)

    async def _infer(self, lane: Lane, image: bytes) -> tuple[Seen, Row]:
        clock = asyncio.get_running_loop().time
        deadline_seconds = clock() + SECONDS
        with lane.carrier.lend() as lease:
            decoded = await self._decoder.decode(
                image,
                size=lane.card.input,
                preprocess=lane.card.preprocess,
                still_wanted=lambda: clock() < deadline_seconds,
                destination=lease,
            )
            row = await lane.batcher.submit(
                Job(
                    request_id="",
                    pixels=decoded.pixels,
                    deadline_seconds=deadline_seconds,
                    submitted_seconds=clock(),
                    priority=Priority.BATCH,
                    lease=lease,
                )
            )
        return Seen(row.outputs, decoded.geometry), row
