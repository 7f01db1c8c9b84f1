"""The tree of errors: every leaf has one code and one reason of the proto. Client and server share no code."""

from collections.abc import Iterator

from google.rpc import code_pb2

from service.core import errors
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
    assert sorted(errors.reasons()) == sorted(reasons)


def test_client_errors_and_server_errors_never_share_a_code() -> None:
    theirs = {leaf.code for leaf in LEAVES if issubclass(leaf, errors.ClientError)}
    ours = {leaf.code for leaf in LEAVES if not issubclass(leaf, errors.ClientError)}
    assert not theirs & ours


def test_codes_have_the_numbers_of_google_rpc_code_and_each_is_used() -> None:
    assert {code.name: code.value for code in errors.ErrorCode}.items() <= dict(code_pb2.Code.items()).items()
    assert {leaf.code for leaf in LEAVES} == set(errors.ErrorCode)
