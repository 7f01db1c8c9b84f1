"""The only module that speaks TorchServe: its gRPC inference and management APIs, its tokens and its failures.

In: frames and model names. Out: frames and `ModelStatus`, or the three backend errors; no gRPC type leaves here.
"""

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from service.backend import Loading, ModelStatus
from service.errors import BackendFault, BackendTimeout, BackendUnavailable, ServiceError
from service.pb.torchserve import inference_pb2, inference_pb2_grpc, management_pb2, management_pb2_grpc

STATUS_TIMEOUT_SECONDS = 5.0
CHANGE_TIMEOUT_SECONDS = 60.0  # registering reads the whole archive
READY = "READY"  # worker status in TorchServe's describe reply
_ALL_VERSIONS = "all"

_WORKER_EXCEPTION = "org.pytorch.serve.http.InternalServerException"
_WORKER_GONE = (
    "Worker died.",  # RESOURCE_EXHAUSTED: the worker ended with the batch in hand
    "has no worker to serve inference request",  # INTERNAL: no worker, or TorchServe's queue is full
    "Model not found",  # INTERNAL: the catalog knows the model, so TorchServe has not loaded it yet
    "does not exist for model",  # INTERNAL: nor this version of it
)

Metadata = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class TorchServeEndpoint:
    """Where a TorchServe listens. `key_file` is its key_file.json, or None where token authorization is off."""

    inference_address: str
    management_address: str
    key_file: Path | None
    max_message_bytes: int


class _Tokens:
    """TorchServe's tokens, read again whenever it wrote new ones (each start of the JVM does)."""

    def __init__(self, key_file: Path | None) -> None:
        self._key_file = key_file
        self._modified_ns = -1
        self._inference: Metadata = ()
        self._management: Metadata = ()

    def inference(self) -> Metadata:
        self._refresh()
        return self._inference

    def management(self) -> Metadata:
        self._refresh()
        return self._management

    def _refresh(self) -> None:
        if self._key_file is None:
            return
        try:
            modified_ns = self._key_file.stat().st_mtime_ns
            if modified_ns == self._modified_ns:
                return
            keys = json.loads(self._key_file.read_bytes())
            self._inference = (("authorization", f"Bearer {keys['inference']['key']}"),)
            self._management = (("authorization", f"Bearer {keys['management']['key']}"),)
            self._modified_ns = modified_ns
        except (OSError, ValueError, KeyError) as error:
            # Absent or half written while TorchServe starts.
            raise BackendUnavailable(
                f"TorchServe's tokens in {self._key_file} cannot be read yet: {error!r}"
            ) from error


