"""Every way a request can fail, as one closed tree with one mapping to gRPC.

    ServiceError
    ├── ClientError                      the caller's fault: repeating it unchanged cannot help
    │   ├── InvalidImage                 INVALID_ARGUMENT
    │   │   ├── ImageEmpty
    │   │   ├── ImageTooManyBytes
    │   │   ├── ImageTooManyPixels
    │   │   ├── ImageFormatUnsupported
    │   │   ├── ImageTruncated
    │   │   └── ImageCorrupt
    │   ├── FieldOutOfRange              INVALID_ARGUMENT
    │   ├── TaskMismatch                 INVALID_ARGUMENT
    │   ├── ModelNotFound                NOT_FOUND
    │   ├── NoDefaultModel               NOT_FOUND
    │   ├── DeadlineExceeded             DEADLINE_EXCEEDED
    │   └── Cancelled                    CANCELLED
    ├── CapacityError                    RESOURCE_EXHAUSTED: there is more work than room, retry later
    │   ├── QueueFull
    │   ├── DeadlineUnreachable
    │   └── TooManyRequests
    ├── UnavailableError                 UNAVAILABLE: something of ours is down, another replica may answer
    │   ├── ModelNotReady
    │   ├── BackendUnavailable
    │   ├── BackendTimeout
    │   └── ShuttingDown
    └── InternalError                    INTERNAL: ours to mend
        ├── BackendFault
        └── Bug

A leaf's `reason` is the wire reason of proto `ErrorReason`, without its prefix. Foreign exceptions are translated
where they enter: Pillow's in `decode`, gRPC's and TorchServe's in `torchserve`. A broken invariant is not caught: the
door turns it into `Bug` and logs the traceback.
"""

from collections.abc import Mapping
from typing import ClassVar

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2

DOMAIN = "mobilevision"
STATUS_DETAILS_KEY = "grpc-status-details-bin"


class ServiceError(Exception):
    """A failed request. `message` is for people and names the fix; `metadata` is for programs."""

    code: ClassVar[grpc.StatusCode]
    reason: ClassVar[str]

    def __init__(
        self, message: str, *, metadata: Mapping[str, str] | None = None, retry_after_seconds: float | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.metadata = dict(metadata or {})
        self.retry_after_seconds = retry_after_seconds


class ClientError(ServiceError):
    """The caller's fault; repeating the call unchanged cannot help."""


class InvalidImage(ClientError):
    """The image bytes cannot be answered."""

    code = grpc.StatusCode.INVALID_ARGUMENT


class ImageEmpty(InvalidImage):
    """No bytes."""

    reason = "IMAGE_EMPTY"


class ImageTooManyBytes(InvalidImage):
    """More encoded bytes than allowed."""

    reason = "IMAGE_TOO_MANY_BYTES"


class ImageTooManyPixels(InvalidImage):
    """More pixels than allowed, by its header."""

    reason = "IMAGE_TOO_MANY_PIXELS"


class ImageFormatUnsupported(InvalidImage):
    """Not a picture of a format that is read here."""

    reason = "IMAGE_FORMAT_UNSUPPORTED"


class ImageTruncated(InvalidImage):
    """The data ends early."""

    reason = "IMAGE_TRUNCATED"


class ImageCorrupt(InvalidImage):
    """The data is broken."""

    reason = "IMAGE_CORRUPT"


class FieldOutOfRange(ClientError):
    """A request field is outside the range the proto states."""

    code = grpc.StatusCode.INVALID_ARGUMENT
    reason = "FIELD_OUT_OF_RANGE"


class TaskMismatch(ClientError):
    """The model named answers another task."""

    code = grpc.StatusCode.INVALID_ARGUMENT
    reason = "TASK_MISMATCH"


class ModelNotFound(ClientError):
    """No model of that name."""

    code = grpc.StatusCode.NOT_FOUND
    reason = "MODEL_NOT_FOUND"


class NoDefaultModel(ClientError):
    """No model named and none served for the task."""

    code = grpc.StatusCode.NOT_FOUND
    reason = "NO_DEFAULT_MODEL"


class DeadlineExceeded(ClientError):
    """The deadline passed before the answer was ready."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED
    reason = "DEADLINE_EXCEEDED"


class Cancelled(ClientError):
    """The caller went away. Never sent; names the outcome in logs and metrics."""

    code = grpc.StatusCode.CANCELLED
    reason = "CANCELLED"


class CapacityError(ServiceError):
    """More work than room; retry later."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED


class QueueFull(CapacityError):
    """The model's queue has no place left."""

    reason = "QUEUE_FULL"


class DeadlineUnreachable(CapacityError):
    """No answer is possible before the deadline, which has not passed yet."""

    reason = "DEADLINE_UNREACHABLE"


class TooManyRequests(CapacityError):
    """The server has as many requests in work as it may."""

    reason = "TOO_MANY_REQUESTS"


class UnavailableError(ServiceError):
    """Something of ours is down; another replica, or this one later, can answer."""

    code = grpc.StatusCode.UNAVAILABLE


class ModelNotReady(UnavailableError):
    """No worker of the model is ready."""

    reason = "MODEL_NOT_READY"


class BackendUnavailable(UnavailableError):
    """The backend cannot be reached, or its worker died with the batch."""

    reason = "BACKEND_UNAVAILABLE"


class BackendTimeout(UnavailableError):
    """The backend did not answer within the time the operator allows."""

    reason = "BACKEND_TIMEOUT"


class ShuttingDown(UnavailableError):
    """The server drains."""

    reason = "SHUTTING_DOWN"


class InternalError(ServiceError):
    """Ours to mend."""

    code = grpc.StatusCode.INTERNAL


class BackendFault(InternalError):
    """The model, or the frame around it, failed on this batch."""

    reason = "BACKEND_FAULT"


class Bug(InternalError):
    """A broken invariant."""

    reason = "BUG"


def reasons(tree: type[ServiceError] = ServiceError) -> list[str]:
    """The reasons of all leaves of a tree."""
    branches = tree.__subclasses__()
    return [reason for branch in branches for reason in reasons(branch)] if branches else [tree.reason]


def to_status(error: ServiceError, *, request_id: str) -> status_pb2.Status:
    """The one wire mapping: `google.rpc.Status` with ErrorInfo, RequestInfo, and RetryInfo where retrying helps."""
    details = [
        error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata),
        error_details_pb2.RequestInfo(request_id=request_id),
    ]
    packed = []
    if error.retry_after_seconds is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(int(error.retry_after_seconds * 1e9))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    for detail in details:
        wrapped = any_pb2.Any()
        wrapped.Pack(detail)
        packed.append(wrapped)
    return status_pb2.Status(code=error.code.value[0], message=error.message, details=packed)
