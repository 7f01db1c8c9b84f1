"""What the gateway needs from an inference engine: a folder of this package holds one engine.

An `Engine` starts and stops the workers. Its `Runner` runs batches on the workers. Its `VersionManager` loads, scales
and unloads versions of models. The tests' fake engine and the real engines pass the same contract tests
(tests/contract/test_engine.py). No type of a particular engine passes through here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from handlers.contract.card import Card


class EngineFailed(RuntimeError):
    """The engine could not be started. The message says why and what to do."""


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """Workers of one model, as the engine reports them. `detail` says why workers are not ready.

    `reported` False: the engine did not answer, so nothing is known about the workers.
    """

    ready_workers: int
    total_workers: int
    detail: str = ""
    reported: bool = True


@dataclass(frozen=True, slots=True)
class Loading:
    """How a version is loaded: its archive, the card that the gateway serves it by, workers, and time limits.

    `card` None: the archive may have any card.
    """

    archive: Path
    card: Card | None
    workers: int
    response_timeout_seconds: int  # for one batch; the engine ends a worker that takes longer
    startup_timeout_seconds: int  # until a worker has loaded the model


class Runner(Protocol):
    """Runs batches. Safe to call concurrently from one event loop."""

    async def infer(self, model: str, frame: bytes, *, timeout_seconds: float, version: str = "") -> bytes:
        """Run one batch: a request frame in, an answer frame out (see `handlers.contract.worker_protocol`).

        An empty `version` is the default version of the model.

        Raises:
            BackendUnavailable: the engine is unreachable or the worker died. The batch may be sent again.
            BackendTimeout: no answer within `timeout_seconds`.
            BackendFault: the model failed on this batch. Sending it again would fail again.
        """
        ...

    async def end_workers(self, model: str, version: str) -> int:
        """End the processes of all workers of a version by force, because they hang. The engine starts others.

        Returns how many were ended: 0 where the processes are not visible from here. Raises `BackendUnavailable`.
        """
        ...


class VersionManager(Protocol):
    """Reports and changes which versions are loaded. Every method raises `BackendUnavailable` if the engine fails."""

    async def model_status(self, model: str, version: str = "") -> ModelStatus:
        """Report the workers of a version, or of the default version."""
        ...

    async def versions(self, model: str) -> Mapping[str, ModelStatus]:
        """Report the workers of every loaded version of a model. Empty for a model that is not loaded."""
        ...

    async def load(self, model: str, version: str, loading: Loading) -> None:
        """Begin to load a version beside the others. A version that is loaded already stays as it is.

        Raises `ArchiveUntrusted` if the archive is damaged, is of another card, or lacks a signature that is required.
        """
        ...

    async def scale(self, model: str, version: str, workers: int) -> None:
        """Begin to start or end workers of a version. Raises `BackendUnavailable` if the version is not loaded."""
        ...

    async def make_default(self, model: str, version: str) -> None:
        """Send batches that name no version to this version from now on."""
        ...

    async def unload(self, model: str, version: str) -> None:
        """End a version's workers. Does nothing if the version is not loaded.

        Batches on their way to the version are lost and may never be answered, so no batch may be on its way. Raises
        `BackendUnavailable` for the default version too.
        """
        ...


class Engine(Protocol):
    """Starts, supervises and stops the workers. For one event loop: `start`, `supervise` as a task, `stop`."""

    @property
    def name(self) -> str:
        """What replies and recorded calls call this engine."""
        ...

    @property
    def runner(self) -> Runner:
        """Runs batches. Only between `start` and `stop`."""
        ...

    @property
    def versions(self) -> VersionManager:
        """Reports and changes which versions are loaded. Only between `start` and `stop`."""
        ...

    @property
    def replica_settings(self) -> Mapping[str, Any]:
        """Settings by which another gateway process uses this engine's workers. Only between `start` and `stop`."""
        ...

    async def start(self) -> None:
        """Start the workers and wait until every model is ready. Raises `EngineFailed`, leaving nothing behind."""
        ...

    async def supervise(self) -> None:
        """Start again what ended or stopped answering, until `stop`. Returns at once if there is nothing to do."""
        ...

    async def stop(self) -> None:
        """End everything that `start` began. May be called twice, and without `start`."""
        ...
