"""Service errors as `google.rpc.Status`: the details of a failed call, or of one picture of a call.

In: a `ServiceError`. Out: a message. Never decides what an error is, and knows no transport protocol.
"""

from functools import lru_cache

from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from service.core.errors import ServiceError

DOMAIN = "mobilevision"  # `ErrorInfo.domain`: the namespace of our reasons

_KEPT = 256  # heads of errors that are kept serialised: reasons times models; each has about 100 bytes


def to_status(error: ServiceError, *, request_id: str) -> status_pb2.Status:
    """Return the error with ErrorInfo and RequestInfo, and with RetryInfo where repeating the call can help."""
    return status_pb2.Status.FromString(status_bytes(error, request_id=request_id))


def status_bytes(error: ServiceError, *, request_id: str) -> bytes:
    """Return `to_status` of an error, serialised. An overloaded server makes hundreds per second."""
    details = [_packed(error_details_pb2.RequestInfo(request_id=request_id))]
    if error.retry_after_seconds is not None:
        seconds, nanos = divmod(int(error.retry_after_seconds * 1e9), 10**9)
        delay = duration_pb2.Duration(seconds=seconds, nanos=nanos)
        details.append(_packed(error_details_pb2.RetryInfo(retry_delay=delay)))
    # The bytes of a message may come in parts: lists are continued by the next part.
    head = _head(error.code.value, error.reason, tuple(error.metadata.items()))
    tail: bytes = status_pb2.Status(message=error.message, details=details).SerializeToString()
    return head + tail


@lru_cache(_KEPT)
def _head(code: int, reason: str, metadata: tuple[tuple[str, str], ...]) -> bytes:
    info = error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN, metadata=dict(metadata))
    head: bytes = status_pb2.Status(code=code, details=[_packed(info)]).SerializeToString()
    return head


def _packed(detail: Message) -> any_pb2.Any:
    # Faster than `Any.Pack`.
    url = f"type.googleapis.com/{detail.DESCRIPTOR.full_name}"
    return any_pb2.Any(type_url=url, value=detail.SerializeToString())
