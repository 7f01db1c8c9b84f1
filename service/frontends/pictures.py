"""Calls of several pictures: proto messages in, the same pictures answered one by one, proto messages out.

Each picture goes through `Pictures.handle`, so it is admitted, queued and reported like a call of its own. A picture
that fails gets a `google.rpc.Status` in place of its answer. Knows proto messages, but not gRPC.
"""

import asyncio
import math
from collections import deque
from collections.abc import Mapping
from typing import Any

from handlers.contract.card import Task
from service.core.call_scope import CallScope
from service.core.errors import FieldOutOfRange, ServiceError, TooManyRequests
from service.core.types import RequestRecord
from service.frontends.call import Failed, Pictures
from service.frontends.request_bounds import LONGEST_STRING, Method
from service.frontends.status import to_status
from service.frontends.tasks.registry import TASKS
from service.pb.mobilevision.v1 import vision_pb2

# Pictures of one call that start in the same turn of the event loop. Small pictures are decoded there, 0.4 ms each:
# other callers wait for no more than these. A worker that is idle gets them while the next ones are decoded.
STARTED_AT_ONCE = 8
# What a call keeps of its time to send the answers, so that pictures that are late do not cost it the others.
REPLY_SHARE = 0.05
MOST_REPLY_SECONDS = 0.25


class PictureCalls:
    """Answers pictures. `methods` are the methods of the tasks: each takes the request of its task, and a scope."""

    def __init__(self, methods: Mapping[Task, Method]) -> None:
        self._methods: Mapping[str, tuple[str, Method]] = {
            str(task): (TASKS[task].method, method) for task, method in methods.items()
        }

    async def answer(
        self, pictures: Pictures, number: int, held: list[vision_pb2.PictureRequest], deadline_at: float
    ) -> tuple[vision_pb2.PictureResponse, ServiceError | None]:
        """Answer the picture at place `number` of a call. Returns the error too if it failed.

        `held` has the request alone. It is taken out, so that its memory is free once the picture is decoded.
        """
        request = held.pop()
        response = vision_pb2.PictureResponse(id=request.id[:LONGEST_STRING])
        error = _check(request)
        kind = request.WhichOneof("request") or ""
        name, method = self._methods.get(kind, (pictures.scope.record.method, _nothing))
        size = request.ByteSize()
        asked = [getattr(request, kind) if kind else None]
        del request

        async def work(scope: CallScope) -> Any:
            if error is not None:
                raise error
            return await method(asked.pop(), scope)

        outcome = await pictures.handle(number, name, work, request_bytes=size, deadline_at=deadline_at)
        if isinstance(outcome, Failed):
            response.error.CopyFrom(to_status(outcome.error, request_id=outcome.request_id))
            return response, outcome.error
        getattr(response, kind).CopyFrom(outcome.reply)
        response.timing.CopyFrom(_timing(outcome.record))
        return response, None


