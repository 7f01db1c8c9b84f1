"""One served version of one model: an encoded picture in, the version's prediction out.

`Deployment` is the protocol that the pipeline, shadow runs, health and roll-outs use. `BatchedDeployment` decodes the
picture into a slot of its transport, queues it, and waits for its batch. A deployment never chooses which requests it
gets (`TrafficSplit` does), and never renders replies.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from handlers.contract.card import Card
from service.batching.batcher import Batcher
from service.core.call_scope import CallScope
from service.core.types import Computed, Decoded, Job, Prediction, Priority, Usage
from service.engines.base import ModelStatus
from service.preprocess.pool import DecodePool
from service.serving.agreement import ModelOutput
from service.serving.stable_observer import StableObserver
from service.transport.batch_transport import BatchTransport


@dataclass(frozen=True, slots=True)
class Inference:
    """The result of one picture. The pixels of `decoded` are not valid any more: others may use their slot."""

    decoded: Decoded
    prediction: Prediction

    @property
    def output(self) -> ModelOutput:
        """What the version predicts, to be compared with another version."""
        return ModelOutput(self.prediction.outputs, self.decoded.geometry)


class Deployment(Protocol):
    """One version of one model. For one event loop: `open`, any number of `infer`, `close`."""

    @property
    def card(self) -> Card:
        """The card of the version."""
        ...

    @property
    def version(self) -> str:
        """The version, as in the card."""
        ...

    def first_look(self, priority: Priority, scope: CallScope) -> None:
        """Refuse a call whose picture has not arrived, where `infer` would not admit it. Raises a `ServiceError`."""
        ...

    async def infer(self, image: bytes, priority: Priority, scope: CallScope) -> Inference:
        """Decode a picture and run it in a batch. Raises a `ServiceError`.

        Admission is decided first, before any work. Sets the version, its digest, the batch size, dtype, device and the
        seconds of the stages `decode`, `queue`, `transport` and `inference` in the scope's record. Calls the scope's
        `picture_decoded` when it needs `image` no more. Cancelling the caller gives the picture up. `close` waits until
        no call is in `infer`.
        """
        ...

    def observe_rendering(self, seconds: float, picture_px: int) -> None:
        """Learn how long rendering the reply to a picture of so many pixels took. Admission leaves time for it."""
        ...

    @property
    def why_not_ready(self) -> str | None:
        """Why the version does not answer; None if it does. The one home of readiness."""
        ...

    def observe_workers(self, status: ModelStatus) -> None:
        """Take over what the engine reports about the version's workers: decides readiness anew."""
        ...

    @property
    def workers(self) -> int:
        """Workers that batches are planned for. The one home of the worker count."""
        ...

    def resize(self, workers: int) -> None:
        """Plan for another number of workers, 1 or more, from now on."""
        ...

    def become_stable(self, stable: bool) -> None:
        """Report to the metrics of the model, and failures to health, only while stable."""
        ...

    @property
    def queue_length(self) -> int:
        """Pictures that wait."""
        ...

    def queue_age_seconds(self) -> float:
        """Age of the picture that waits longest, 0 if none waits."""
        ...

    @property
    def uses_shared_memory(self) -> bool:
        """Whether batches travel in shared memory now."""
        ...

    @property
    def has_shared_memory(self) -> bool:
        """Whether there is shared memory for this version, in use or not."""
        ...

    def memory_usage(self, kind: str) -> Usage:
        """Slots of shared memory by state. `kind` is `input` or `output`."""
        ...

    @property
    def connected_workers(self) -> int:
        """Workers with a direct connection to this gateway."""
        ...

    @property
    def computed(self) -> Computed:
        """What a worker said last that it computes with. Empty: no worker has said it yet."""
        ...

    async def open(self) -> None:
        """Connect to the workers."""
        ...

    async def close(self) -> None:
        """Wait until no call is in `infer`, then end the batches and the transport."""
        ...


