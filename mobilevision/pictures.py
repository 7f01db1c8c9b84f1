"""Several pictures in one call: requests of single pictures in, `PictureRequest` messages out; answers back likewise.

A picture that failed is a `CallFailed` in the place of its result. Never calls a server.
"""

import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any, Generic, TypeVar

from google.protobuf import duration_pb2

from mobilevision import failures
from mobilevision.failures import CallFailed
from mobilevision.requests import PictureRequest
from mobilevision.results import Classification, Detections, Result, Segmentation
from service.pb.mobilevision.v1 import vision_pb2

Outcome = Result[Any] | CallFailed

Key = TypeVar("Key")

_FIELDS = {
    vision_pb2.ClassifyRequest: "classify",
    vision_pb2.DetectRequest: "detect",
    vision_pb2.SegmentRequest: "segment",
}
_RESULTS: dict[str, type[Result[Any]]] = {
    "classify": Classification,
    "detect": Detections,
    "segment": Segmentation,
}


def wrapped(request: PictureRequest, *, id: str = "") -> vision_pb2.PictureRequest:
    """Return a request as one of several. Raises TypeError for another message."""
    field = _FIELDS.get(type(request))
    if field is None:
        raise TypeError(f"{type(request).__name__} is not a request for a picture")
    asked: dict[str, Any] = {field: request}
    return vision_pb2.PictureRequest(id=id, **asked)


def outcome_of(response: vision_pb2.PictureResponse, *, request_id: str, elapsed_ms: float) -> Outcome:
    """Return the result of one picture, or why it failed. `request_id` is that of the picture."""
    field = response.WhichOneof("outcome")
    if field is None or field == "error":
        return failures.of_picture(response.error)
    timing = response.timing
    return _RESULTS[field](
        reply=getattr(response, field),
        request_id=request_id,
        elapsed_ms=elapsed_ms,
        stage_ms={
            "decode": timing.decode_seconds * 1e3,
            "queue": timing.queue_seconds * 1e3,
            "transport": timing.transport_seconds * 1e3,
            "inference": timing.inference_seconds * 1e3,
            "results": timing.results_seconds * 1e3,
        },
        batch_size=timing.batch_size or None,
    )


class StreamRequests(Generic[Key]):
    """The requests of one stream, as gRPC takes them: no more are without an answer than the server allows.

    gRPC iterates over it in a thread of its own. So the memory of a stream is bounded by the server's credit, however
    many `requests` there are. `timeout_seconds` is the deadline of each picture.
    """

    def __init__(self, requests: Iterable[tuple[Key, PictureRequest]], *, timeout_seconds: float | None) -> None:
        self._requests = iter(requests)
        self._timeout = None if timeout_seconds is None else duration_pb2.Duration()
        if self._timeout is not None and timeout_seconds is not None:
            self._timeout.FromNanoseconds(int(timeout_seconds * 1e9))
        self._credit = threading.Semaphore(0)
        self._closed = False
        self._sent: dict[str, tuple[Key, float]] = {}  # by our id: the caller's key, and when it was sent
        self._next = 0
        self.failure: BaseException | None = None  # raised by `requests`

    @property
    def unanswered(self) -> int:
        """Pictures that were sent and have no answer yet."""
        return len(self._sent)

    def allow(self, count: int) -> None:
        """Let `count` more pictures be sent."""
        self._credit.release(count)

    def close(self) -> None:
        """Send no more."""
        self._closed = True
        self._credit.release()

    def __iter__(self) -> Iterator[vision_pb2.StreamRequest]:
        return self

    def __next__(self) -> vision_pb2.StreamRequest:
        self._credit.acquire()
        if self._closed:
            raise StopIteration
        try:
            key, request = next(self._requests)
            number = str(self._next)
            message = vision_pb2.StreamRequest(picture=wrapped(request, id=number), timeout=self._timeout)
        except StopIteration:
            raise
        except BaseException as error:
            self.failure = error
            raise StopIteration from error
        self._next += 1
        self._sent[number] = key, time.perf_counter()
        return message

    def answered(self, response: vision_pb2.PictureResponse, *, request_id: str) -> tuple[Key, Outcome]:
        """Return the key of a picture and its outcome. `request_id` is that of the stream."""
        key, sent_at = self._sent.pop(response.id)
        elapsed_ms = (time.perf_counter() - sent_at) * 1e3
        outcome = outcome_of(response, request_id=f"{request_id}/{response.id}", elapsed_ms=elapsed_ms)
        self.allow(1)
        return key, outcome
