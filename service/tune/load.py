"""A closed loop: each client sends the next picture when the last one is answered.

In: a server, a model, a picture. Out: throughput and latency as the clients see them, and what computed the answers. A
call that fails ends the measurement with `LoadFailed`, because figures of a server that refuses calls mean nothing. So
do answers that were not all computed alike.
"""

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from grpc import aio

from handlers.contract.card import Task
from service.pb.mobilevision.v1 import vision_pb2, vision_pb2_grpc

CALL_TIMEOUT_SECONDS = 60.0
LEAST_ANSWERS = 10  # a 99th percentile of fewer answers is a guess; the measurement continues until it has them


class LoadFailed(Exception):
    """A call failed, or the workers do not compute alike. The message says why."""


@dataclass(frozen=True, slots=True)
class Load:
    """Pictures answered per second, and milliseconds from sending a call to its reply.

    `computed_by` is what the workers say that they computed with, as `engine/dtype`; empty: they did not say.
    """

    per_second: float
    p50_ms: float
    p99_ms: float
    computed_by: str


def measure(
    server: str, model: str, task: Task, image: bytes, *, clients: int, warm_seconds: float, seconds: float
) -> Load:
    """Call for `warm_seconds`, then measure for `seconds`, or until there are ten answers. Raises `LoadFailed`."""
    return asyncio.run(_measure(server, model, task, image, clients, warm_seconds, seconds))


async def _measure(
    server: str, model: str, task: Task, image: bytes, clients: int, warm_seconds: float, seconds: float
) -> Load:
    latencies: list[float] = []
    computed_by: set[str] = set()
    async with aio.insecure_channel(server) as channel:
        stub = vision_pb2_grpc.VisionServiceStub(channel)
        timeout = CALL_TIMEOUT_SECONDS
        classify = vision_pb2.ClassifyRequest(model=model, image=image)
        detect = vision_pb2.DetectRequest(model=model, image=image)
        segment = vision_pb2.SegmentRequest(model=model, image=image)
        calls: dict[Task, Callable[[], Awaitable[Any]]] = {
            Task.CLASSIFY: lambda: stub.Classify(classify, timeout=timeout),
            Task.DETECT: lambda: stub.Detect(detect, timeout=timeout),
            Task.SEGMENT: lambda: stub.Segment(segment, timeout=timeout),
        }
        begin = time.perf_counter() + warm_seconds
        end = begin + seconds

        async def client() -> None:
            while (sent := time.perf_counter()) < end or len(latencies) < LEAST_ANSWERS:
                reply = await calls[task]()
                computed_by.add(_computed_by(reply.model))
                if sent >= begin:
                    latencies.append(time.perf_counter() - sent)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(clients):
                    group.create_task(client())
        except* aio.AioRpcError as failed:
            error = failed.exceptions[0]
            assert isinstance(error, aio.AioRpcError)  # noqa: S101 - what except* caught
            raise LoadFailed(f"{error.code().name}: {error.details()}") from None
        finished = time.perf_counter()
    if len(computed_by) > 1:
        raise LoadFailed(f"its workers do not compute alike: {', '.join(sorted(computed_by))}")
    cuts = statistics.quantiles(latencies, n=100, method="inclusive")
    return Load(
        per_second=len(latencies) / (finished - begin),
        p50_ms=cuts[49] * 1e3,
        p99_ms=cuts[98] * 1e3,
        computed_by=computed_by.pop(),
    )


def _computed_by(used: vision_pb2.ModelUsed) -> str:
    engine = used.engine.partition("/")[2]  # of the network
    return f"{engine}/{used.dtype}" if engine else ""
