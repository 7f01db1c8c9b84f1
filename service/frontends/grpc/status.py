"""The mapping of service errors to gRPC: status codes, and the trailer with the details of a failed call.

In: a `ServiceError`. Out: what `ServicerContext.abort` takes. Never decides what an error is.
"""

import grpc

from service.core.errors import ErrorCode, ServiceError
from service.frontends.status import status_bytes

STATUS_DETAILS_KEY = "grpc-status-details-bin"  # the trailer that gRPC libraries read `google.rpc.Status` from

# gRPC's names are those of `google.rpc.Code`, like ours.
_CODES = {code: grpc.StatusCode[code.name] for code in ErrorCode}


def status_code(error: ServiceError) -> grpc.StatusCode:
    """Return the gRPC status code of an error."""
    return _CODES[error.code]


def status_trailer(error: ServiceError, *, request_id: str) -> tuple[str, bytes]:
    """Return the trailer with the details of an error."""
    return STATUS_DETAILS_KEY, status_bytes(error, request_id=request_id)
