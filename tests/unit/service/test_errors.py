"""The closed tree: every leaf has one code and one reason of the proto, and no code is both ours and the client's."""

from collections.abc import Iterator

import grpc
import pytest
from google.rpc import error_details_pb2

from service import errors
from service.pb.mobilevision.v1 import vision_pb2


def leaves(of: type[errors.ServiceError] = errors.ServiceError) -> Iterator[type[errors.ServiceError]]:
    children = of.__subclasses__()
    if not children:
        yield of
    for child in children:
        yield from leaves(child)


LEAVES = list(leaves())
WIRE_REASONS = {v.name.removeprefix("ERROR_REASON_") for v in vision_pb2.ErrorReason.DESCRIPTOR.values} - {
    "UNSPECIFIED"
}


def test_the_reasons_are_exactly_those_of_the_proto() -> None:
    reasons = [leaf.reason for leaf in LEAVES]
    assert len(reasons) == len(set(reasons))
    assert set(reasons) == WIRE_REASONS


def test_the_clients_fault_and_ours_never_share_a_code() -> None:
    theirs = {leaf.code for leaf in LEAVES if issubclass(leaf, errors.ClientError)}
    ours = {leaf.code for leaf in LEAVES if not issubclass(leaf, errors.ClientError)}
    assert not theirs & ours
    assert grpc.StatusCode.UNKNOWN not in theirs | ours


@pytest.mark.parametrize("leaf", LEAVES, ids=lambda leaf: leaf.__name__)
def test_every_leaf_maps_to_a_status_with_its_details(leaf: type[errors.ServiceError]) -> None:
    error = leaf("what to do", metadata={"key": "value"}, retry_after_seconds=1.5)
    status = errors.to_status(error, request_id="r1")
    info, request, retry = (
        error_details_pb2.ErrorInfo(),
        error_details_pb2.RequestInfo(),
        error_details_pb2.RetryInfo(),
    )
    assert status.details[0].Unpack(info)
    assert status.details[1].Unpack(request)
    assert status.details[2].Unpack(retry)
    assert (status.code, status.message) == (leaf.code.value[0], "what to do")
    assert (info.reason, info.domain, dict(info.metadata)) == (leaf.reason, "mobilevision", {"key": "value"})
    assert request.request_id == "r1"
    assert retry.retry_delay.ToTimedelta().total_seconds() == 1.5


def test_retrying_is_not_suggested_where_it_cannot_help() -> None:
    status = errors.to_status(errors.ImageEmpty("empty"), request_id="r")
    assert not any(detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR) for detail in status.details)
