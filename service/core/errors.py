"""Every way a request can fail, as one closed tree of exceptions.

    ServiceError
    ├── ClientError                      the caller's fault: repeating the call unchanged cannot help
    │   ├── InvalidImage                 INVALID_ARGUMENT
    │   │   ├── ImageEmpty
    │   │   ├── ImageTooManyBytes
    │   │   ├── ImageTooManyPixels
    │   │   ├── ImageFormatUnsupported
    │   │   ├── ImageTruncated
    │   │   └── ImageCorrupt
    │   ├── FieldOutOfRange              INVALID_ARGUMENT
    │   ├── RequestMalformed             INVALID_ARGUMENT
    │   ├── TaskMismatch                 INVALID_ARGUMENT
    │   ├── ModelNotFound                NOT_FOUND
    │   ├── NoDefaultModel               NOT_FOUND
    │   ├── Unauthenticated              UNAUTHENTICATED
    │   ├── PermissionDenied             PERMISSION_DENIED
    │   ├── DeadlineExceeded             DEADLINE_EXCEEDED
    │   └── Cancelled                    CANCELLED
    ├── CapacityError                    RESOURCE_EXHAUSTED: more work than the server can take
    │   ├── QueueFull
    │   ├── DeadlineUnreachable
    │   ├── TooManyRequests
    │   └── RateLimited
    ├── UnavailableError                 UNAVAILABLE: a part of this server is down, another replica may answer
    │   ├── ModelNotReady
    │   ├── BackendUnavailable
    │   ├── BackendTimeout
    │   └── ShuttingDown
    └── InternalError                    INTERNAL: a defect of this server or of the model
        ├── BackendFault
        └── Bug

Each class has an `ErrorCode`, and each leaf a `reason`: the name of the proto's `ErrorReason` without its prefix. The
front maps both to its protocol (`service.frontends.grpc.status`). This module knows no protocol.

Exceptions of other libraries are translated where they are raised: Pillow's in `service.preprocess`, gRPC's and
TorchServe's in `service.engines`. A broken invariant is not caught where it is found: `service.frontends.call` reports
any other exception as `Bug` and logs the traceback.
"""

from collections.abc import Mapping
from enum import IntEnum
from typing import ClassVar


class ErrorCode(IntEnum):
    """What kind of failure it is. Names and numbers are those of `google.rpc.Code`, which gRPC and Connect use."""

    CANCELLED = 1
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    INTERNAL = 13
    UNAVAILABLE = 14
    UNAUTHENTICATED = 16


class ServiceError(Exception):
    """A failed request.

    `message` is for people and says what to do. `metadata` is for programs; the proto states its keys per reason.
    `retry_after_seconds` is set where the same call can succeed later. `detail` is for the log alone, such as the text
    of an exception of a worker: it may hold paths and addresses. The text of the exception is both.
    """

    code: ClassVar[ErrorCode]
    reason: ClassVar[str]

    def __init__(
        self,
        message: str,
        *,
        metadata: Mapping[str, str] | None = None,
        retry_after_seconds: float | None = None,
        detail: str = "",
    ) -> None:
        super().__init__(f"{message}: {detail}" if detail else message)
        self.message = message
        self.metadata = dict(metadata or {})
        self.retry_after_seconds = retry_after_seconds


class ClientError(ServiceError):
    """The caller's fault. Repeating the call unchanged cannot help."""


class InvalidImage(ClientError):
    """The image bytes are not a picture that this server accepts."""

    code = ErrorCode.INVALID_ARGUMENT


class ImageEmpty(InvalidImage):
    """The image has no bytes."""

    reason = "IMAGE_EMPTY"


class ImageTooManyBytes(InvalidImage):
    """The encoded image has more bytes than `max_image_bytes`."""

    reason = "IMAGE_TOO_MANY_BYTES"


class ImageTooManyPixels(InvalidImage):
    """The header states more pixels than `max_image_pixels`, a longer side, or what takes too much memory to decode."""

    reason = "IMAGE_TOO_MANY_PIXELS"


class ImageFormatUnsupported(InvalidImage):
    """The bytes are in no picture format that this server reads."""

    reason = "IMAGE_FORMAT_UNSUPPORTED"


