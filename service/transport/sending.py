"""Two ways to send one batch to a worker: pixels inside the request, or pixels in shared memory.

In: the jobs of a batch. Out: the worker's `Answer`. Never retries and never decides which way is used: that is
`batch_transport`. `handlers.contract.worker_protocol` describes the frames.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from handlers.contract.card import Card
from handlers.contract.frame import Array, FrameError, pack, unpack
from handlers.contract.worker_protocol import INLINE_ROW, PIXELS, SLOTS
from service.core.errors import BackendFault
from service.core.types import Job, Lease
from service.transport.shm_region import ShmRegion
from service.transport.slots import OutputSlot

Infer = Callable[[bytes, float], Awaitable[bytes]]  # (request frame, timeout in seconds) -> answer frame


@dataclass(frozen=True, slots=True)
class Answer:
    """What a worker answered: output tensors [N, ...] by name, and what the worker reports about the batch."""

    tensors: Mapping[str, Array]
    meta: Mapping[str, Any]


class BatchRefused(Exception):
    """The worker cannot use the shared memory. The batch did not run and may be sent inline."""


async def send_inline(card: Card, jobs: Sequence[Job], infer: Infer, timeout_seconds: float) -> Answer:
    """Send a batch with its pixels inside the request frame. Raises `BackendFault`, and what `infer` raises."""
    request = pack({PIXELS: np.stack([job.pixels for job in jobs])})  # (N, H, W, 3) uint8
    return _read(card, await infer(request, timeout_seconds))


async def send_shared(
    card: Card, region: ShmRegion, jobs: Sequence[Job], infer: Infer, timeout_seconds: float
) -> Answer:
    """Send a batch whose pixels lie in `region`. Pictures without a slot travel inside the request frame.

    Raises `BatchRefused`, `BackendFault`, and what `infer` raises. Every slot is given back in any case; the output
    slot of a batch without an answer goes into quarantine, because the worker may still write into it.
    """
    # A caller may be gone and its slot may hold another picture: that row is sent, but nobody reads its result.
    leases = {row: job.lease for row, job in enumerate(jobs) if job.lease is not None and job.lease.held}
    for lease in leases.values():  # a caller may go away while the batch is on its way
        lease.acquire()
    output = region.outputs.take()
    answered = False
    try:
        answer = _read(card, await infer(_request(card, region, jobs, leases, output), timeout_seconds))
        if "refused" in answer.meta:
            raise BatchRefused(str(answer.meta["refused"]))
        if output is not None:
            written = region.outputs.content(output).data[: int(answer.meta.get("output_bytes", 0))]
            answer = _read(card, written)
            # One copy, so that the slot does not have to wait until the replies are written.
            answer = Answer({name: tensor.copy() for name, tensor in answer.tensors.items()}, answer.meta)
        answered = True
    finally:
        for lease in leases.values():
            lease.release()
        if output is not None and answered:
            region.outputs.free(output)
        elif output is not None:
            region.outputs.quarantine(output)
    return answer


def _request(
    card: Card, region: ShmRegion, jobs: Sequence[Job], leases: Mapping[int, Lease], output: OutputSlot | None
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
    meta: dict[str, int | str] = {
        "inputs": region.inputs_name,
        "height": card.input.height,
        "width": card.input.width,
    }
    if output is not None:
        meta |= {"output": region.output_name(output.index), "generation": output.generation}
    return pack(tensors, meta)


def _read(card: Card, frame: bytes | memoryview) -> Answer:
    try:
        return Answer(*unpack(frame))
    except FrameError as error:
        raise BackendFault(f"the worker of {card.name} answered no tensor frame", detail=str(error)) from error
