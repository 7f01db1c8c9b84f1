"""The only module that calls TorchServe: its gRPC inference and management APIs, its tokens and its failures.

In: frames and model names. Out: frames and `ModelStatus`, or the three backend errors. No gRPC type leaves this module.
"""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import grpc
import grpc.aio

from service.core.errors import BackendFault, BackendTimeout, BackendUnavailable, ServiceError
from service.core.reloaded_file import ReloadedFile
from service.engines.base import Loading, ModelStatus
from service.engines.torchserve.channel import CLOSE_SECONDS, OwnedChannel, Users
from service.engines.torchserve.listener import listening_users
from service.engines.torchserve.model_store import ModelStore
from service.engines.torchserve.server_state import STATE_FILE, ServerState
from service.engines.torchserve.worker_processes import end_worker
from service.pb.torchserve import inference_pb2, inference_pb2_grpc, management_pb2, management_pb2_grpc

STATUS_TIMEOUT_SECONDS = 5.0
CHANGE_TIMEOUT_SECONDS = 60.0  # registering reads the whole archive
LOOPBACK = "127.0.0.1"
READY = "READY"  # worker status in TorchServe's describe reply
_ALL_VERSIONS = "all"

_WORKER_EXCEPTION = "org.pytorch.serve.http.InternalServerException"
_WORKER_GONE = (
    "Worker died.",  # RESOURCE_EXHAUSTED: the worker ended while it ran the batch
    "has no worker to serve inference request",  # INTERNAL: no worker, or TorchServe's queue is full
    "Model not found",  # INTERNAL: the catalog has the model, so TorchServe has not loaded it yet
    "does not exist for model",  # INTERNAL: TorchServe has not loaded this version yet
)

Metadata = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class TorchServeEndpoint:
    """Where a TorchServe listens, and where its archives are checked before it loads one.

    `key_file` holds its tokens; None: token authorization is off. Beside the tokens of a TorchServe of our own lies its
    `ServerState`, which knows the present ports.
    """

    inference_address: str
    management_address: str
    key_file: Path | None
    max_message_bytes: int
    store: ModelStore = field(default_factory=lambda: ModelStore(None))


@dataclass(frozen=True, slots=True)
class WorkerReport:
    """A worker as TorchServe describes it. `pid` is that of its process."""

    id: str
    pid: int
    ready: bool


@dataclass(frozen=True, slots=True)
class _Tokens:
    """The authorization metadata of TorchServe's two APIs. Empty where token authorization is off."""

    inference: Metadata = ()
    management: Metadata = ()

    @classmethod
    def load(cls, key_file: Path) -> "_Tokens":
        """Raises `BackendUnavailable`."""
        try:
            keys = json.loads(key_file.read_bytes())
            return cls(
                inference=(("authorization", f"Bearer {keys['inference']['key']}"),),
                management=(("authorization", f"Bearer {keys['management']['key']}"),),
            )
        except (OSError, ValueError, KeyError) as error:
            # Missing or incomplete while TorchServe starts.
            raise BackendUnavailable(f"TorchServe's tokens in {key_file} cannot be read yet: {error!r}") from error


@dataclass(frozen=True, slots=True)
class _Apis:
    """The two APIs of one JVM."""

    endpoint: TorchServeEndpoint
    inference: OwnedChannel
    management: OwnedChannel

    @classmethod
    def at(cls, endpoint: TorchServeEndpoint, *, owned: bool, users: Users) -> "_Apis":
        channel = partial(OwnedChannel, owned=owned, max_message_bytes=endpoint.max_message_bytes, users=users)
        return cls(endpoint, channel(endpoint.inference_address), channel(endpoint.management_address))

    async def connected(self, api: Literal["inference", "management"]) -> Any:
        """Raises `BackendUnavailable`."""
        if api == "inference":
            await self.inference.connect()
            return inference_pb2_grpc.InferenceAPIsServiceStub(self.inference.channel)
        await self.management.connect()
        return management_pb2_grpc.ManagementAPIsServiceStub(self.management.channel)

    async def close(self, grace_seconds: float | None = None) -> None:
        await asyncio.gather(self.inference.close(grace_seconds), self.management.close(grace_seconds))


