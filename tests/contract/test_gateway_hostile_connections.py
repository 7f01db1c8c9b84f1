"""A whole gateway in a process of its own, and connections that no client library would open."""

import socket
from pathlib import Path

import grpc
import pytest

from benchmarks.hold.fuzz import wire, wire_inputs


def call_of(path: bytes) -> bytes:
    """Everything that a client sends to call `path` with an empty message."""
    fields = [
        (b":method", b"POST"), (b":scheme", b"http"), (b":path", path), (b":authority", b"localhost"),
        (b"content-type", b"application/grpc"), (b"te", b"trailers"), (b"x-odd", b"\xff"),
    ]  # fmt: skip
    frame = wire_inputs._frame
    headers = frame(1, 4, 1, wire_inputs.headers(fields))
    return wire_inputs._PREFACE + frame(4, 0, 0, b"") + headers + frame(0, 1, 1, bytes(5))


def test_one_call_with_a_path_that_is_not_utf8_does_not_end_the_server(tmp_path: Path) -> None:
    outcome = wire.WireOutcome()
    with wire.Gateway(tmp_path / "log") as gateway, grpc.insecure_channel(gateway.grpc) as channel:
        host, _, port = gateway.grpc.rpartition(":")
        for path in (
            b"/mobilevision.v1.VisionService/\xff",
            b"\xff",
            b"/",
            b"",
            b"/mobilevision.v1.VisionService/Classify/",
        ):
            with socket.create_connection((host, int(port)), 30) as client:
                client.sendall(call_of(path))
                while client.recv(2**16) and path:  # until the server's first answers; then hang up
                    break
        wire._check_honest(channel, gateway, outcome)
        with pytest.raises(grpc.RpcError) as raised:
            channel.unary_unary("/mobilevision.v1.VisionService/Nothing")(b"", timeout=30)
        assert raised.value.code() == grpc.StatusCode.UNIMPLEMENTED
    wire._check_log(tmp_path / "log", outcome)
    assert outcome.faults == []


def test_hostile_messages_and_connections_leave_the_gateway_as_it_was(tmp_path: Path) -> None:
    outcome = wire.fuzz(120.0, seed=3, folder=tmp_path, most_rounds=2)
    assert outcome.rounds == 2
    assert outcome.faults == []
    assert outcome.inputs == dict.fromkeys(wire.KINDS, 120)
