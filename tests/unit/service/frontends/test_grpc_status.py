"""Every service error has a gRPC status code and a `google.rpc.Status` with its details."""

from collections.abc import Iterator

import grpc
import pytest
from google.rpc import error_details_pb2

from service.core import errors
from service.frontends.grpc.status import status_code
from service.frontends.status import to_status


def leaves(of: type[errors.ServiceError] = errors.ServiceError) -> Iterator[type[errors.ServiceError]]:
    children = of.__subclasses__()
    if not children:
        yield of
    for child in children:
        yield from leaves(child)


@pytest.mark.parametrize("leaf", list(leaves()), ids=lambda leaf: leaf.__name__)
def test_every_leaf_maps_to_a_status_with_its_details(leaf: type[errors.ServiceError]) -> None:
    error = leaf("what to do", metadata={"key": "value"}, retry_after_seconds=1.5)
    status = to_status(error, request_id="r1")
    info, request, retry = (
        error_details_pb2.ErrorInfo(),
        error_details_pb2.RequestInfo(),
        error_details_pb2.RetryInfo(),
    )
    assert status.details[0].Unpack(info)
    assert status.details[1].Unpack(request)
    assert status.details[2].Unpack(retry)
    assert (status.code, status.message) == (status_code(error).value[0], "what to do")
    assert (info.reason, info.domain, dict(info.metadata)) == (leaf.reason, "mobilevision", {"key": "value"})
    assert request.request_id == "r1"
    assert retry.retry_delay.ToTimedelta().total_seconds() == 1.5


@pytest.mark.parametrize("code", list(errors.ErrorCode), ids=lambda code: code.name)
def test_grpc_has_every_code_under_the_same_name_and_number(code: errors.ErrorCode) -> None:
    assert grpc.StatusCode[code.name].value[0] == code.value


def test_retrying_is_not_suggested_where_it_cannot_help() -> None:
    status = to_status(errors.ImageEmpty("empty"), request_id="r")
    assert not any(detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR) for detail in status.details)
