"""The Python client: a picture in (its encoded bytes, or the path of its file), a typed result out.

    with VisionClient("localhost:50051") as client:
        result = client.classify("cat.jpg", top_k=3)
        print(result.labels, result.stage_ms, result.batch_size)
        for outcome in client.classify_batch(["cat.jpg", "dog.jpg"]):
            print(outcome if isinstance(outcome, CallFailed) else outcome.labels)

The client is synchronous, and threads can share one. A call that fails raises `CallFailed` with the server's reason.
The client never decodes pictures and never repeats a call. `CallFailed.retry_after_seconds` is set where repeating can
help. An API key is sent over TLS, or to this machine.
"""

import ipaddress
import json
import re
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, Self, TypeVar, cast

import grpc
from google.protobuf.message import Message

from mobilevision import failures
from mobilevision.failures import CallFailed
from mobilevision.pictures import Key, Outcome, StreamRequests, outcome_of, wrapped
from mobilevision.requests import Picture, PictureRequest, classify_request, detect_request, segment_request
from mobilevision.results import Classification, Detections, Result, Segmentation
from mobilevision.tracing import client_span
from service.pb.mobilevision.v1 import vision_pb2, vision_pb2_grpc

DEFAULT_TARGET = "localhost:50051"
DEFAULT_TIMEOUT_SECONDS = 30.0
# gRPC's default limit is 4 MiB in each direction. The server has a limit of its own for pictures, and names it when it
# refuses a picture.
MAX_MESSAGE_BYTES = 2**30
# The target may be a name that resolves to several servers (a headless Service in Kubernetes). Calls are spread over
# all servers that report SERVING. A server without a health service counts as healthy.
SERVICE_CONFIG = json.dumps(
    {
        "loadBalancingConfig": [{"round_robin": {}}],
        "healthCheckConfig": {"serviceName": "mobilevision.v1.VisionService"},
    }
)
# gRPC resolves the name again when a server is lost, by default at most once in 30 s. A rolling update can replace all
# servers in less time.
MIN_SECONDS_BETWEEN_LOOKUPS = 1

Answer = TypeVar("Answer", bound=Result[Any])

_TIMING = re.compile(r"([\w-]+)\s*;\s*dur\s*=\s*([0-9.]+)")
_HINTED_MODEL = re.compile(r"[\x21-\x7e]{0,100}")  # what fits into metadata

__all__ = ["CallFailed", "Picture", "VisionClient"]


