"""`Stream` calls: pictures as they come in, answers as they are ready out, with a bound on what is in between.

A picture takes one place of its stream from before it is read until its answer is sent. Without a free place nothing is
read, and gRPC's flow control stops the caller. So a caller that does not read its answers holds a few pictures and
nobody up. Knows proto messages, but not gRPC.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable
from typing import Any

from service.core.errors import DeadlineExceeded, ServiceError, ShuttingDown, TooManyRequests
from service.frontends.call import Pictures
from service.frontends.pictures import AnswerRoom, PictureCalls, own_deadline_at
from service.pb.mobilevision.v1 import vision_pb2

Read = Callable[[], Awaitable[Any]]
"""Returns the next `StreamRequest`, None after the last one. Raises a `ServiceError` if it does not arrive."""
Write = Callable[[vision_pb2.StreamResponse], Awaitable[None]]
"""Returns when there is room for the next message. Raises a `ServiceError` if the caller does not read."""


class StreamCalls:
    """Answers at most `max_streams` `Stream` calls at once, each with at most `max_pictures` in work.

    The answers of one stream that its caller has not taken have `max_bytes` together.
    A picture that names no time gets `default_seconds`, and no picture gets more than `max_seconds`. Callers that are
    refused are told to retry after `retry_after_seconds`.
    """

    def __init__(
        self,
        calls: PictureCalls,
        *,
        max_streams: int,
        max_pictures: int,
        max_bytes: int,
        default_seconds: float,
        max_seconds: float,
        retry_after_seconds: float,
    ) -> None:
        self._calls = calls
        self._max_streams = max_streams
        self._max_pictures = max_pictures
        self._max_bytes = max_bytes
        self._default_seconds = default_seconds
        self._max_seconds = max_seconds
        self._retry_after_seconds = retry_after_seconds
        self.open = 0

    async def stream(self, read: Read, write: Write, pictures: Pictures) -> None:
        """Answer the pictures of one stream until the caller has sent all.

        Raises `TooManyRequests` if too many streams are open, and another `ServiceError` if the stream cannot go on.
        The pictures in work are answered before the error is raised, unless the caller does not read its answers.
        """
        if self.open >= self._max_streams:
            raise TooManyRequests(
                f"{self.open} streams are already open; retry later or add replicas",
                retry_after_seconds=self._retry_after_seconds,
            )
        self.open += 1
        try:
            room = AnswerRoom(self._max_bytes, self._retry_after_seconds)
            await _Stream(self._answer, read, write, pictures, self._max_pictures, room).run()
        finally:
            self.open -= 1

    async def _answer(
        self, pictures: Pictures, number: int, held: list[vision_pb2.StreamRequest]
    ) -> tuple[vision_pb2.PictureResponse, ServiceError | None]:
        request = held.pop()
        now = asyncio.get_running_loop().time()
        deadline_at = own_deadline_at(request, now)
        seconds = self._default_seconds if deadline_at == math.inf else self._max_seconds
        picture = [request.picture]
        del request
        return await self._calls.answer(pictures, number, picture, min(deadline_at, now + seconds))


class _Stream:
    """One stream."""

    def __init__(
        self,
        answer: Callable[..., Awaitable[tuple[vision_pb2.PictureResponse, ServiceError | None]]],
        read: Read,
        write: Write,
        pictures: Pictures,
        max_pictures: int,
        room: AnswerRoom,
    ) -> None:
        self._room = room
        self._answer = answer
        self._read = read
        self._write = write
        self._pictures = pictures
        self._max_pictures = max_pictures
        self._places = asyncio.Semaphore(max_pictures)
        self._writing = asyncio.Lock()  # gRPC takes one message at a time
        self._tasks: set[asyncio.Task[None]] = set()
        self._reading = asyncio.timeout_at(pictures.scope.deadline_at)
        self._is_reading = False
        self._end: Exception | None = None  # why the stream ends before the caller has sent all
        self._readable = True  # whether the caller reads its answers

    async def run(self) -> None:
        """Read and answer."""
        try:
            await self._write(vision_pb2.StreamResponse(credit=vision_pb2.StreamCredit(pictures=self._max_pictures)))
            await self._read_all()
            while self._tasks and self._readable:
                await asyncio.wait(set(self._tasks), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._end is not None:
            raise self._end

    async def _read_all(self) -> None:
        number = 0
        try:
            async with self._reading:
                self._is_reading = True
                while True:
                    await self._places.acquire()
                    request = await self._read()
                    if request is None:
                        return
                    task = asyncio.create_task(self._handle(number, [request]))
                    del request
                    self._tasks.add(task)
                    task.add_done_callback(self._done)
                    number += 1
        except TimeoutError:
            if self._end is None:
                self._end = DeadlineExceeded("the longest time of a stream has passed; open another one")
        except ServiceError as error:
            self._end = error
        finally:
            self._is_reading = False

    async def _handle(self, number: int, held: list[vision_pb2.StreamRequest]) -> None:
        response, error = await self._answer(self._pictures, number, held)
        response, size = self._room.taken_by(response, f"{self._pictures.scope.request_id}/{number}")
        async with self._writing:
            try:
                await self._write(vision_pb2.StreamResponse(picture=response))
            except Exception:
                self._readable = False
                raise
            self._room.free(size)
        if isinstance(error, ShuttingDown):
            self._stop(error)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._places.release()
        if not task.cancelled() and (error := task.exception()) is not None:
            self._stop(error if isinstance(error, Exception) else RuntimeError(str(error)))

    def _stop(self, error: Exception) -> None:
        """Read no more, because of `error`."""
        if self._end is None:
            self._end = error
            if self._is_reading and not self._reading.expired():
                self._reading.reschedule(asyncio.get_running_loop().time())
