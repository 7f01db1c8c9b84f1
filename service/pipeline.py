"""One request through the stages: permit -> decode -> queue -> backend -> reply, all under one deadline.

The only module that knows the order of the stages; the stages do not know each other. Fills the request's `Record` with
the seconds each stage took.

While a roll-out lasts, some requests go to a candidate version. It has half of the time a call has left; what it
refuses, fails, or does not answer by then, the stable version answers. So does what was in work in a version that was
the stable one when it began: only the stable version's word is final.
"""

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

from model_store.card import Card, Task
from service.agreement import Seen
from service.catalog import Catalog
from service.decoder import Decoder
from service.errors import (
    CapacityError,
    DeadlineExceeded,
    InternalError,
    ModelNotReady,
    ShuttingDown,
    TooManyRequests,
    UnavailableError,
)
from service.health import Health
from service.lanes import Choice, Lane, ModelLanes
from service.shadow import Shadows
from service.work import Decoded, Job, Priority, Record, Row

Reply = TypeVar("Reply")

CANDIDATE_TIME = 0.5  # share of the time left that a candidate may take

# What another version may answer. The caller's own mistakes stay mistakes.
_ELSEWHERE = (CapacityError, UnavailableError, InternalError, DeadlineExceeded, TimeoutError)


@dataclass(frozen=True, slots=True)
class Request:
    """What a call asks for, whatever its task. `deadline_seconds` is a reading of the event loop's clock."""

    task: Task
    model: str
    image: bytes
    deadline_seconds: float
    priority: Priority = Priority.INTERACTIVE


class Pipeline:
    """Runs requests. `render` turns a row into the reply; masks, in a thread: they cost milliseconds to encode."""

    def __init__(
        self,
        *,
        catalog: Catalog,
        decoder: Decoder,
        lanes: Mapping[str, ModelLanes],
        shadows: Shadows,
        health: Health,
        render_pool: ThreadPoolExecutor,
        max_inflight: int,
        retry_after_seconds: float,
    ) -> None:
        self._catalog = catalog
        self._decoder = decoder
        self._lanes = lanes
        self._shadows = shadows
        self._health = health
        self._render_pool = render_pool
        self._max_inflight = max_inflight
        self._retry_after_seconds = retry_after_seconds
        self._idle = asyncio.Event()
        self._idle.set()
        self._draining = False
        self.inflight = 0

    async def run(self, request: Request, record: Record, render: Callable[[Card, Decoded, Row], Reply]) -> Reply:
        """Answer one request. Raises a `ServiceError`."""
        record.model = self._catalog.for_task(request.model, request.task).name
        if self._draining:
            raise ShuttingDown("the server is shutting down; call another replica")
        if self.inflight >= self._max_inflight:
            raise TooManyRequests(
                f"{self.inflight} requests are already in work; retry later or add replicas",
                retry_after_seconds=self._retry_after_seconds,
            )
        lanes = self._lanes[record.model]
        choice = lanes.choose(record.request_id)
        lane = choice.lane
        if lane is lanes.stable:
            self._admit(request, lane, record)
        self.inflight += 1
        self._idle.clear()
        try:
            async with asyncio.timeout_at(request.deadline_seconds):
                return await self._answer(request, lanes, choice, record, render)
        except TimeoutError as error:
            raise DeadlineExceeded("the deadline passed before the answer was ready") from error
        finally:
            self.inflight -= 1
            if not self.inflight:
                self._idle.set()

    async def drain(self, timeout_seconds: float) -> None:
        """Refuse what comes from now on with `ShuttingDown`; return when what is in work is answered, or time is up."""
        self._draining = True
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds):
                await self._idle.wait()

    def _admit(self, request: Request, lane: Lane, record: Record) -> None:
        """Refuse what the stable lane cannot answer, before any work."""
        record.version = lane.version
        why = self._health.why_not_ready(lane.card.name)
        if why is not None:
            raise ModelNotReady(
                f"model {lane.card.name} does not answer: {why}",
                metadata={"model": lane.card.name},
                retry_after_seconds=self._retry_after_seconds,
            )
        lane.batcher.check(request.deadline_seconds, request.priority)

    async def _answer(
        self,
        request: Request,
        lanes: ModelLanes,
        choice: Choice,
        record: Record,
        render: Callable[[Card, Decoded, Row], Reply],
    ) -> Reply:
        lane = choice.lane
        while True:
            with lane.use():
                try:
                    if lane is lanes.stable:
                        reply, seen = await self._run(request, lane, request.deadline_seconds, record, render)
                        if choice.compared:
                            self._shadows.offer(lanes, request.image, seen)
                        return reply
                    now = asyncio.get_running_loop().time()
                    deadline_seconds = now + (request.deadline_seconds - now) * CANDIDATE_TIME
                    lane.batcher.check(deadline_seconds, request.priority)
                    async with asyncio.timeout_at(deadline_seconds):
                        reply, _ = await self._run(request, lane, deadline_seconds, record, render)
                        return reply
                except _ELSEWHERE:
                    if lane is lanes.stable:  # by now
                        raise
            record.passed_on = lane.version
            record.stage_seconds.clear()
            lane = lanes.stable
            self._admit(request, lane, record)

    async def _run(
        self,
        request: Request,
        lane: Lane,
        deadline_seconds: float,
        record: Record,
        render: Callable[[Card, Decoded, Row], Reply],
    ) -> tuple[Reply, Seen]:
        loop = asyncio.get_running_loop()
        started = loop.time()
        card, batcher = lane.card, lane.batcher
        record.version = card.version
        with lane.carrier.lend() as lease:
            decoded = await self._decoder.decode(
                request.image,
                size=card.input,
                preprocess=card.preprocess,
                still_wanted=lambda: loop.time() < deadline_seconds,
                destination=lease,
            )
            submitted = loop.time()
            record.stage_seconds["decode"] = submitted - started
            row = await batcher.submit(
                Job(
                    request_id=record.request_id,
                    pixels=decoded.pixels,
                    deadline_seconds=deadline_seconds,
                    submitted_seconds=submitted,
                    priority=request.priority,
                    lease=lease,
                )
            )
        record.batch_size = row.batch_size
        record.stage_seconds["queue"] = row.queue_seconds
        record.stage_seconds["transport"] = row.transport_seconds
        record.stage_seconds["inference"] = row.inference_seconds
        answered = loop.time()
        if card.task is Task.SEGMENT:
            reply = await loop.run_in_executor(self._render_pool, render, card, decoded, row)
        else:
            reply = render(card, decoded, row)  # takes less than the way to a thread and back
        record.stage_seconds["results"] = loop.time() - answered
        batcher.observe_rendering(record.stage_seconds["results"])
        return reply, Seen(row.outputs, decoded.geometry)
