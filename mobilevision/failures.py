"""Why a call failed, or one picture of a call: errors of gRPC and `google.rpc.Status` in, `CallFailed` out."""

from collections.abc import Mapping

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

STATUS_DETAILS_KEY = "grpc-status-details-bin"  # the trailer in which gRPC carries a google.rpc.Status

_CODES: Mapping[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


class CallFailed(Exception):
    """A call that failed, or one picture of a call.

    `code` is the gRPC status code. `reason` is a name of the proto's `ErrorReason` without its prefix; it is empty
    where the server did not send one (no server listens, the connection broke). `metadata` holds the values that the
    proto lists for the reason. `retry_after_seconds` is None unless repeating the call can help.
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


def of_call(error: grpc.RpcError, sent_id: str) -> CallFailed:
    """Return the failure of a call, from the `google.rpc.Status` in its trailers. Without one, the words are gRPC's."""
    assert isinstance(error, grpc.Call)  # noqa: S101 - a blocking call raises errors of both classes
    trailers = dict(error.trailing_metadata() or ())
    request_id = trailers.get("x-request-id", sent_id)
    status = status_pb2.Status()
    try:
        status.ParseFromString(trailers.get(STATUS_DETAILS_KEY, b""))
    except DecodeError:  # another program wrote the trailer, such as a proxy
        status.Clear()
    return _failure(
        status,
        code=error.code(),
        message=status.message or error.details() or "no message",
        request_id=request_id if isinstance(request_id, str) else sent_id,
    )


def of_picture(status: status_pb2.Status) -> CallFailed:
    """Return the failure of one picture of a call."""
    code = _CODES.get(status.code, grpc.StatusCode.UNKNOWN)
    return _failure(status, code=code, message=status.message or "no message", request_id="")


def _failure(status: status_pb2.Status, *, code: grpc.StatusCode, message: str, request_id: str) -> CallFailed:
    info = error_details_pb2.ErrorInfo()
    retry = error_details_pb2.RetryInfo()
    request = error_details_pb2.RequestInfo()
    retry_after_seconds = None
    for detail in status.details:
        if detail.Is(info.DESCRIPTOR):
            detail.Unpack(info)
        elif detail.Is(retry.DESCRIPTOR):
            detail.Unpack(retry)
            retry_after_seconds = retry.retry_delay.ToNanoseconds() / 1e9
        elif detail.Is(request.DESCRIPTOR):
            detail.Unpack(request)
    return CallFailed(
        code=code,
        message=message,
        reason=info.reason,
        metadata=dict(info.metadata),
        retry_after_seconds=retry_after_seconds,
        request_id=request_id or request.request_id,
    )
