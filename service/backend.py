"""What the gateway needs from an inference backend, and a fake one for tests and dry runs.

The fake passes the same contract test as `torchserve.TorchServeBackend` (tests/contract/test_backend.py).
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from handlers import exchange
from handlers.frame import Array, FrameError, unpack
from handlers.shm import Memory
from service.errors import BackendFault, BackendTimeout, BackendUnavailable, ServiceError


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """Workers of one model as the backend sees them; `detail` says why none is ready."""

    ready_workers: int
    total_workers: int
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Loading:
    """How a version is loaded: the file in the backend's store, workers, and how long they may take for what."""

    archive: str
    workers: int
    response_timeout_seconds: int
    startup_timeout_seconds: int


class Backend(Protocol):
    """Runs frames. Safe to call concurrently from one event loop. An empty `version` is the model's default one."""

    async def infer(self, model: str, frame: bytes, *, timeout_seconds: float, version: str = "") -> bytes:
        """Run one batch: a request frame in, an answer frame out, as `handlers.exchange` describes them.

        Raises `BackendUnavailable` (unreachable, or the worker died: may be sent again), `BackendTimeout`,
        `BackendFault` (the model failed on it: sending it again would fail again).
        """
        ...

    async def model_status(self, model: str, version: str = "") -> ModelStatus:
        """Report the workers of a model. Raises `BackendUnavailable`."""
        ...

    async def versions(self, model: str) -> Mapping[str, ModelStatus]:
        """Report the workers of every version of a model that is loaded. Raises `BackendUnavailable`."""
        ...

    async def load(self, model: str, version: str, loading: Loading) -> None:
        """Begin to load a version beside the others; one that is there already stays. Raises `BackendUnavailable`."""
        ...

    async def scale(self, model: str, version: str, workers: int) -> None:
        """Begin to start or end workers of a version. Raises `BackendUnavailable`."""
        ...

    async def make_default(self, model: str, version: str) -> None:
        """Let calls that name no version go to this one. Raises `BackendUnavailable`."""
        ...

    async def unload(self, model: str, version: str) -> None:
        """End a version's workers; one that is not there is no failure. Batches sent to it are lost, and may never be
        answered: let none be in flight. Raises `BackendUnavailable`, as for the default version.
        """
        ...

    async def close(self) -> None:
        """Close connections."""
        ...


class OneVersion:
    """One version of each model of a backend, for those who need not know that there are others."""

    def __init__(self, backend: Backend, version: str) -> None:
        self._backend = backend
        self._version = version

    async def infer(self, model: str, frame: bytes, *, timeout_seconds: float) -> bytes:
        """See `Backend.infer`."""
        return await self._backend.infer(model, frame, timeout_seconds=timeout_seconds, version=self._version)


class Runner(Protocol):
    """The part of a backend that runs frames."""

    async def infer(self, model: str, frame: bytes, *, timeout_seconds: float) -> bytes:
        """See `Backend.infer`."""
        ...


class FakeBackend:
    """A backend in this process: `run` maps pixels to outputs, `failures` are raised before answering, in order.

    `gate`, when set, holds every batch until it is opened, so that tests decide when a batch finishes. `part` is how
    many pictures its workers say they run at once, 0: they do not say. `shm_dir` is what its workers are given as
    `MOBILEVISION_SHM_DIR`; `call` is how they call a gateway back, None: they do not.
    `workers` are those of the versions loaded, by model and version; versions in `broken` fail on every batch, those in
    `hanging` do not answer, those in `loading` have no ready worker, those in `runs` answer otherwise than the others.
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
        self.ready_workers = 1
        self.workers: dict[str, dict[str, int]] = {}
        self.defaults: dict[str, str] = {}
        self.broken: dict[str, ServiceError] = {}
        self.loading: set[str] = set()
        self.hanging: set[str] = set()
        self.runs: dict[str, Callable[[str, Array], Mapping[str, Array]]] = {}
        self.lost = 0  # batches in flight when their version was unloaded
        self._flight: Counter[tuple[str, str]] = Counter()

    async def infer(self, model: str, frame: bytes, *, timeout_seconds: float, version: str = "") -> bytes:
        """See `Backend.infer`."""
        if version in self.broken:
            raise self.broken[version]
        self._flight[model, version] += 1
        try:
            if version in self.hanging:
                await self._hang(timeout_seconds)
            return await self._infer(model, frame, timeout_seconds, self.runs.get(version, self._run))
        finally:
            self._flight[model, version] -= 1

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
        rows = tensors.get(exchange.SLOTS, tensors.get(exchange.PIXELS))
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
            return exchange.answer(frame, run=run, memory=self.memory, about={"part": self.part}, call=self._call)
        except FrameError as error:
            raise BackendFault(str(error)) from error

    async def model_status(self, model: str, version: str = "") -> ModelStatus:
        """See `Backend.model_status`."""
        return ModelStatus(ready_workers=self.ready_workers, total_workers=1)

    async def versions(self, model: str) -> Mapping[str, ModelStatus]:
        """See `Backend.versions`."""
        return {
            version: ModelStatus(ready_workers=0 if version in self.loading else count, total_workers=count)
            for version, count in self.workers.get(model, {}).items()
        }

    async def load(self, model: str, version: str, loading: Loading) -> None:
        """See `Backend.load`."""
        self.workers.setdefault(model, {}).setdefault(version, loading.workers)

    async def scale(self, model: str, version: str, workers: int) -> None:
        """See `Backend.scale`."""
        if version not in self.workers.get(model, {}):
            raise BackendUnavailable(f"{model} has no version {version}")
        self.workers[model][version] = workers

    async def make_default(self, model: str, version: str) -> None:
        """See `Backend.make_default`."""
        self.defaults[model] = version

    async def unload(self, model: str, version: str) -> None:
        """See `Backend.unload`."""
        if self.defaults.get(model) == version:
            raise BackendUnavailable(f"{version} is the default version of {model}")
        self.lost += self._flight[model, version]
        self.workers.get(model, {}).pop(version, None)

    async def close(self) -> None:
        """Nothing to close."""
