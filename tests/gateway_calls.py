"""Calls of a running gateway: stubs, error details, HTTP pages, waiting."""

import asyncio
import urllib.error
import urllib.request
from typing import Any

import grpc
import pytest
from fakes import RunningGateway, picture
from google.rpc import error_details_pb2, status_pb2
from grpc import aio

from service.pb.mobilevision.v1 import vision_pb2_grpc

IMAGE = picture()


def stub(running: RunningGateway) -> Any:
    return vision_pb2_grpc.VisionServiceStub(running.channel)


def details(error: aio.AioRpcError) -> tuple[error_details_pb2.ErrorInfo, error_details_pb2.RetryInfo | None]:
    raw = next(value for key, value in error.trailing_metadata() if key == "grpc-status-details-bin")
    status = status_pb2.Status.FromString(raw)
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    assert status.details[0].Unpack(info)
    found = any(detail.Unpack(retry) for detail in status.details)
    return info, retry if found else None


async def failure(call: Any) -> tuple[grpc.StatusCode, str, error_details_pb2.ErrorInfo, Any]:
    with pytest.raises(aio.AioRpcError) as raised:
        await call
    info, retry = details(raised.value)
    return raised.value.code(), info.reason, info, retry


def http(running: RunningGateway, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://{running.http}{path}", timeout=5) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


async def get(running: RunningGateway, path: str) -> tuple[int, str]:
    return await asyncio.to_thread(http, running, path)


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not await condition():
            await asyncio.sleep(0.01)


async def reply_of(call: Any) -> Any:
    return await call


async def as_condition(value: object) -> bool:
    return bool(value)