class TorchServeClient:
    """The `Runner` and `VersionManager` of one TorchServe. Construct inside the event loop that uses it."""

    def __init__(self, endpoint: TorchServeEndpoint, *, users: Users = listening_users) -> None:
        self._store = endpoint.store
        self._endpoint = endpoint
        self._users = users
        key_file = endpoint.key_file
        # TorchServe writes new tokens at each start of the JVM.
        self._token_file = None if key_file is None else ReloadedFile(key_file, load=lambda: _Tokens.load(key_file))
        # Beside the tokens of a TorchServe of our own lies its state. Its ports are others after each start of the JVM.
        run = None if key_file is None else key_file.parent
        self._run = run if run is not None and (run / STATE_FILE).exists() else None
        self._state_file: ReloadedFile[ServerState] | None = None
        if self._run is not None:
            self._state_file = ReloadedFile(self._run / STATE_FILE, load=partial(ServerState.read, self._run))
        self._closing: set[asyncio.Task[None]] = set()
        self._apis = _Apis.at(endpoint, owned=self._run is not None, users=users)

    def _tokens(self) -> _Tokens:
        return _Tokens() if self._token_file is None else self._token_file.value()

    def _state(self) -> ServerState | None:
        """The state of a TorchServe of our own, None for another. Raises `BackendUnavailable`."""
        try:
            return None if self._state_file is None else self._state_file.value()
        except (OSError, ValueError, TypeError) as error:
            raise BackendUnavailable("the state of TorchServe cannot be read: it has stopped") from error

    async def _connected(self, api: Literal["inference", "management"]) -> Any:
        """The stub of an API that is connected. Raises `BackendUnavailable`."""
        state = self._state()
        if state is not None:
            endpoint = replace(
                self._endpoint,
                inference_address=f"{LOOPBACK}:{state.inference_port}",
                management_address=f"{LOOPBACK}:{state.management_port}",
            )
            if endpoint != self._apis.endpoint:
                before, self._apis = self._apis, _Apis.at(endpoint, owned=True, users=self._users)
                closing = asyncio.create_task(before.close(CLOSE_SECONDS))
                self._closing.add(closing)
                closing.add_done_callback(self._closing.discard)
        return await self._apis.connected(api)

    async def infer(self, model: str, frame: bytes, *, timeout_seconds: float, version: str = "") -> bytes:
        """See `service.engines.base.Runner.infer`."""
        request = inference_pb2.PredictionsRequest(model_name=model, model_version=version, input={"frame": frame})
        inference = await self._connected("inference")
        try:
            reply = await inference.Predictions(request, timeout=timeout_seconds, metadata=self._tokens().inference)
        except grpc.aio.AioRpcError as error:
            raise _translated(error, model, timeout_seconds) from error
        prediction: bytes = reply.prediction
        return prediction

    async def end_workers(self, model: str, version: str) -> int:
        """See `service.engines.base.Runner.end_workers`. Ends only workers that TorchServe holds to be ready."""
        if self._run is None:
            return 0
        described = await self._described(model, version)
        workers: list[dict[str, Any]] = described[0]["workers"] if described else []
        ready = [int(worker["pid"]) for worker in workers if worker["status"] == READY]
        return sum(end_worker(pid, self._run) for pid in ready)

    async def model_status(self, model: str, version: str = "") -> ModelStatus:
        """See `service.engines.base.VersionManager.model_status`. A model that is not loaded has no workers."""
        described = await self._described(model, version)
        state = self._state()
        reason = "" if state is None else state.reasons.get(model, "")
        if described:
            return _status(described[0], reason)
        which = f"version {version} of {model}" if version else f"model {model}"
        if state is not None and model in state.held and version in ("", state.held[model]):
            return ModelStatus(0, 0, f"{which} is in quarantine, because it cannot be loaded: {reason}")
        return ModelStatus(ready_workers=0, total_workers=0, detail=f"TorchServe has no {which}")

    async def workers(self, model: str) -> list[WorkerReport]:
        """The workers of the default version. Empty for a model that is not loaded. Raises `BackendUnavailable`."""
        described = await self._described(model, "")
        found = described[0]["workers"] if described else []
        return [WorkerReport(str(each["id"]), int(each["pid"]), each["status"] == READY) for each in found]

    async def versions(self, model: str) -> Mapping[str, ModelStatus]:
        """See `service.engines.base.VersionManager.versions`."""
        described = await self._described(model, _ALL_VERSIONS)
        return {str(version["modelVersion"]): _status(version) for version in described}

    async def load(self, model: str, version: str, loading: Loading) -> None:
        """See `service.engines.base.VersionManager.load`. The version is the one the archive's manifest names."""
        state = self._state()
        if state is not None and state.held.get(model) == version:
            raise BackendUnavailable(f"version {version} of {model} is in quarantine, because it cannot be loaded")
        file = await asyncio.to_thread(self._store.admit, loading.archive, model, version, loading.card)
        request = management_pb2.RegisterModelRequest(
            url=file,
            initial_workers=loading.workers,
            batch_size=1,  # the gateway batches
            response_timeout=loading.response_timeout_seconds,
            startup_timeout=loading.startup_timeout_seconds,
        )
        try:
            found = await self._change("RegisterModel", request, f"register {file}")
        except BackendUnavailable:
            if not await self._described(model, version):  # otherwise another gateway was faster
                raise
        else:
            if not found:
                raise BackendUnavailable(f"TorchServe does not find {file} in its model store")

    async def scale(self, model: str, version: str, workers: int) -> None:
        """See `service.engines.base.VersionManager.scale`."""
        request = management_pb2.ScaleWorkerRequest(
            model_name=model, model_version=version, min_worker=workers, max_worker=workers
        )
        if not await self._change("ScaleWorker", request, f"scale version {version} of {model}"):
            raise BackendUnavailable(f"TorchServe has no version {version} of {model} to scale")

    async def make_default(self, model: str, version: str) -> None:
        """See `service.engines.base.VersionManager.make_default`."""
        request = management_pb2.SetDefaultRequest(model_name=model, model_version=version)
        change = f"make version {version} of {model} the default"
        if not await self._change("SetDefault", request, change):
            raise BackendUnavailable(f"TorchServe has no version {version} of {model} to make the default")

    async def unload(self, model: str, version: str) -> None:
        """See `service.engines.base.VersionManager.unload`."""
        request = management_pb2.UnregisterModelRequest(model_name=model, model_version=version)
        await self._change("UnregisterModel", request, f"unregister version {version} of {model}")
        self._store.remove(model, version)

    async def _described(self, model: str, version: str) -> list[dict[str, Any]]:
        """TorchServe's description of a version, or of all versions. Empty if it is not loaded."""
        management = await self._connected("management")
        try:
            reply = await management.DescribeModel(
                management_pb2.DescribeModelRequest(model_name=model, model_version=version),
                timeout=STATUS_TIMEOUT_SECONDS,
                metadata=self._tokens().management,
            )
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                return []
            raise BackendUnavailable(f"TorchServe does not report on {model}: {_text(error)}") from error
        described: list[dict[str, Any]] = json.loads(reply.msg)
        return described

    async def _change(self, method: str, request: object, what: str) -> bool:
        """Send a change. Returns whether TorchServe has the version that the change is about."""
        management = await self._connected("management")
        try:
            await getattr(management, method)(
                request, timeout=CHANGE_TIMEOUT_SECONDS, metadata=self._tokens().management
            )
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                return False
            # TorchServe 0.12 reports a conflict (registered already; the default version) as UNKNOWN, without details.
            raise BackendUnavailable(f"TorchServe did not {what}: {_text(error)}") from error
        return True

    async def close(self) -> None:
        """Close the connections. Calls on their way are cancelled."""
        await self._apis.close()
        for closing in self._closing:
            closing.cancel()
        await asyncio.gather(*self._closing, return_exceptions=True)