class BatchCalls:
    """Answers `Batch` calls of at most `max_pictures` pictures, of `max_bytes` together. So large are answers as well.

    Callers are told to retry after `retry_after_seconds` where the answers of a call become larger.
    """

    def __init__(self, calls: PictureCalls, *, max_pictures: int, max_bytes: int, retry_after_seconds: float) -> None:
        self._calls = calls
        self._max_pictures = max_pictures
        self._max_bytes = max_bytes
        self._retry_after_seconds = retry_after_seconds

    async def batch(self, request: vision_pb2.BatchRequest, pictures: Pictures) -> vision_pb2.BatchResponse:
        """Answer a call. Raises `FieldOutOfRange` if it has too many pictures or bytes, before any work."""
        self._check(request)
        # Copies, because a part of a message keeps the memory of the whole.
        waiting: deque[vision_pb2.PictureRequest] = deque()
        for each in request.pictures:
            waiting.append(vision_pb2.PictureRequest())
            waiting[-1].CopyFrom(each)
        del request, each
        now = asyncio.get_running_loop().time()
        remaining_seconds = pictures.scope.deadline_at - now
        deadline_at = pictures.scope.deadline_at - min(REPLY_SHARE * remaining_seconds, MOST_REPLY_SECONDS)
        room = AnswerRoom(self._max_bytes, self._retry_after_seconds)
        tasks: list[asyncio.Task[vision_pb2.PictureResponse]] = []
        try:
            while waiting:
                held = [waiting.popleft()]
                tasks.append(asyncio.create_task(self._answer(pictures, len(tasks), held, deadline_at, room)))
                if len(tasks) % STARTED_AT_ONCE == 0:
                    await asyncio.sleep(0)
            return vision_pb2.BatchResponse(pictures=await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _answer(
        self,
        pictures: Pictures,
        number: int,
        held: list[vision_pb2.PictureRequest],
        deadline_at: float,
        room: "AnswerRoom",
    ) -> vision_pb2.PictureResponse:
        response, _ = await self._calls.answer(pictures, number, held, deadline_at)
        return room.taken_by(response, f"{pictures.scope.request_id}/{number}")[0]

    def _check(self, request: vision_pb2.BatchRequest) -> None:
        count = len(request.pictures)
        if not 1 <= count <= self._max_pictures:
            raise FieldOutOfRange(
                f"pictures has {count} entries; it must have 1 to {self._max_pictures}", metadata={"field": "pictures"}
            )
        size = request.ByteSize()
        if size > self._max_bytes:
            raise FieldOutOfRange(
                f"pictures has {size} bytes; one call may have {self._max_bytes}; send fewer pictures per call",
                metadata={"field": "pictures"},
            )


class AnswerRoom:
    """Room for the answers of one call that are not sent, in bytes. One answer alone always has room.

    Callers whose answers have no room are told to retry after `retry_after_seconds`.
    """

    def __init__(self, max_bytes: int, retry_after_seconds: float) -> None:
        self._max_bytes = max_bytes
        self._retry_after_seconds = retry_after_seconds
        self._used_bytes = 0

    def taken_by(self, response: vision_pb2.PictureResponse, request_id: str) -> tuple[vision_pb2.PictureResponse, int]:
        """Return the response and its size, or a small one with an error if it has no room."""
        size = response.ByteSize()
        if self._used_bytes and self._used_bytes + size > self._max_bytes:
            error = TooManyRequests(
                f"the answers of this call that are not sent have more than {self._max_bytes} bytes; send fewer "
                "pictures per call, or read the answers sooner",
                retry_after_seconds=self._retry_after_seconds,
            )
            response = vision_pb2.PictureResponse(id=response.id, error=to_status(error, request_id=request_id))
            size = 0  # errors are small, and there is one per picture
        self._used_bytes += size
        return response, size

    def free(self, size: int) -> None:
        """Give the room of an answer back, because it was sent."""
        self._used_bytes -= size


def own_deadline_at(request: vision_pb2.StreamRequest, now: float) -> float:
    """Return when a picture of a stream must be answered, infinite if it does not say. `now` is when it was read."""
    if not request.HasField("timeout"):
        return math.inf
    return now + request.timeout.seconds + request.timeout.nanos / 1e9


def _check(request: vision_pb2.PictureRequest) -> ServiceError | None:
    if len(request.id) > LONGEST_STRING:
        return FieldOutOfRange(f"id has more than {LONGEST_STRING} characters", metadata={"field": "id"})
    if request.WhichOneof("request") is None:
        return FieldOutOfRange(
            f"the picture has no request; set one of {', '.join(TASKS)}", metadata={"field": "request"}
        )
    return None


async def _nothing(request: Any, scope: CallScope) -> Any:
    """Never called: a picture without a request has failed before."""


def _timing(record: RequestRecord) -> vision_pb2.PictureTiming:
    seconds: dict[str, Any] = {f"{stage}_seconds": spent for stage, spent in record.stage_seconds.items()}
    return vision_pb2.PictureTiming(batch_size=record.batch_size, **seconds)
