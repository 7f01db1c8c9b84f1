"""The way of a batch to a worker of one model version and back.

In: the jobs of a batch. Out: a `BatchResult`, or a backend error. Batches travel in shared memory while the handshake
holds, else inline. A batch in shared memory goes directly to a worker when every worker has connected, else through the
engine. Never chooses which jobs are in a batch.

* A batch that a worker refuses is sent once more, inline.
* A batch that is lost to a dying worker is sent once more, if a deadline in the batch still allows it.
* One sending is bounded by the operator's `batch_timeout_seconds`, not by the callers' deadlines. TorchServe cannot
  abort a batch: giving up earlier would send a second batch to a worker that is still busy with the first.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from handlers.contract.card import Card
from service.core.errors import BackendFault, BackendTimeout, BackendUnavailable
from service.core.types import BatchResult, Computed, Job, Usage
from service.transport.computed import read
from service.transport.engine_calls import EngineCalls
from service.transport.handshake import Handshake
from service.transport.patience import Patience
from service.transport.runner import Runner
from service.transport.sending import Answer, BatchRefused, Infer, send_inline, send_shared
from service.transport.shm_region import SharedDirectory, ShmRegion
from service.transport.slots import InputSlots, SlotLease
from service.transport.worker_connections import WorkerConnections

_log = logging.getLogger(__name__)


class BatchTransport:
    """Sends the batches of one model version. Construct inside the running event loop, `start`, then `close`.

    `region` None: every batch travels inline. `memory` is the directory of `region`; `close` removes the directory.
    `patience` is how long batches may take that go through the engine. `on_failure` is called when a batch was lost or
    not answered in time, `on_retry` when a lost batch is sent again, `on_refused` when a worker refused the shared
    memory, `on_computed` for each answer with what the worker said of itself, `on_change` when a worker said something
    else than the one before, in a handshake or an answer.
    """

    def __init__(
        self,
        *,
        card: Card,
        runner: Runner,
        region: ShmRegion | None,
        memory: SharedDirectory | None,
        connections: WorkerConnections,
        patience: Patience | None = None,
        batch_timeout_seconds: float,
        clock: Callable[[], float],
        on_retry: Callable[[], None] = lambda: None,
        on_failure: Callable[[], None] = lambda: None,
        on_refused: Callable[[], None] = lambda: None,
        on_computed: Callable[[Computed], None] = lambda computed: None,
        on_change: Callable[[Computed], None] = lambda computed: None,
    ) -> None:
        self._card = card
        self._region = region
        self._memory = memory
        self.connections = connections
        self._batch_timeout_seconds = batch_timeout_seconds
        self._clock = clock
        self._on_retry = on_retry
        self._on_failure = on_failure
        self._on_refused = on_refused
        self._on_computed = on_computed
        self._on_change = on_change
        self.computed = Computed()  # what a worker said last
        self._engine = EngineCalls(
            card.name,
            card.version,
            runner=runner,
            patience=patience or Patience(),
            workers=lambda: connections.wanted,
        )
        self._inputs = InputSlots(None, (0, 0, 3)) if region is None else region.inputs
        self.handshake: Handshake | None = None
        if region is not None:
            self.handshake = Handshake(
                card=card, runner=runner, region=region, connections=connections, clock=clock, on_answer=self._said
            )
            connections.on_lost = self.handshake.connection_lost
        self._handshaking: asyncio.Task[None] | None = None

    @property
    def has_shared_memory(self) -> bool:
        """Whether there is shared memory for this model version, in use or not."""
        return self._region is not None

    @property
    def shared(self) -> bool:
        """Whether batches travel in shared memory now."""
        return self.handshake is not None and self.handshake.shared

    def lease(self) -> SlotLease:
        """A place for the pixels of one picture, to decode into. The caller releases the lease."""
        return self._inputs.lease()

    def usage(self, kind: str) -> Usage:
        """Slots of shared memory by state. `kind` is `input` or `output`."""
        if self._region is None:
            return Usage()
        return self._region.inputs.usage() if kind == "input" else self._region.outputs.usage()

    def resize(self, workers: int) -> None:
        """Expect `workers` workers from now on."""
        self.connections.wanted = workers
        if self.handshake is not None:
            self.handshake.wake()

    async def start(self) -> None:
        """Listen for worker connections, attempt one handshake, and leave further attempts to a background task."""
        if self._region is None or self.handshake is None:
            return
        await self.connections.listen(self._region.calls)
        await self.handshake.attempt()
        self._handshaking = asyncio.create_task(self.handshake.run())
        self._handshaking.add_done_callback(self._handshaking_ended)

    async def close(self) -> None:
        """Close the worker connections and remove the shared memory. Batches on their way are lost."""
        if self._handshaking is not None:
            self._handshaking.cancel()
            await asyncio.wait({self._handshaking})
        await self.connections.close()
        if self._memory is not None:
            self._memory.remove()

    def _handshaking_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            _log.error("the handshake of %s ended: this is a bug", self._card.name, exc_info=task.exception())

    async def run(self, jobs: Sequence[Job]) -> BatchResult:
        """Run one batch, and send it once more if its worker was lost.

        Raises:
            BackendUnavailable: the engine is unreachable, or the worker died, also at the second attempt.
            BackendTimeout: no answer within the batch timeout.
            BackendFault: the model failed on the batch, or the answer does not match the card.
        """
        started_at = self._clock()
        try:
            answer = await self._send(jobs, self._batch_timeout_seconds)
        except BackendUnavailable:
            remaining_seconds = max(job.deadline_at for job in jobs) - self._clock()
            if remaining_seconds <= 0:
                raise
            self._on_retry()
            answer = await self._send(jobs, min(remaining_seconds, self._batch_timeout_seconds), again=True)
        return self._result(answer, len(jobs), spent_seconds=self._clock() - started_at)

    async def _send(self, jobs: Sequence[Job], timeout_seconds: float, *, again: bool = False) -> Answer:
        try:
            if self._region is not None and self.handshake is not None and self.handshake.shared:
                return await self._send_shared(self._region, self.handshake, jobs, timeout_seconds)
            # The engine may not have noticed yet that a worker died, and would give that worker the batch again.
            beside = again and len(self.connections) > 0
            infer = self._way(len(jobs), direct=beside)
            answer = await send_inline(self._card, jobs, infer, timeout_seconds)
        except (BackendUnavailable, BackendTimeout):
            self._on_failure()
            raise
        if self.handshake is not None:
            self.handshake.inline_batch_answered()
        return answer

    async def _send_shared(
        self, region: ShmRegion, handshake: Handshake, jobs: Sequence[Job], timeout_seconds: float
    ) -> Answer:
        give_up_at = self._clock() + timeout_seconds
        infer = self._way(len(jobs), direct=self.connections.complete)
        try:
            return await send_shared(self._card, region, jobs, infer, timeout_seconds)
        except BatchRefused as refusal:
            self._on_refused()
            handshake.worker_failed(str(refusal))
        except (BackendUnavailable, BackendTimeout) as error:
            handshake.worker_failed(str(error))
            raise
        timeout_seconds = give_up_at - self._clock()
        if timeout_seconds <= 0:
            raise BackendTimeout(f"{self._card.name}: no time is left to send the refused batch again")
        return await send_inline(self._card, jobs, self._way(len(jobs), direct=False), timeout_seconds)

    def _way(self, pictures: int, *, direct: bool) -> Infer:
        return partial(self._direct if direct else self._engine.infer, pictures=pictures)

    async def _direct(self, frame: bytes, timeout_seconds: float, *, pictures: int) -> bytes:
        return await self.connections.infer(frame, timeout_seconds=timeout_seconds, pictures=pictures)

    def _result(self, answer: Answer, size: int, *, spent_seconds: float) -> BatchResult:
        for output in self._card.outputs:
            tensor = answer.tensors.get(output.name)
            if tensor is None or tensor.dtype != output.dtype or tensor.shape != (size, *output.shape):
                got = "nothing" if tensor is None else f"{tensor.dtype.name} {tensor.shape}"
                raise BackendFault(
                    f"the worker of {self._card.name} answered {got} for output {output.name!r}; its card says "
                    f"{output.dtype} {(size, *output.shape)}: rebuild the archive"
                )
        inference_seconds = min(float(answer.meta.get("inference_seconds", 0.0)), spent_seconds)
        names = [output.name for output in self._card.outputs]
        computed = self._said(answer.meta)
        self._on_computed(computed)
        return BatchResult(
            rows=[{name: answer.tensors[name][index] for name in names} for index in range(size)],
            transport_seconds=spent_seconds - inference_seconds,
            inference_seconds=inference_seconds,
            micro_batch=int(answer.meta.get("part", 0)),
            network_engine=computed.network_engine,
            dtype=computed.dtype,
            device=computed.device,
        )

    def _said(self, meta: Mapping[str, Any]) -> Computed:
        """What a worker says of itself. Kept as `computed`, if it says anything."""
        said = read(meta)
        if said not in {self.computed, Computed()}:
            self.computed = said
            self._on_change(said)
        return said