def _status(described: Mapping[str, Any], reason: str = "") -> ModelStatus:
    workers: list[dict[str, Any]] = described["workers"]
    ready = sum(worker["status"] == READY for worker in workers)
    # TorchServe reports every worker that is not ready as UNLOADING, also one that loads for the first time.
    waiting = [worker["id"] for worker in workers if worker["status"] != READY]
    detail = f"worker {', '.join(waiting)} not ready" if waiting else ""
    if detail and reason:
        detail += f"; the last one said: {reason}"
    return ModelStatus(ready_workers=ready, total_workers=len(workers), detail=detail)


def _text(error: grpc.aio.AioRpcError) -> str:
    return f"{error.code().name}: {(error.details() or '').strip()[:1000]}"


def _translated(error: grpc.aio.AioRpcError, model: str, timeout_seconds: float) -> ServiceError:
    """The backend error for a failure of TorchServe 0.12. Its codes are ambiguous, so its texts are compared too.

    Each case was observed on a real TorchServe (tests/integration/test_embedded.py).
    """
    metadata = {"model": model}
    text = _text(error)
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return BackendTimeout(f"{model}: no answer within {timeout_seconds:.3f} s", metadata=metadata)
    if error.code() is grpc.StatusCode.PERMISSION_DENIED:
        return BackendUnavailable(f"{model}: TorchServe refused the gateway's token", metadata=metadata, detail=text)
    # A failure of the worker is UNAVAILABLE too, but its text has this class name; that of a lost connection has not.
    from_worker = _WORKER_EXCEPTION in text
    if any(sign in text for sign in _WORKER_GONE) or (error.code() is grpc.StatusCode.UNAVAILABLE and not from_worker):
        return BackendUnavailable(f"{model}: TorchServe cannot run it now", metadata=metadata, detail=text)
    return BackendFault(f"{model}: TorchServe failed", metadata=metadata, detail=text)
