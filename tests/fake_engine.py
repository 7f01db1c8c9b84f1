"""An inference engine in the test's own process. It passes the same contract test as the real one (test_engine.py)."""

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from handlers.contract import worker_protocol
from handlers.contract.frame import Array, FrameError, unpack
from handlers.contract.shm_layout import Memory
from service.core.errors import BackendFault, BackendTimeout, BackendUnavailable, ServiceError
from service.engines.base import Loading, ModelStatus


class FakeEngine:
    """An engine whose workers are functions. It is its own `runner` and, by `versions`, its own version manager.

    Attributes that tests set:
        failures: raised by the next batches, in this order, before they run.
        gate: if set, holds every batch until the gate opens, so that the test decides when a batch finishes.
        part: how many pictures a worker reports to run at once. 0: the worker does not report it.
        about: what else the workers report about themselves.
        memory: what the workers see of the gateways' shared memory.
        workers: of the loaded versions, by model and version.
        broken, hanging, loading: versions that fail on every batch, do not answer, have no ready worker.
        runs: functions of versions that answer differently from `run`.

    `run` maps (model, pixels) to outputs. `shm_dir` is the workers' MOBILEVISION_SHM_DIR. `call` connects a worker to a
    gateway's socket; None: the workers do not connect.
    """

    def __init__(
        self,
        run: Callable[[str, Array], Mapping[str, Array]],
        *,
        shm_dir: Path | None = None,
        call: Callable[[str], None] | None = None,
    ) -> None:
        self._run = run
        self._call = call
        self.memory = Memory(shm_dir)
        self.failures: list[ServiceError] = []
        self.gate: asyncio.Event | None = None
        self.batch_sizes: list[int] = []
        self.part = 0
        self.about = {"dtype": "float32", "device": "cpu"}
        self.ready_workers = 1
        self.workers: dict[str, dict[str, int]] = {}
        self.defaults: dict[str, str] = {}
        self.broken: dict[str, ServiceError] = {}
        self.loading: set[str] = set()
        self.hanging: set[str] = set()
        self.runs: dict[str, Callable[[str, Array], Mapping[str, Array]]] = {}
        self.ended: list[tuple[str, str]] = []  # model and version of each `end_workers`
        self.lost = 0  # batches in flight when their version was unloaded
        self._stopped = asyncio.Event()
        self.in_flight: Counter[tuple[str, str]] = Counter()

    async def infer(self, model: str, frame: bytes, *, timeout_seconds: float, version: str = "") -> bytes:
        """See `Runner.infer`."""
        if version in self.broken:
            raise self.broken[version]
        self.in_flight[model, version] += 1
        try:
            if version in self.hanging:
                await self._hang(timeout_seconds)
            return await self._infer(model, frame, timeout_seconds, self.runs.get(version, self._run))
        finally:
            self.in_flight[model, version] -= 1

    async def _hang(self, timeout_seconds: float) -> None:
        # Not for ever: a gateway that stops waits for its batches.
        await asyncio.sleep(min(timeout_seconds, 2.0))
        raise BackendTimeout(f"no answer within {timeout_seconds:.3f} s")

    async def _infer(
        self,
        model: str,
        frame: bytes,
        timeout_seconds: float,
        answer: Callable[[str, Array], Mapping[str, Array]],
    ) -> bytes:
        tensors, _ = unpack(frame)
        rows = tensors.get(worker_protocol.SLOTS, tensors.get(worker_protocol.PIXELS))
        if rows is not None:
            self.batch_sizes.append(len(rows))
            try:
                async with asyncio.timeout(timeout_seconds):
                    if self.gate is not None:
                        await self.gate.wait()
            except TimeoutError as error:
                raise BackendTimeout(f"no answer within {timeout_seconds:.3f} s") from error
            if self.failures:
                raise self.failures.pop(0)

        def run(pixels: Array | Sequence[Array]) -> Mapping[str, Array]:
            return answer(model, np.stack(list(pixels)))

        try:
            return worker_protocol.answer(
                frame,
                run=run,
                memory=self.memory,
                about={"part": self.part, **self.about},
                call=self._call,
            )
        except FrameError as error:
            raise BackendFault(str(error)) from error

    async def end_workers(self, model: str, version: str) -> int:
        """See `Runner.end_workers`. The batches of the workers are lost."""
        self.ended.append((model, version))
        self.hanging.discard(version)
        return self.workers.get(model, {}).get(version, 1)

    @property
    def name(self) -> str:
        """See `Engine.name`."""
        return "fake"

    @property
    def runner(self) -> "FakeEngine":
        """See `Engine.runner`."""
        return self

    @property
    def versions(self) -> "FakeVersions":
        """See `Engine.versions`."""
        return FakeVersions(self)

    @property
    def replica_settings(self) -> Mapping[str, Any]:
        """See `Engine.replica_settings`. Nobody else can reach a fake."""
        return {}

    async def start(self) -> None:
        """See `Engine.start`."""

    async def supervise(self) -> None:
        """See `Engine.supervise`."""
        await self._stopped.wait()

    async def stop(self) -> None:
        """See `Engine.stop`."""
        self._stopped.set()


class FakeVersions:
    """The version manager of a `FakeEngine`."""

    def __init__(self, engine: FakeEngine) -> None:
        self._engine = engine

    async def model_status(self, model: str, version: str = "") -> ModelStatus:
        """See `VersionManager.model_status`."""
        return ModelStatus(ready_workers=self._engine.ready_workers, total_workers=1)

    async def versions(self, model: str) -> Mapping[str, ModelStatus]:
        """See `VersionManager.versions`."""
        return {
            version: ModelStatus(ready_workers=0 if version in self._engine.loading else count, total_workers=count)
            for version, count in self._engine.workers.get(model, {}).items()
        }

    async def load(self, model: str, version: str, loading: Loading) -> None:
        """See `VersionManager.load`."""
        self._engine.workers.setdefault(model, {}).setdefault(version, loading.workers)

    async def scale(self, model: str, version: str, workers: int) -> None:
        """See `VersionManager.scale`."""
        if version not in self._engine.workers.get(model, {}):
            raise BackendUnavailable(f"{model} has no version {version}")
        self._engine.workers[model][version] = workers

    async def make_default(self, model: str, version: str) -> None:
        """See `VersionManager.make_default`."""
        self._engine.defaults[model] = version

    async def unload(self, model: str, version: str) -> None:
        """See `VersionManager.unload`."""
        if self._engine.defaults.get(model) == version:
            raise BackendUnavailable(f"{version} is the default version of {model}")
        self._engine.lost += self._engine.in_flight[model, version]
        self._engine.workers.get(model, {}).pop(version, None)
