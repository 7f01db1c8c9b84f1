"""One request through the stages: permit -> decode -> queue -> backend -> reply, all under one deadline.

The only module that knows the order of the stages; the stages do not know each other. Fills the request's `Record` with
the seconds each stage took.
"""

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

from model_store.card import Card, Task
from service.batcher import Batcher
from service.carrier import Carrier
from service.catalog import Catalog
from service.decode import Decoder
from service.errors import DeadlineExceeded, ModelNotReady, ShuttingDown, TooManyRequests
from service.health import Health
from service.work import Decoded, Job, Priority, Record, Row

Reply = TypeVar("Reply")


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
        batchers: Mapping[str, Batcher],
        carriers: Mapping[str, Carrier],
        health: Health,
        render_pool: ThreadPoolExecutor,
        max_inflight: int,
        retry_after_seconds: float,
    ) -> None:
        self._catalog = catalog
        self._decoder = decoder
        self._batchers = batchers
        self._carriers = carriers
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
        card = self._catalog.for_task(request.model, request.task)
        record.model = card.name
        if self._draining:
            raise ShuttingDown("the server is shutting down; call another replica")
        if self.inflight >= self._max_inflight:
            raise TooManyRequests(
                f"{self.inflight} requests are already in work; retry later or add replicas",
                retry_after_seconds=self._retry_after_seconds,
            )
        why = self._health.why_not_ready(card.name)
        if why is not None:
            raise ModelNotReady(
                f"model {card.name} does not answer: {why}",
                metadata={"model": card.name},
                retry_after_seconds=self._retry_after_seconds,
            )
        self._batchers[card.name].check(request.deadline_seconds, request.priority)
        self.inflight += 1
        self._idle.clear()
        try:
            async with asyncio.timeout_at(request.deadline_seconds):
                return await self._answer(request, card, record, render)
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

    async def _answer(
        self, request: Request, card: Card, record: Record, render: Callable[[Card, Decoded, Row], Reply]
    ) -> Reply:
        loop = asyncio.get_running_loop()
        started = loop.time()
        batcher = self._batchers[card.name]
        with self._carriers[card.name].lend() as lease:
            decoded = await self._decoder.decode(
                request.image,
                size=card.input,
                preprocess=card.preprocess,
                still_wanted=lambda: loop.time() < request.deadline_seconds,
                destination=lease,
            )
            submitted = loop.time()
            record.stage_seconds["decode"] = submitted - started
            row = await batcher.submit(
                Job(
                    request_id=record.request_id,
                    pixels=decoded.pixels,
                    deadline_seconds=request.deadline_seconds,
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
        return reply