class ImageTruncated(InvalidImage):
    """The image data ends early."""

    reason = "IMAGE_TRUNCATED"


class ImageCorrupt(InvalidImage):
    """The image data is broken."""

    reason = "IMAGE_CORRUPT"


class FieldOutOfRange(ClientError):
    """A request field is outside the range the proto states."""

    code = ErrorCode.INVALID_ARGUMENT
    reason = "FIELD_OUT_OF_RANGE"


class RequestMalformed(ClientError):
    """The bytes of the request are not the message that the call takes."""

    code = ErrorCode.INVALID_ARGUMENT
    reason = "REQUEST_MALFORMED"


class TaskMismatch(ClientError):
    """The named model is for another task."""

    code = ErrorCode.INVALID_ARGUMENT
    reason = "TASK_MISMATCH"


class ModelNotFound(ClientError):
    """The server serves no model of that name."""

    code = ErrorCode.NOT_FOUND
    reason = "MODEL_NOT_FOUND"


class NoDefaultModel(ClientError):
    """The request names no model, and the server serves none for the task."""

    code = ErrorCode.NOT_FOUND
    reason = "NO_DEFAULT_MODEL"


class Unauthenticated(ClientError):
    """The call has no valid credentials, and the server answers no anonymous calls. Never says more about a key."""

    code = ErrorCode.UNAUTHENTICATED
    reason = "UNAUTHENTICATED"


class PermissionDenied(ClientError):
    """The caller is known and may not use this model."""

    code = ErrorCode.PERMISSION_DENIED
    reason = "PERMISSION_DENIED"


class DeadlineExceeded(ClientError):
    """The deadline passed before the answer was ready."""

    code = ErrorCode.DEADLINE_EXCEEDED
    reason = "DEADLINE_EXCEEDED"


class Cancelled(ClientError):
    """The caller went away. Only logs and metrics show this error; nobody is left to receive it."""

    code = ErrorCode.CANCELLED
    reason = "CANCELLED"


class CapacityError(ServiceError):
    """The server has more work than it can take. Retry later."""

    code = ErrorCode.RESOURCE_EXHAUSTED


class QueueFull(CapacityError):
    """The queue of the model is full."""

    reason = "QUEUE_FULL"


class DeadlineUnreachable(CapacityError):
    """The deadline has not passed, but no answer is possible before it."""

    reason = "DEADLINE_UNREACHABLE"


class TooManyRequests(CapacityError):
    """The server already processes `max_inflight_requests` requests, or as many requests already arrive, or their
    pictures would take more than `max_inflight_megabytes`, or calls take more memory than `call_megabytes`: then new
    requests are refused, and the oldest ones that have not arrived whole are cut off. Also a failed allocation.
    """

    reason = "TOO_MANY_REQUESTS"


class RateLimited(CapacityError):
    """The caller has reached a limit of its own: calls per second, calls in work, or bytes in work."""

    reason = "RATE_LIMITED"


class UnavailableError(ServiceError):
    """A part of this server is down. Another replica can answer, or this one later."""

    code = ErrorCode.UNAVAILABLE


class ModelNotReady(UnavailableError):
    """No worker of the model is ready."""

    reason = "MODEL_NOT_READY"


class BackendUnavailable(UnavailableError):
    """The backend cannot be reached, or a worker died while it ran the batch."""

    reason = "BACKEND_UNAVAILABLE"


class BackendTimeout(UnavailableError):
    """The backend did not answer within `batch_timeout_seconds`."""

    reason = "BACKEND_TIMEOUT"


class ShuttingDown(UnavailableError):
    """The server is shutting down and takes no new requests."""

    reason = "SHUTTING_DOWN"


class InternalError(ServiceError):
    """A defect of this server or of the model."""

    code = ErrorCode.INTERNAL


class BackendFault(InternalError):
    """The model failed on this batch, or its answer is malformed."""

    reason = "BACKEND_FAULT"


class Bug(InternalError):
    """A broken invariant."""

    reason = "BUG"


def reasons(tree: type[ServiceError] = ServiceError) -> list[str]:
    """Return the reasons of all leaves below `tree`."""
    branches = tree.__subclasses__()
    return [reason for branch in branches for reason in reasons(branch)] if branches else [tree.reason]