class BatchedDeployment:
    """A `Deployment` with a queue and a transport of its own.

    It is ready while the engine has a ready worker for it, unless every worker has had a batch for more than
    `stuck_seconds`. While the engine does not answer, it is ready as long as all workers are connected.
    """

    def __init__(
        self,
        *,
        card: Card,
        decoder: DecodePool,
        batcher: Batcher,
        transport: BatchTransport,
        observer: StableObserver,
        workers: int,
        stuck_seconds: float,
    ) -> None:
        self.card = card
        self.workers = workers
        self.why_not_ready: str | None = "its workers have not started yet"
        self._decoder = decoder
        self._batcher = batcher
        self._transport = transport
        self._observer = observer
        self._stuck_seconds = stuck_seconds
        self._calls = 0
        self._unused = asyncio.Event()
        self._unused.set()

    @property
    def version(self) -> str:
        """See `Deployment.version`."""
        return self.card.version

    def first_look(self, priority: Priority, scope: CallScope) -> None:
        """See `Deployment.first_look`."""
        if self._batcher.queue_length:  # with nothing that waits, nearly every call is admitted
            scope.record.version, scope.record.module_sha256 = self.card.version, self.card.module_sha256
            self._batcher.admit(scope.deadline_at, priority, caller=scope.flow)

    async def infer(self, image: bytes, priority: Priority, scope: CallScope) -> Inference:
        """See `Deployment.infer`."""
        record, deadline_at = scope.record, scope.deadline_at
        clock = asyncio.get_running_loop().time
        record.version, record.module_sha256 = self.card.version, self.card.module_sha256
        started_at = clock()
        decode_wait_seconds = self._decoder.wait_seconds(image, priority, deadline_at, scope.flow)
        admission = self._batcher.admit(
            deadline_at, priority, caller=scope.flow, decode_wait_seconds=decode_wait_seconds
        )
        with self._held_open(), self._transport.lease() as lease:
            decoded = await self._decoder.decode(
                image,
                size=self.card.input,
                preprocess=self.card.preprocess,
                still_wanted=lambda: clock() < deadline_at,
                priority=priority,
                deadline_at=deadline_at,
                caller=scope.flow,
                destination=lease,
            )
            del image  # with the next line its memory is free; the call may wait for its batch for long
            scope.picture_decoded()
            submitted_at = clock()
            record.stage_seconds["decode"] = submitted_at - started_at
            job = Job(
                request_id=scope.request_id,
                pixels=decoded.pixels,
                deadline_at=deadline_at,
                submitted_at=submitted_at,
                priority=priority,
                lease=lease,
                picture_px=decoded.geometry.picture_px,
                caller=scope.flow,
            )
            prediction = await self._batcher.submit(job, admission)
        record.batch_size = prediction.batch_size
        record.network_engine = prediction.network_engine
        record.dtype, record.device = prediction.dtype, prediction.device
        record.stage_seconds["queue"] = prediction.queue_seconds
        record.stage_seconds["transport"] = prediction.transport_seconds
        record.stage_seconds["inference"] = prediction.inference_seconds
        return Inference(decoded, prediction)

    def observe_rendering(self, seconds: float, picture_px: int) -> None:
        """See `Deployment.observe_rendering`."""
        self._batcher.observe_rendering(seconds, picture_px)

    def observe_workers(self, status: ModelStatus) -> None:
        """See `Deployment.observe_workers`."""
        # Workers serve on without the engine while they are connected to this gateway.
        connected = not status.reported and self._transport.connections.complete
        if status.ready_workers == 0 and not connected:
            self.why_not_ready = status.detail or "none of its workers is ready"
        elif self._batcher.all_stuck(self._stuck_seconds):
            # The same words at each look, because each change is logged.
            self.why_not_ready = f"its batches have been stuck for more than {self._stuck_seconds:.0f} s"
        else:
            self.why_not_ready = None

    def resize(self, workers: int) -> None:
        """See `Deployment.resize`."""
        self.workers = workers
        self._batcher.resize(workers)
        self._transport.resize(workers)

    def become_stable(self, stable: bool) -> None:
        """See `Deployment.become_stable`."""
        self._observer.active = stable

    @property
    def queue_length(self) -> int:
        """See `Deployment.queue_length`."""
        return self._batcher.queue_length

    def queue_age_seconds(self) -> float:
        """See `Deployment.queue_age_seconds`."""
        return self._batcher.queue_age_seconds()

    @property
    def uses_shared_memory(self) -> bool:
        """See `Deployment.uses_shared_memory`."""
        return self._transport.shared

    @property
    def has_shared_memory(self) -> bool:
        """See `Deployment.has_shared_memory`."""
        return self._transport.has_shared_memory

    def memory_usage(self, kind: str) -> Usage:
        """See `Deployment.memory_usage`."""
        return self._transport.usage(kind)

    @property
    def connected_workers(self) -> int:
        """See `Deployment.connected_workers`."""
        return len(self._transport.connections)

    @property
    def computed(self) -> Computed:
        """See `Deployment.computed`."""
        return self._transport.computed

    async def open(self) -> None:
        """See `Deployment.open`."""
        await self._transport.start()

    async def close(self) -> None:
        """See `Deployment.close`."""
        await self._unused.wait()
        await self._batcher.close()
        await self._transport.close()

    @contextmanager
    def _held_open(self) -> Iterator[None]:
        self._calls += 1
        self._unused.clear()
        try:
            yield
        finally:
            self._calls -= 1
            if not self._calls:
                self._unused.set()