class TorchServeBackend:
    """A `Backend` over one TorchServe. Make it inside the event loop that uses it."""

    def __init__(self, endpoint: TorchServeEndpoint) -> None:
        self._tokens = _Tokens(endpoint.key_file)
        options = (
            ("grpc.max_send_message_length", endpoint.max_message_bytes),
            ("grpc.max_receive_message_length", endpoint.max_message_bytes),
            # A restarted TorchServe is found again within a second; gRPC's default grows to two minutes.
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 1000),
            # Loopback or one pod: a proxy of the environment must not see this.
            ("grpc.enable_http_proxy", 0),
        )
        self._inference_channel = grpc.aio.insecure_channel(endpoint.inference_address, options=options)
        self._management_channel = grpc.aio.insecure_channel(endpoint.management_address, options=options)
        self._inference = inference_pb2_grpc.InferenceAPIsServiceStub(self._inference_channel)
        self._management = management_pb2_grpc.ManagementAPIsServiceStub(self._management_channel)

    async def infer(self, model: str, frame: bytes, *, timeout_seconds: float, version: str = "") -> bytes:
        """See `service.backend.Backend.infer`."""
        request = inference_pb2.PredictionsRequest(model_name=model, model_version=version, input={"frame": frame})
        try:
            reply = await self._inference.Predictions(
                request, timeout=timeout_seconds, metadata=self._tokens.inference()
            )
        except grpc.aio.AioRpcError as error:
            raise _translated(error, model, timeout_seconds) from error
        return reply.prediction

    async def model_status(self, model: str, version: str = "") -> ModelStatus:
        """See `service.backend.Backend.model_status`. A model TorchServe does not know has no workers."""
        described = await self._described(model, version)
        if not described:
            which = f"version {version} of {model}" if version else f"model {model}"
            return ModelStatus(ready_workers=0, total_workers=0, detail=f"TorchServe has no {which}")
        return _status(described[0])

    async def versions(self, model: str) -> Mapping[str, ModelStatus]:
        """See `service.backend.Backend.versions`."""
        described = await self._described(model, _ALL_VERSIONS)
        return {str(version["modelVersion"]): _status(version) for version in described}

    async def load(self, model: str, version: str, loading: Loading) -> None:
        """See `service.backend.Backend.load`. The version is the one the archive's manifest names."""
        request = management_pb2.RegisterModelRequest(
            url=loading.archive,
            initial_workers=loading.workers,
            batch_size=1,  # the gateway batches
            response_timeout=loading.response_timeout_seconds,
            startup_timeout=loading.startup_timeout_seconds,
        )
        try:
            found = await self._change(self._management.RegisterModel, request, f"register {loading.archive}")
        except BackendUnavailable:
            if not await self._described(model, version):  # else another gateway was faster
                raise
        else:
            if not found:
                raise BackendUnavailable(f"TorchServe does not find {loading.archive} in its model store")

    async def scale(self, model: str, version: str, workers: int) -> None:
        """See `service.backend.Backend.scale`."""
        request = management_pb2.ScaleWorkerRequest(
            model_name=model, model_version=version, min_worker=workers, max_worker=workers
        )
        if not await self._change(self._management.ScaleWorker, request, f"scale version {version} of {model}"):
            raise BackendUnavailable(f"TorchServe has no version {version} of {model} to scale")

    async def make_default(self, model: str, version: str) -> None:
        """See `service.backend.Backend.make_default`."""
        request = management_pb2.SetDefaultRequest(model_name=model, model_version=version)
        if not await self._change(self._management.SetDefault, request, f"prefer version {version} of {model}"):
            raise BackendUnavailable(f"TorchServe has no version {version} of {model} to prefer")

    async def unload(self, model: str, version: str) -> None:
        """See `service.backend.Backend.unload`."""
        request = management_pb2.UnregisterModelRequest(model_name=model, model_version=version)
        await self._change(self._management.UnregisterModel, request, f"unregister version {version} of {model}")

    async def _described(self, model: str, version: str) -> list[dict[str, Any]]:
        """What TorchServe says of a version, or of all; nothing where it is not there."""
        try:
            reply = await self._management.DescribeModel(
                management_pb2.DescribeModelRequest(model_name=model, model_version=version),
                timeout=STATUS_TIMEOUT_SECONDS,
                metadata=self._tokens.management(),
            )
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                return []
            raise BackendUnavailable(f"TorchServe does not report on {model}: {_text(error)}") from error
        described: list[dict[str, Any]] = json.loads(reply.msg)
        return described

    async def _change(self, call: Callable[..., Awaitable[object]], request: object, what: str) -> bool:
        """Whether what it was about is there."""
        try:
            await call(request, timeout=CHANGE_TIMEOUT_SECONDS, metadata=self._tokens.management())
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                return False
            # TorchServe 0.12 tells a conflict (registered already; the default version) as UNKNOWN without a word.
            raise BackendUnavailable(f"TorchServe did not {what}: {_text(error)}") from error
        return True

    async def close(self) -> None:
        """Close connections; calls in flight are cancelled."""
        await self._inference_channel.close()
        await self._management_channel.close()


def _status(described: Mapping[str, Any]) -> ModelStatus:
    workers: list[dict[str, Any]] = described["workers"]
    ready = sum(worker["status"] == READY for worker in workers)
    # Whatever is not ready TorchServe calls UNLOADING, a worker that loads for the first time too.
    waiting = [worker["id"] for worker in workers if worker["status"] != READY]
    detail = f"worker {', '.join(waiting)} not ready" if waiting else ""
    return ModelStatus(ready_workers=ready, total_workers=len(workers), detail=detail)


def _text(error: grpc.aio.AioRpcError) -> str:
    return f"{error.code().name}: {(error.details() or '').strip()[:1000]}"


def _translated(error: grpc.aio.AioRpcError, model: str, timeout_seconds: float) -> ServiceError:
    """Tell TorchServe 0.12's failures apart; its codes alone do not (each was tried on a real one)."""
    metadata = {"model": model}
    text = _text(error)
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return BackendTimeout(f"{model}: no answer within {timeout_seconds:.3f} s", metadata=metadata)
    if error.code() is grpc.StatusCode.PERMISSION_DENIED:
        return BackendUnavailable(f"{model}: TorchServe refused the gateway's token: {text}", metadata=metadata)
    # The worker's own failures end with this class name, and come as UNAVAILABLE too; a lost connection never does.
    from_worker = _WORKER_EXCEPTION in text
    if any(sign in text for sign in _WORKER_GONE) or (error.code() is grpc.StatusCode.UNAVAILABLE and not from_worker):
        return BackendUnavailable(f"{model}: TorchServe cannot run it now: {text}", metadata=metadata)
    return BackendFault(f"{model}: TorchServe failed: {text}", metadata=metadata)
