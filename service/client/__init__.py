"""The Python client: encoded pictures in (bytes or paths), protobuf replies with their timings out.

    with VisionClient("localhost:50051") as client:
        result = client.classify(Path("cat.jpg"), top_k=3)
        print(result.reply.labels, result.stage_ms, result.batch_size)

Synchronous and safe to share between threads. A call that fails raises `CallFailed`, with the server's reason. It never
decodes pictures and never repeats a call; whether repeating helps, `CallFailed.retry_after_seconds` tells.
"""

import json
import re
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2

from service.client.tracing import client_span
from service.errors import STATUS_DETAILS_KEY
from service.pb.mobilevision.v1 import vision_pb2, vision_pb2_grpc

DEFAULT_TARGET = "localhost:50051"
DEFAULT_TIMEOUT_SECONDS = 30.0
# gRPC's own limit is 4 MiB each way; the server has its own for pictures and says so when it refuses one.
MAX_MESSAGE_BYTES = 2**30
# Where the name stands for several servers (a headless Service), calls are spread over all of them but those that say
# they are about to stop. A server that does not tell of its health is taken for a good one.
SERVICE_CONFIG = json.dumps(
    {
        "loadBalancingConfig": [{"round_robin": {}}],
        "healthCheckConfig": {"serviceName": "mobilevision.v1.VisionService"},
    }
)
# gRPC asks the name again when a server is lost, but not within 30 s of the last time unless told: a rolling update can
# replace all servers in less.
MIN_SECONDS_BETWEEN_LOOKUPS = 1

Reply = TypeVar("Reply", bound=Message)

_TIMING = re.compile(r"([\w-]+)\s*;\s*dur\s*=\s*([0-9.]+)")


@dataclass(frozen=True, slots=True)
class Result(Generic[Reply]):
    """A reply and what the server tells about the call.

    `stage_ms`: milliseconds the server spent per stage (decode, queue, transport, inference, results).
    `batch_size`: pictures that shared the batch; None where the call was no inference.
    `elapsed_ms`: the whole call as seen from here.
    """

    reply: Reply
    request_id: str
    elapsed_ms: float
    stage_ms: Mapping[str, float] = field(default_factory=dict)
    batch_size: int | None = None


class CallFailed(Exception):
    """A call that was not answered.

    `reason` is a name of the proto's `ErrorReason` without its prefix, empty when the failure did not come from the
    server's own code (nobody listens, the connection broke). `metadata` is what the proto states for the reason.
    `retry_after_seconds` is set where repeating the call can help.
    """

    def __init__(
        self,
        *,
        code: grpc.StatusCode,
        message: str,
        reason: str = "",
        metadata: Mapping[str, str] | None = None,
        retry_after_seconds: float | None = None,
        request_id: str = "",
    ) -> None:
        super().__init__(f"{code.name}{f' {reason}' if reason else ''}: {message}")
        self.code = code
        self.message = message
        self.reason = reason
        self.metadata = dict(metadata or {})
        self.retry_after_seconds = retry_after_seconds
        self.request_id = request_id


