"""Clients that open health watches and do not read them change nothing for the others."""

import asyncio
import socket
import struct
import time

import grpc
import pytest
from fakes import running_gateway
from gateway_calls import as_condition, get, until
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SETTINGS, HEADERS, DATA = 4, 1, 0
END_STREAM, END_HEADERS = 1, 4
INITIAL_WINDOW_SIZE = 4


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def literal(name: str, value: str) -> bytes:
    """A header field that is not indexed and not compressed."""
    return b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()


def watch_without_window(address: str, service: str, watches: int = 1) -> socket.socket:
    """Open health watches on a connection whose HTTP/2 windows are 0: the server can send no data on them."""
    host, port = address.split(":")
    connection = socket.create_connection((host, int(port)))
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": "/grpc.health.v1.Health/Watch",
        ":authority": address,
        "content-type": "application/grpc",
        "te": "trailers",
    }
    headers = b"".join(literal(name, value) for name, value in fields.items())
    message = health_pb2.HealthCheckRequest(service=service).SerializeToString()
    body = b"\0" + struct.pack(">I", len(message)) + message
    out = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS, 0, 0, struct.pack(">HI", INITIAL_WINDOW_SIZE, 0))
    for stream in range(1, 2 * watches, 2):
        out += frame(HEADERS, END_HEADERS, stream, headers) + frame(DATA, END_STREAM, stream, body)
    connection.sendall(out)
    return connection


async def test_a_watch_without_a_window_holds_up_no_report_and_no_shutdown() -> None:
    async with running_gateway() as running:
        silent = [watch_without_window(running.grpc, name, 20) for name in ("", "toy_classify")]
        await asyncio.sleep(0.5)
        health = health_pb2_grpc.HealthStub(running.channel)
        watch = health.Watch(health_pb2.HealthCheckRequest(service="toy_classify"))
        async with asyncio.timeout(5):
            assert (await watch.read()).status == SERVING
        for ready_workers, state, http_status in ((0, NOT_SERVING, 503), (1, SERVING, 200), (0, NOT_SERVING, 503)):
            running.backend.ready_workers = ready_workers
            async with asyncio.timeout(5):
                assert (await watch.read()).status == state
            assert (await health.Check(health_pb2.HealthCheckRequest(service=""))).status == state
            assert (await get(running, "/readyz"))[0] == http_status
        stopping_at = time.monotonic()
        async with asyncio.timeout(10):
            await running.gateway.stop()
        assert time.monotonic() - stopping_at < 5
        for connection in silent:
            connection.close()


async def test_watches_are_limited_and_the_limit_is_free_again() -> None:
    async with running_gateway(max_health_watches=2) as running:
        health = health_pb2_grpc.HealthStub(running.channel)
        request = health_pb2.HealthCheckRequest(service="")
        watches = [health.Watch(request) for _ in range(2)]
        for watch in watches:
            assert (await watch.read()).status == SERVING
        with pytest.raises(aio.AioRpcError) as raised:
            await health.Watch(request).read()
        assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED
        assert (await health.Check(request)).status == SERVING
        watches[0].cancel()
        servicer = running.gateway._grpc_health.servicer
        await until(lambda: as_condition(servicer.watches == 1))
        assert (await health.Watch(request).read()).status == SERVING


async def test_a_watch_of_a_long_name_is_refused() -> None:
    async with running_gateway() as running:
        health = health_pb2_grpc.HealthStub(running.channel)
        with pytest.raises(aio.AioRpcError) as raised:
            await health.Watch(health_pb2.HealthCheckRequest(service="x" * 257)).read()
        assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_watches_end_when_the_server_stops() -> None:
    async with running_gateway() as running:
        health = health_pb2_grpc.HealthStub(running.channel)
        watch = health.Watch(health_pb2.HealthCheckRequest(service=""))
        assert (await watch.read()).status == SERVING
        stopping = asyncio.ensure_future(running.gateway.stop())
        assert (await watch.read()).status == NOT_SERVING
        async with asyncio.timeout(5):
            assert await watch.read() is aio.EOF
            await stopping
