"""A `BatchTransport` over a fake engine, on a clock that the test sets."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import numpy as np
from fake_engine import FakeEngine
from fakes import SIDE, toy_card, toy_run

from handlers.contract.frame import Array, unpack
from handlers.contract.worker_protocol import HANDSHAKE
from service.core.types import Computed, Job, Usage
from service.transport.batch_transport import BatchTransport
from service.transport.patience import Patience
from service.transport.shm_region import SharedDirectory, Size
from service.transport.worker_connections import WorkerConnections

CARD = toy_card()
ALL_FREE = (Usage(free=6), Usage(free=2))
Run = Callable[[str, Array], dict[str, Array]]


class Bench:
    """A transport on a clock that the test sets. With `base`, its shared memory is below that directory."""

    def __init__(
        self,
        base: Path | None = None,
        *,
        run: Run = toy_run,
        call: Callable[[str], None] | None = None,
        wanted: int = 1,
        patience: Patience | None = None,
    ) -> None:
        self.now = 100.0
        self.retried = self.failed = self.refused = 0
        self.computed: list[Computed] = []  # of each batch
        self.changes: list[Computed] = []
        self.directory = None if base is None else SharedDirectory(base)
        self.region = None
        if self.directory is not None:
            self.region = self.directory.region(CARD, Size.wanted(CARD, max_batch=4, batches=1, pictures=6))
        self.backend = FakeEngine(run, shm_dir=base, call=call)
        self.requests: list[bytes] = []
        self.connections = WorkerConnections(CARD.name, wanted=wanted)
        self.transport = BatchTransport(
            card=CARD,
            runner=self,
            region=self.region,
            memory=self.directory,
            connections=self.connections,
            patience=patience,
            batch_timeout_seconds=1.0,
            clock=lambda: self.now,
            on_retry=self._on_retry,
            on_failure=self._on_failure,
            on_refused=self._on_refused,
            on_computed=self.computed.append,
            on_change=self.changes.append,
        )

    async def infer(self, model: str, frame: bytes, *, version: str, timeout_seconds: float) -> bytes:
        self.requests.append(frame)
        return await self.backend.infer(model, frame, version=version, timeout_seconds=timeout_seconds)

    async def end_workers(self, model: str, version: str) -> int:
        return await self.backend.end_workers(model, version)

    def _on_retry(self) -> None:
        self.retried += 1

    def _on_failure(self) -> None:
        self.failed += 1

    def _on_refused(self) -> None:
        self.refused += 1

    def job(self, shade: int, *, deadline_at: float = 1e9) -> Job:
        lease = self.transport.lease()
        pixels = lease.allocate()
        if pixels is None:
            pixels = np.empty((SIDE, SIDE, 3), np.uint8)
        pixels[:] = shade
        return Job(request_id=str(shade), pixels=pixels, deadline_at=deadline_at, submitted_at=0.0, lease=lease)

    async def firsts(self, *jobs: Job) -> list[int]:
        """The first label of each answer. Gives the jobs' leases back."""
        try:
            result = await self.transport.run(jobs)
            return [int(row["labels"][0]) for row in result.rows]
        finally:
            for job in jobs:
                assert job.lease is not None
                job.lease.release()

    async def pass_seconds(self, seconds: float) -> None:
        """Move the clock, and let the background task run until it has nothing to do."""
        self.now += seconds
        assert self.transport.handshake is not None
        self.transport.handshake.wake()
        for _ in range(20):
            await asyncio.sleep(0)

    @property
    def usage(self) -> tuple[Usage, Usage]:
        return self.transport.usage("input"), self.transport.usage("output")

    def batches(self) -> list[str]:
        """Tensors of each batch that was sent through the engine, in order."""
        sent = [unpack(request) for request in self.requests]
        return ["+".join(sorted(tensors)) for tensors, meta in sent if HANDSHAKE not in meta]

    def questions(self) -> int:
        """Handshake questions that were sent."""
        return sum(HANDSHAKE in unpack(request)[1] for request in self.requests)