class VisionClient:
    """A connection to one server. Close it, or use it as a context manager.

    `timeout_seconds` is the deadline of every call that states none. `wait_for_ready` lets calls wait, within that
    deadline, for a server that is not there yet; otherwise they fail at once. `credentials` makes the connection TLS.
    """

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
        wait_for_ready: bool = False,
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        self.target = target
        self._timeout_seconds = timeout_seconds
        self._wait_for_ready = wait_for_ready
        options = [
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.service_config", SERVICE_CONFIG),
            ("grpc.dns_min_time_between_resolutions_ms", MIN_SECONDS_BETWEEN_LOOKUPS * 1000),
        ]
        if credentials is None:
            self._channel = grpc.insecure_channel(target, options)
        else:
            self._channel = grpc.secure_channel(target, credentials, options)
        self._stub = vision_pb2_grpc.VisionServiceStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; calls in work fail."""
        self._channel.close()

    def classify(
        self,
        image: bytes | Path,
        *,
        model: str = "",
        top_k: int | None = None,
        priority: vision_pb2.Priority.ValueType = vision_pb2.PRIORITY_UNSPECIFIED,
        timeout_seconds: float | None = None,
        request_id: str | None = None,
    ) -> Result[vision_pb2.ClassifyResponse]:
        """Labels for the whole picture. Options left out take the server's defaults. Raises `CallFailed`."""
        request = vision_pb2.ClassifyRequest(model=model, image=_bytes_of(image), top_k=top_k, priority=priority)
        return self._call(self._stub.Classify, request, timeout_seconds, request_id)

    def detect(
        self,
        image: bytes | Path,
        *,
        model: str = "",
        score_threshold: float | None = None,
        max_detections: int | None = None,
        priority: vision_pb2.Priority.ValueType = vision_pb2.PRIORITY_UNSPECIFIED,
        timeout_seconds: float | None = None,
        request_id: str | None = None,
    ) -> Result[vision_pb2.DetectResponse]:
        """Boxes in the picture's pixels. Options left out take the server's defaults. Raises `CallFailed`."""
        request = vision_pb2.DetectRequest(
            model=model,
            image=_bytes_of(image),
            score_threshold=score_threshold,
            max_detections=max_detections,
            priority=priority,
        )
        return self._call(self._stub.Detect, request, timeout_seconds, request_id)

    def segment(
        self,
        image: bytes | Path,
        *,
        model: str = "",
        mask_encoding: vision_pb2.MaskEncoding.ValueType = vision_pb2.MASK_ENCODING_UNSPECIFIED,
        include_confidence: bool = False,
        priority: vision_pb2.Priority.ValueType = vision_pb2.PRIORITY_UNSPECIFIED,
        timeout_seconds: float | None = None,
        request_id: str | None = None,
    ) -> Result[vision_pb2.SegmentResponse]:
        """A class for every pixel. Options left out take the server's defaults. Raises `CallFailed`."""
        request = vision_pb2.SegmentRequest(
            model=model,
            image=_bytes_of(image),
            mask_encoding=mask_encoding,
            include_confidence=include_confidence,
            priority=priority,
        )
        return self._call(self._stub.Segment, request, timeout_seconds, request_id)

    def list_models(
        self,
        *,
        task: vision_pb2.Task.ValueType = vision_pb2.TASK_UNSPECIFIED,
        timeout_seconds: float | None = None,
        request_id: str | None = None,
    ) -> Result[vision_pb2.ListModelsResponse]:
        """The models served, without their labels. Raises `CallFailed`."""
        return self._call(self._stub.ListModels, vision_pb2.ListModelsRequest(task=task), timeout_seconds, request_id)

    def get_model(
        self, name: str, *, timeout_seconds: float | None = None, request_id: str | None = None
    ) -> Result[vision_pb2.GetModelResponse]:
        """One model with its labels. Raises `CallFailed`."""
        return self._call(self._stub.GetModel, vision_pb2.GetModelRequest(name=name), timeout_seconds, request_id)

    def _call(
        self,
        method: "grpc.UnaryUnaryMultiCallable[Any, Reply]",  # generic in its stubs only
        request: Message,
        timeout_seconds: float | None,
        request_id: str | None,
    ) -> Result[Reply]:
        sent_id = request_id or uuid.uuid4().hex
        started = time.perf_counter()
        with client_span(request.DESCRIPTOR.name.removesuffix("Request")) as trace_context:
            try:
                reply, call = method.with_call(
                    request,
                    timeout=self._timeout_seconds if timeout_seconds is None else timeout_seconds,
                    metadata=(("x-request-id", sent_id), *trace_context),
                    wait_for_ready=self._wait_for_ready,
                )
            except grpc.RpcError as error:
                raise _failure(error, sent_id) from error
        trailers = _text_of(call.trailing_metadata)
        batch_size = trailers.get("mobilevision-batch-size", "")
        return Result(
            reply=reply,
            request_id=trailers.get("x-request-id", sent_id),
            elapsed_ms=(time.perf_counter() - started) * 1e3,
            stage_ms={name: float(spent) for name, spent in _TIMING.findall(trailers.get("server-timing", ""))},
            batch_size=int(batch_size) if batch_size.isdecimal() else None,
        )


def _bytes_of(image: bytes | Path) -> bytes:
    return image.read_bytes() if isinstance(image, Path) else image


def _text_of(metadata: Callable[[], Any]) -> dict[str, str]:
    return {key: value for key, value in metadata() or () if isinstance(value, str)}


def _failure(error: grpc.RpcError, sent_id: str) -> CallFailed:
    """Unpack what gRPC raises: the status in the trailers where our server sent one, else gRPC's own words."""
    assert isinstance(error, grpc.Call)  # noqa: S101 - every error of a blocking call is one as well
    code: grpc.StatusCode = error.code()
    trailers = dict(error.trailing_metadata() or ())
    request_id = trailers.get("x-request-id", sent_id)
    status = status_pb2.Status()
    try:
        status.ParseFromString(trailers.get(STATUS_DETAILS_KEY, b""))
    except DecodeError:  # a proxy's, perhaps
        status.Clear()
    info = error_details_pb2.ErrorInfo()
    retry = error_details_pb2.RetryInfo()
    retry_after_seconds = None
    for detail in status.details:
        if detail.Is(info.DESCRIPTOR):
            detail.Unpack(info)
        elif detail.Is(retry.DESCRIPTOR):
            detail.Unpack(retry)
            retry_after_seconds = retry.retry_delay.ToNanoseconds() / 1e9
    return CallFailed(
        code=code,
        message=status.message or error.details() or "no message",
        reason=info.reason,
        metadata=dict(info.metadata),
        retry_after_seconds=retry_after_seconds,
        request_id=request_id if isinstance(request_id, str) else sent_id,
    )
