"""Service errors as `google.rpc.Status`: the details of a failed call, or of one picture of a call.

In: a `ServiceError`. Out: a message. Never decides what an error is, and knows no transport protocol.
"""

from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from service.core.errors import ServiceError

DOMAIN = "mobilevision"  # `ErrorInfo.domain`: the namespace of our reasons


def to_status(error: ServiceError, *, request_id: str) -> status_pb2.Status:
    """Return the error with ErrorInfo and RequestInfo, and with RetryInfo where repeating the call can help."""
    details: list[Message] = [
        error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata),
        error_details_pb2.RequestInfo(request_id=request_id),
    ]
    if error.retry_after_seconds is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(int(error.retry_after_seconds * 1e9))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    return status_pb2.Status(code=error.code.value, message=error.message, details=[_packed(each) for each in details])


def _packed(detail: Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(detail)
    return packed
