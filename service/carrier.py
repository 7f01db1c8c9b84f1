"""How the batches of one model travel to its workers: in shared memory where they proved to see it, else inline.

The proof is a question asked like any batch (`agree`): a worker reads a random token back from the gateway's directory
and must find it locked by the gateway. It is asked at the start, and again some seconds after a worker was lost, did
not answer, or refused a batch: with several workers any of them may have answered the first time. A refused batch is
sent once more, inline, so nothing is lost. Never retries otherwise: that is `dispatch`.

The question also asks the worker to call back (`channels`). When all have, batches go to them directly; until then, and
when one is lost, by the backend as before.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from handlers.exchange import INLINE_ROW, PIXELS, SLOTS
from handlers.frame import Array, FrameError, pack, unpack
from model_store.card import Card
from service.backend import Runner
from service.channels import Channels
from service.errors import BackendFault, BackendTimeout, BackendUnavailable
from service.region import Region
from service.slots import InputSlots, Lease, OutputSlot
from service.work import Job

ASK_AGAIN_SECONDS = 5.0  # doubled after every question answered with no
ASK_AGAIN_MOST_SECONDS = 300.0
ASK_TIMEOUT_SECONDS = 2.0

_log = logging.getLogger(__name__)


class Carrier:
    """Carries batches of one model. `region` None: always inline; `channels` None: always by the backend.

    For one event loop.
    """

    def __init__(
        self,
        *,
        card: Card,
        backend: Runner,
        region: Region | None,
        clock: Callable[[], float],
        channels: Channels | None = None,
        on_refused: Callable[[], None] = lambda: None,
    ) -> None:
        self._card = card
        self._backend = backend
        self._region = region
        self._channels = channels
        self._clock = clock
        self._on_refused = on_refused
        self._inputs = InputSlots(None, (0, 0, 3)) if region is None else region.inputs
        self._ask_at_seconds = clock()
        self._patience_seconds = ASK_AGAIN_SECONDS
        self._why_inline: str | None = ""  # None while shared memory is in use
        self._why_no_call = ""

    @property
    def shared(self) -> bool:
        """Whether batches travel in shared memory now."""
        return self._why_inline is None

    def lend(self) -> Lease:
        """A place for one picture, to decode into. The caller drops it."""
        return self._inputs.lend()

    async def agree(self) -> None:
        """Ask workers whether they see the shared memory, and to call back, unless done already or tried just now."""
        region = self._region
        if region is None or (self.shared and self._called) or self._clock() < self._ask_at_seconds:
            return
        self._ask_at_seconds = self._clock() + self._patience_seconds
        self._patience_seconds = min(2 * self._patience_seconds, ASK_AGAIN_MOST_SECONDS)
        # TorchServe chooses who answers, idle ones in turn.
        for _ in range(1 if self._channels is None else 2 * self._channels.wanted):
            if not await self._ask(region) or self._called:
                return

    @property
    def _called(self) -> bool:
        return self._channels is None or self._channels.complete

    async def _ask(self, region: Region) -> bool:
        """Ask one worker; whether it is of use to ask another."""
        question = pack({}, {"hello": region.probe_name, "call": region.calls_name})
        try:
            answer = await self._backend.infer(self._card.name, question, timeout_seconds=ASK_TIMEOUT_SECONDS)
            _, meta = unpack(answer)
        except (BackendUnavailable, BackendTimeout) as error:
            self._go_inline(error.message)
            return False
        except (BackendFault, FrameError) as error:
            self._go_inline(f"its worker was not built for shared memory, so rebuild the archive ({error})")
            return False
        if meta.get("token") != region.token:
            self._go_inline(str(meta.get("refused", "its worker reads another token")))
            return False
        if not self.shared:
            self._why_inline = None
            region.inputs.offered = True
            _log.info("model %s: batches travel in shared memory", self._card.name, extra={"model": self._card.name})
        await asyncio.sleep(0)  # a call that came meanwhile is taken
        if self._called:
            self._patience_seconds = ASK_AGAIN_SECONDS
        self._tell_no_call(str(meta.get("no_call", "")))
        return True

    def _tell_no_call(self, why: str) -> None:
        if why and why != self._why_no_call:
            text = "model %s: batches go through the backend, a worker cannot call back: %s"
            _log.warning(text, self._card.name, why, extra={"model": self._card.name})
        self._why_no_call = why

    async def send(self, jobs: Sequence[Job], *, timeout_seconds: float) -> tuple[dict[str, Array], Mapping[str, Any]]:
        """One batch to a worker and back: outputs by name, [N, ...] each, and what it says besides.

        Raises `BackendUnavailable`, `BackendTimeout` or `BackendFault`.
        """
        give_up_seconds = self._clock() + timeout_seconds
        await self.agree()
        if self._region is not None and self.shared:
            carried = await self._send_shared(self._region, jobs, give_up_seconds - self._clock())
            if carried is not None:
                return carried
            if self._clock() >= give_up_seconds:
                raise BackendTimeout(f"{self._card.name}: no time is left to send the refused batch again")
        request = pack({PIXELS: np.stack([job.pixels for job in jobs])})  # (N, H, W, 3) uint8
        answer = await self._backend.infer(self._card.name, request, timeout_seconds=give_up_seconds - self._clock())
        return self._read(answer)

    async def _send_shared(
        self, region: Region, jobs: Sequence[Job], timeout_seconds: float
    ) -> tuple[dict[str, Array], Mapping[str, Any]] | None:
        """None where the worker refused."""
        # A caller may have gone already, and its slot be another's: its row is carried, but nobody looks at it.
        leases = {row: job.lease for row, job in enumerate(jobs) if job.lease is not None and job.lease.held}
        for lease in leases.values():  # others may go meanwhile
            lease.hold()
        output = region.outputs.take()
        answered = False
        try:
            request = self._described(region, jobs, leases, output)
            answer = await self._infer(request, timeout_seconds)
            tensors, meta = self._read(answer)
            if "refused" in meta:
                self._on_refused()
                self._go_inline(str(meta["refused"]))
                return None
            if output is not None:
                tensors, meta = self._read(region.outputs.content(output).data[: int(meta.get("output_bytes", 0))])
                # Copied once, so that the slot does not wait for the replies to be written.
                tensors = {name: tensor.copy() for name, tensor in tensors.items()}
            answered = True
        except (BackendUnavailable, BackendTimeout) as error:
            self._go_inline(error.message)
            raise
        else:
            return tensors, meta
        finally:
            for lease in leases.values():
                lease.drop()
            if output is not None and answered:
                region.outputs.free(output)
            elif output is not None:
                region.outputs.quarantine(output)

    async def _infer(self, request: bytes, timeout_seconds: float) -> bytes:
        if self._channels is not None and self._channels.complete:
            return await self._channels.infer(request, timeout_seconds=timeout_seconds)
        return await self._backend.infer(self._card.name, request, timeout_seconds=timeout_seconds)

    def _described(
        self, region: Region, jobs: Sequence[Job], leases: Mapping[int, Lease], output: OutputSlot | None
    ) -> bytes:
        slots = np.zeros((len(jobs), 2), np.int32)
        inline = []
        for row, job in enumerate(jobs):
            lease = leases.get(row)
            if lease is not None and lease.index is not None:
                slots[row] = lease.index, lease.generation
            else:
                slots[row] = INLINE_ROW, 0
                inline.append(job.pixels)
        tensors = {SLOTS: slots} | ({PIXELS: np.stack(inline)} if inline else {})
        size = self._card.input
        meta: dict[str, int | str] = {"inputs": region.inputs_name, "height": size.height, "width": size.width}
        if output is not None:
            meta |= {"output": region.output_name(output.index), "generation": output.generation}
        return pack(tensors, meta)

    def _read(self, answer: bytes | memoryview) -> tuple[dict[str, Array], Mapping[str, Any]]:
        try:
            return unpack(answer)
        except FrameError as error:
            raise BackendFault(f"the worker of {self._card.name} answered no tensor frame: {error}") from error

    def _go_inline(self, why: str) -> None:
        self._ask_at_seconds = max(self._ask_at_seconds, self._clock() + ASK_AGAIN_SECONDS)
        if why != self._why_inline:
            _log.info("model %s: batches travel inline: %s", self._card.name, why, extra={"model": self._card.name})
        self._why_inline = why
        self._inputs.offered = False