class VisionClient:
    """A connection to one server. Close it, or use it as a context manager.

    `target` is HOST:PORT. `timeout_seconds` is the deadline of every call that names no deadline. With `wait_for_ready`
    a call waits for a server that does not listen yet, until the deadline; otherwise the call fails at once. With
    `credentials` the connection uses TLS. `api_key` (an API key or a token) goes with every call; ValueError is raised
    where it would travel to another machine without TLS, unless `allow_plaintext_key`.

    Every call raises `CallFailed`. The calls that send a picture raise OSError where its file cannot be read. Options
    that are None or left out take the server's defaults.
    """

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
        wait_for_ready: bool = False,
        credentials: grpc.ChannelCredentials | None = None,
        api_key: str | None = None,
        allow_plaintext_key: bool = False,
    ) -> None:
        if api_key is not None and not re.fullmatch(r"[\x21-\x7e]+", api_key):
            raise ValueError("the API key is empty or has blanks or characters outside ASCII")
        if api_key is not None and credentials is None and not (allow_plaintext_key or _is_this_machine(target)):
            raise ValueError(f"the API key would travel to {target} in plain text: the connection has no TLS")
        self.target = target
        self._authorization = () if api_key is None else (("authorization", f"Bearer {api_key}"),)
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
        """Close the connection. Calls that are not answered yet fail."""
        self._channel.close()

    def classify(
        self,
        image: Picture,
        *,
        model: str = "",
        top_k: int | None = None,
        priority: vision_pb2.Priority.ValueType = vision_pb2.PRIORITY_UNSPECIFIED,
        timeout_seconds: float | None = None,
        request_id: str | None = None,
    ) -> Classification:
        """The best labels for the whole picture: at most `top_k`, 1..100. Raises `CallFailed`, OSError."""
        request = classify_request(image, model=model, top_k=top_k, priority=priority)
        return self._call(self._stub.Classify, Classification, request, timeout_seconds, request_id)

    def detect(
        self,
        image: Picture,
        *,
        model: str = "",
        score_threshold: float | None = None,
        max_detections: int | None = None,
        priority: vision_pb2.Priority.ValueType = vision_pb2.PRIORITY_UNSPECIFIED,
        timeout_seconds: float | None = None,
        request_id: str | None = None,
    ) -> Detections:
        """Boxes in pixels of the upright picture: scores from `score_threshold` (0..1), at most `max_detections`
        (1..200).

        Raises `CallFailed`, OSError.
        """
        request = detect_request(
            image, model=model, score_threshold=score_threshold, max_detections=max_detections, priority=priority
        )
        return self._call(self._stub.Detect, Detections, request, timeout_seconds, request_id)

    def segment(
        self,
        image: Picture,
        *,
        model: str = "",
        mask_encoding: vision_pb2.MaskEncoding.ValueType = vision_pb2.MASK_ENCODING_UNSPECIFIED,
        include_confidence: bool = False,
        priority: vision_pb2.Priority.ValueType = vision_pb2.PRIORITY_UNSPECIFIED,
        timeout_seconds: float | None = None,
        request_id: str | None = None,
    ) -> Segmentation:
        """The class of every pixel of the upright picture, as a mask. Raises `CallFailed`, OSError."""
        request = segment_request(
            image, model=model, mask_encoding=mask_encoding, include_confidence=include_confidence, priority=priority
        )
        return self._call(self._stub.Segment, Segmentation, request, timeout_seconds, request_id)

    def classify_batch(
        self,
        images: Iterable[Picture],
        *,
        model: str = "",
        top_k: int | None = None,
        priority: vision_pb2.Priority.ValueType = vision_pb2.PRIORITY_UNSPECIFIED,
        timeout_seconds: float | None = None,
        request_id: str | None = None,
    ) -> list[Classification | CallFailed]:
        """The best labels for each of several pictures, in one call. See `batch`."""
        requests = [classify_request(image, model=model, top_k=top_k, priority=priority) for image in images]
        outcomes = self.batch(requests, timeout_seconds=timeout_seconds, request_id=request_id)
        return cast(list[Classification | CallFailed], outcomes)

    def detect_batch(
        self,
        images: Iterable[Picture],
        *,
        model: str = "",
        score_threshold: float | None = None,
        max_detections: int | None = None,
        priority: vision_pb2.Priority.ValueType = vision_pb2.PRIORITY_UNSPECIFIED,
        timeout_seconds: float | None = None,
        request_id: str | None = None,
    ) -> list[Detections | CallFailed]:
        """Boxes in each of several pictures, in one call. See `batch`."""
        requests = [
            detect_request(
                image, model=model, score_threshold=score_threshold, max_detections=max_detections, priority=priority
            )
            for image in images
        ]
        outcomes = self.batch(requests, timeout_seconds=timeout_seconds, request_id=request_id)
        return cast(list[Detections | CallFailed], outcomes)

    def segment_batch(
        self,
        images: Iterable[Picture],
        *,
        model: str = "",
        mask_encoding: vision_pb2.MaskEncoding.ValueType = vision_pb2.MASK_ENCODING_UNSPECIFIED,
        include_confidence: bool = False,
        priority: vision_pb2.Priority.ValueType = vision_pb2.PRIORITY_UNSPECIFIED,
        timeout_seconds: float | None = None,
        request_id: str | None = None,
    ) -> list[Segmentation | CallFailed]:
        """The class of every pixel of each of several pictures, in one call. See `batch`."""
        requests = [
            segment_request(
                image,
                model=model,
                mask_encoding=mask_encoding,
                include_confidence=include_confidence,
                priority=priority,
            )
            for image in images
        ]
        outcomes = self.batch(requests, timeout_seconds=timeout_seconds, request_id=request_id)
        return cast(list[Segmentation | CallFailed], outcomes)

    def batch(
        self,
        requests: Iterable[PictureRequest],
        *,
        timeout_seconds: float | None = None,
        request_id: str | None = None,
    ) -> list[Outcome]:
        """Send several requests for one picture each in one call: the outcomes, in their order.

        A picture that failed has a `CallFailed` in its place. `mobilevision.requests` makes requests. The server bounds
        how many pictures and bytes one call may have. Raises `CallFailed` if the whole call failed.
        """
        wanted = vision_pb2.BatchRequest(pictures=[wrapped(request) for request in requests])
        whole = self._call(self._stub.Batch, Result, wanted, timeout_seconds, request_id)
        return [
            outcome_of(picture, request_id=f"{whole.request_id}/{place}", elapsed_ms=whole.elapsed_ms)
            for place, picture in enumerate(whole.reply.pictures)
        ]

    def stream(
        self,
        requests: Iterable[tuple[Key, PictureRequest]],
        *,
        picture_timeout_seconds: float | None = None,
        timeout_seconds: float | None = None,
        request_id: str | None = None,
    ) -> Iterator[tuple[Key, Outcome]]:
        """Send any number of requests in one call: the outcomes as they are ready, each with the key of its request.

        `requests` is read in another thread, and only as fast as the server answers, so the memory does not grow with
        their number. `picture_timeout_seconds` is the deadline of each picture, as for a single call if it is None;
        `timeout_seconds` that of the stream, None: none. Closing the iterator ends the call. Raises `CallFailed` if the
        stream fails, and what `requests` raises.
        """
        sent_id = request_id or uuid.uuid4().hex
        seconds = self._timeout_seconds if picture_timeout_seconds is None else picture_timeout_seconds
        sender = StreamRequests(requests, timeout_seconds=seconds)
        call = self._stub.Stream(
            sender,
            timeout=timeout_seconds,
            metadata=(("x-request-id", sent_id), *self._authorization),
            wait_for_ready=self._wait_for_ready,
        )
        try:
            for response in call:
                if response.HasField("credit"):
                    sender.allow(response.credit.pictures)
                else:
                    yield sender.answered(response.picture, request_id=sent_id)
        except grpc.RpcError as error:
            raise failures.of_call(error, sent_id) from error
        finally:
            sender.close()
            call.cancel()
        if sender.failure is not None:
            raise sender.failure

    def send(
        self, request: Message, *, timeout_seconds: float | None = None, request_id: str | None = None
    ) -> Result[Any]:
        """Send a `ClassifyRequest`, `DetectRequest` or `SegmentRequest` as it is. Raises `CallFailed`."""
        method = getattr(self._stub, request.DESCRIPTOR.name.removesuffix("Request"))
        return self._call(method, Result, request, timeout_seconds, request_id)

    def list_models(
        self,
        *,
        task: vision_pb2.Task.ValueType = vision_pb2.TASK_UNSPECIFIED,
        timeout_seconds: float | None = None,
        request_id: str | None = None,
    ) -> Result[vision_pb2.ListModelsResponse]:
        """The served models, without their labels; only those of one `task` where it is given.

        `engine`, `dtype` and `device` of each say what computes it now.

        Raises `CallFailed`.
        """
        request = vision_pb2.ListModelsRequest(task=task)
        return self._call(self._stub.ListModels, Result, request, timeout_seconds, request_id)

    def get_model(
        self, name: str, *, timeout_seconds: float | None = None, request_id: str | None = None
    ) -> Result[vision_pb2.GetModelResponse]:
        """One served model with its labels. Raises `CallFailed`."""
        request = vision_pb2.GetModelRequest(name=name)
        return self._call(self._stub.GetModel, Result, request, timeout_seconds, request_id)

    def _call(
        self,
        method: "grpc.UnaryUnaryMultiCallable[Any, Any]",  # a generic class in the type stubs only
        kind: Callable[..., Answer],
        request: Message,
        timeout_seconds: float | None,
        request_id: str | None,
    ) -> Answer:
        sent_id = request_id or uuid.uuid4().hex
        started = time.perf_counter()
        with client_span(request.DESCRIPTOR.name.removesuffix("Request")) as trace_context:
            try:
                reply, call = method.with_call(
                    request,
                    timeout=self._timeout_seconds if timeout_seconds is None else timeout_seconds,
                    metadata=(("x-request-id", sent_id), *_hints(request), *self._authorization, *trace_context),
                    wait_for_ready=self._wait_for_ready,
                )
            except grpc.RpcError as error:
                raise failures.of_call(error, sent_id) from error
        trailers = _text_of(call.trailing_metadata)
        batch_size = trailers.get("mobilevision-batch-size", "")
        return kind(
            reply=reply,
            request_id=trailers.get("x-request-id", sent_id),
            elapsed_ms=(time.perf_counter() - started) * 1e3,
            stage_ms={name: float(spent) for name, spent in _TIMING.findall(trailers.get("server-timing", ""))},
            batch_size=int(batch_size) if batch_size.isdecimal() else None,
        )


def _is_this_machine(target: str) -> bool:
    """Whether all addresses of a gRPC target are loopback addresses or sockets of this machine. A name may be any."""
    scheme, _, addresses = target.partition(":")
    if scheme in {"unix", "unix-abstract"}:
        return True
    if scheme not in {"ipv4", "ipv6"}:
        addresses = target.removeprefix("dns:").lstrip("/")
    return all(_is_loopback(address) for address in addresses.split(","))


def _is_loopback(address: str) -> bool:
    host = address if address.count(":") > 1 and "[" not in address else address.rpartition(":")[0] or address
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _hints(request: Message) -> tuple[tuple[str, str], ...]:
    """Return what a request for a picture asks, as metadata: a server that is overloaded does not read the picture."""
    if not isinstance(request, PictureRequest) or not _HINTED_MODEL.fullmatch(request.model):
        return ()
    model = ("mobilevision-model", request.model)
    if request.priority == vision_pb2.PRIORITY_BATCH:
        return (model, ("mobilevision-priority", "batch"))
    return (model,)


def _text_of(metadata: Callable[[], Any]) -> dict[str, str]:
    return {key: value for key, value in metadata() or () if isinstance(value, str)}
