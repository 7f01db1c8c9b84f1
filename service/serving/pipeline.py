"""One request through its stages: admission, decoding, queue, batch, reply, all under one deadline.

In: a request, its `CallScope`, and a function that renders the reply. Out: the reply, or a `ServiceError`. A deployment
runs the stages up to the prediction; the pipeline chooses the deployment and renders the reply. It fills in the scope's
record and never knows a wire protocol.

During a roll-out some requests go to a candidate version. The candidate gets half of the time that a call has left. If
the candidate refuses, fails, or does not answer by then, the stable version answers. If a version fails that was stable
when the call arrived and is not stable any more, the version that is stable now answers. So callers see only errors of
the stable version.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from handlers.contract.card import Card, Task
from service.core.call_scope import CallScope
from service.core.callers import RecentCallers
from service.core.catalog import Catalog
from service.core.errors import (
    CapacityError,
    DeadlineExceeded,
    InternalError,
    ModelNotReady,
    ShuttingDown,
    TooManyRequests,
    UnavailableError,
)
from service.core.types import Computed, Decoded, Prediction, Priority
from service.serving.deployment import Deployment, Inference
from service.serving.health import Health
from service.serving.shadow import ShadowRunner
from service.serving.tasks import TASKS
from service.serving.traffic_split import TrafficSplit

Reply = TypeVar("Reply")
Render = Callable[[Card, Decoded, Prediction], Reply]

CANDIDATE_TIME = 0.5  # share of the time a call has left that a candidate may take

# Another version may answer after these errors. A mistake of the caller is the same for every version.
_PASSED_ON = (CapacityError, UnavailableError, InternalError, DeadlineExceeded, TimeoutError)


@dataclass(slots=True)
class Request:
    """What a call asks for, whatever its task. `image` is the encoded picture. An empty `model` is the default one.

    The pipeline empties `image` once it is decoded. Callers must not hold it either.
    """

    task: Task
    model: str
    image: bytes
    priority: Priority = Priority.INTERACTIVE


class Pipeline:
    """Runs requests. For one event loop.

    At most `max_inflight` requests are in work, and their encoded pictures have `max_picture_bytes` together. A picture
    counts until it is decoded, or to the end of a call that may need it again. Where several callers share the server,
    the requests of a caller that are in work count twice against its next one, as in `service.batching.admission`.
    Callers that are refused for this, or because the model is not ready, are told to retry after `retry_after_seconds`.
    Replies that take long to render are rendered in `render_pool`.
    """

    def __init__(
        self,
        *,
        catalog: Catalog,
        splits: Mapping[str, TrafficSplit],
        shadows: ShadowRunner,
        health: Health,
        render_pool: ThreadPoolExecutor,
        max_inflight: int,
        max_picture_bytes: int,
        retry_after_seconds: float,
    ) -> None:
        self._catalog = catalog
        self._splits = splits
        self._shadows = shadows
        self._health = health
        self._render_pool = render_pool
        self._max_inflight = max_inflight
        self._max_picture_bytes = max_picture_bytes
        self._retry_after_seconds = retry_after_seconds
        self._idle = asyncio.Event()
        self._idle.set()
        self._draining = False
        self._callers = RecentCallers()
        self._inflight_of: Counter[str] = Counter()
        self._refusing = asyncio.Event()
        self._refusing.set()
        self.inflight = 0
        self.picture_bytes = 0
        self.refused = 0  # calls that came after the drain began

    def first_look(self, task: Task, model: str, priority: Priority, scope: CallScope) -> None:
        """Refuse a call before its picture has arrived, where `run` would refuse it now. Raises a `ServiceError`."""
        name = self._catalog.for_task(model, task).name
        split = self._splits[name]
        if self._draining or split.candidate is not None:
            return
        record = scope.record
        record.model = name
        self._check_room(scope.flow, asyncio.get_running_loop().time())
        self._check_ready(split.stable, scope)
        split.stable.first_look(priority, scope)
        record.model = record.version = record.module_sha256 = ""  # the message may name another model

    async def run(self, request: Request, scope: CallScope, render: Render[Reply]) -> Reply:
        """Answer one request.

        Raises `ShuttingDown`, `TooManyRequests`, `DeadlineExceeded`, or another `ServiceError` of the path.
        """
        model = self._catalog.for_task(request.model, request.task).name
        scope.record.model = model
        if self._draining:
            self.refused += 1
            await self._refusing.wait()
            raise ShuttingDown("the server is shutting down; call another replica")
        caller = scope.flow
        self._check_room(caller, asyncio.get_running_loop().time())
        if self.picture_bytes and self.picture_bytes + len(request.image) > self._max_picture_bytes:
            raise TooManyRequests(
                f"pictures of {self.picture_bytes} bytes already wait to be decoded; retry later or add replicas",
                retry_after_seconds=self._retry_after_seconds,
            )
        self.picture_bytes += len(request.image)
        self.inflight += 1
        self._inflight_of[caller] += 1
        self._idle.clear()
        try:
            async with asyncio.timeout_at(scope.deadline_at):
                return await self._answer(request, self._splits[model], scope, render)
        except TimeoutError as error:
            raise DeadlineExceeded("the deadline passed before the answer was ready") from error
        finally:
            self._forget_picture(request)
            self.inflight -= 1
            self._inflight_of[caller] -= 1
            if not self._inflight_of[caller]:
                del self._inflight_of[caller]
            if not self.inflight:
                self._idle.set()

    def computed(self, model: str) -> Computed:
        """What the workers of the stable version said last that they compute with. Only for models that are served."""
        return self._splits[model].stable.computed

    async def drain(self, timeout_seconds: float) -> None:
        """Refuse new requests with `ShuttingDown`. Return when all others are answered, or when the time is up."""
        self._draining = True
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds):
                await self._idle.wait()

    def _check_room(self, caller: str, now: float) -> None:
        own = self._inflight_of[caller] if self._callers.note(caller, now) else 0
        if self.inflight + own >= self._max_inflight:
            raise TooManyRequests(
                f"{self.inflight} requests are already in work; retry later or add replicas",
                retry_after_seconds=self._retry_after_seconds,
            )

    def _check_ready(self, stable: Deployment, scope: CallScope) -> None:
        why = self._health.why_not_ready(stable.card.name)
        if why is not None:
            scope.record.version = stable.version
            raise ModelNotReady(
                f"model {stable.card.name} does not answer now",
                metadata={"model": stable.card.name},
                detail=why,  # for operators: it may hold the words of an archive or of a worker
                retry_after_seconds=self._retry_after_seconds,
            )

    def _forget_picture(self, request: Request) -> None:
        self.picture_bytes -= len(request.image)
        request.image = b""

    @contextmanager
    def refusals_held(self) -> Iterator[None]:
        """Let the refusals of a drain wait until the end of the context. Their callers send nothing meanwhile."""
        self._refusing.clear()
        try:
            yield
        finally:
            self._refusing.set()

    async def _answer(self, request: Request, split: TrafficSplit, scope: CallScope, render: Render[Reply]) -> Reply:
        choice = split.choose(scope.request_id)
        first = choice.deployment
        if split.candidate is None:  # else another version may need the picture, or a shadow run
            scope = replace(scope, picture_decoded=partial(self._forget_picture, request))
        try:
            if first is split.stable:
                reply, inference = await self._run_ready(request, first, scope, render)
                if choice.compared:
                    self._shadows.offer(split, request.image, inference.output)
                return reply
            return await self._run_candidate(request, first, scope, render)
        except _PASSED_ON:
            # It may have become stable or ceased to be stable since the choice.
            if first is split.stable or not request.image:
                raise
        scope.record.passed_on = first.version
        scope.record.module_sha256 = scope.record.network_engine = scope.record.dtype = scope.record.device = ""
        scope.record.stage_seconds.clear()
        reply, _ = await self._run_ready(request, split.stable, scope, render)
        return reply

    async def _run_candidate(
        self, request: Request, candidate: Deployment, scope: CallScope, render: Render[Reply]
    ) -> Reply:
        now = asyncio.get_running_loop().time()
        deadline_at = now + (scope.deadline_at - now) * CANDIDATE_TIME
        async with asyncio.timeout_at(deadline_at):
            reply, _ = await self._run(request, candidate, replace(scope, deadline_at=deadline_at), render)
            return reply

    async def _run_ready(
        self, request: Request, stable: Deployment, scope: CallScope, render: Render[Reply]
    ) -> tuple[Reply, Inference]:
        self._check_ready(stable, scope)
        return await self._run(request, stable, scope, render)

    async def _run(
        self, request: Request, deployment: Deployment, scope: CallScope, render: Render[Reply]
    ) -> tuple[Reply, Inference]:
        inference = await deployment.infer(request.image, request.priority, scope)
        loop = asyncio.get_running_loop()
        card, decoded, prediction = deployment.card, inference.decoded, inference.prediction
        predicted_at = loop.time()
        if TASKS[card.task].renders_in_thread:
            reply = await loop.run_in_executor(self._render_pool, render, card, decoded, prediction)
        else:
            reply = render(card, decoded, prediction)
        rendering_seconds = loop.time() - predicted_at
        scope.record.stage_seconds["results"] = rendering_seconds
        deployment.observe_rendering(rendering_seconds, decoded.geometry.picture_px)
        return reply, inference
