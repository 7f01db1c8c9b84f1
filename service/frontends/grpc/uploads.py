"""Requests on their way in: bounds of time, number and memory for messages that have not arrived whole.

gRPC reads a message only when it is asked to; until then a sender fills one window of 64 KiB. It has no time limit for
a request of a caller without a deadline. So every message of every call is read here. A handler of VisionService asks
for its messages, and gets a `ServiceError` in place of one that is refused or cut off. Handlers of other services are
wrapped (`guarded`): their calls end with a status alone.
"""

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc
from grpc import aio

from service.core.callers import RecentCallers
from service.core.errors import DeadlineExceeded, ServiceError, TooManyRequests
from service.frontends.grpc.peer import host_of
from service.observability.upload_metrics import CUT_OFF, NO_MEMORY, TOO_MANY, TOO_SLOW

HOLD_SECONDS = 1.0  # how long a request waits for memory before it is refused

Handler = Any  # grpc.RpcMethodHandler, which takes types in its stubs only
_Context = aio.ServicerContext[Any, Any]


@dataclass(slots=True)
class _Arriving:
    """A message on its way in. It has a `limit` while gRPC reads it. `streamed`: it is one of a stream."""

    streamed: bool
    limit: asyncio.Timeout | None = None
    cut_off: bool = False


class UploadGate:
    """Lets messages arrive: at most `max_uploads` at once, each within `timeout_seconds`. For one event loop.

    While another host called in the last minute, the messages of a host that arrive count twice against its next one.
    So one host with many half-sent requests leaves room for the others.
    The next message of a stream may take `idle_seconds`, because nobody can tell one that is late from one that is not
    sent yet. It does not count in `max_uploads`; streams are few.
    Callers that are refused are told to retry after `retry_after_seconds`. `on_refused` is called for each message that
    did not arrive whole, with one of the `CAUSES` of `UploadMetrics`.
    """

    def __init__(
        self,
        *,
        max_uploads: int,
        timeout_seconds: float,
        idle_seconds: float = 60.0,
        retry_after_seconds: float,
        on_refused: Callable[[str], None] = lambda cause: None,
    ) -> None:
        self._max_uploads = max_uploads
        self._timeout_seconds = timeout_seconds
        self._idle_seconds = idle_seconds
        self._streamed = 0
        self._retry_after_seconds = retry_after_seconds
        self._on_refused = on_refused
        self._arriving: dict[int, _Arriving] = {}  # by number, in the order of arrival
        self._next = 0
        self._hosts = RecentCallers()
        self._arriving_of: Counter[str] = Counter()  # by host
        self._room = asyncio.Event()
        self._room.set()

    @property
    def count(self) -> int:
        """Messages that have not arrived whole."""
        return len(self._arriving)

    def hold(self, held: bool) -> None:
        """Let no new message arrive while `held`: it waits a second, then it is refused."""
        if held:
            self._room.clear()
        else:
            self._room.set()

    def cut_off(self, count: int) -> None:
        """End the oldest messages that gRPC reads. Their callers are told to retry."""
        now = asyncio.get_running_loop().time()
        for each in self._arriving.values():
            if count and each.limit is not None and not each.limit.expired():
                count -= 1
                each.cut_off = True
                each.limit.reschedule(now)

    def guarded(self, handler: Handler) -> Handler:
        """Return the handler of a method with its request read here. Streams of requests are left alone."""
        if handler.request_streaming:
            return handler
        if handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(
                self._reading(handler.unary_stream), handler.request_deserializer, handler.response_serializer
            )
        return grpc.stream_unary_rpc_method_handler(
            self._reading(handler.unary_unary), handler.request_deserializer, handler.response_serializer
        )

    def _reading(self, behaviour: Any) -> Any:
        async def read_and_run(_: Any, context: _Context) -> Any:
            try:
                request = await self.read(context)
            except ServiceError as error:
                await context.abort(grpc.StatusCode[error.code.name], error.message)  # raises
            if request is aio.EOF:
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the call has no request message")  # raises
            return await behaviour(request, context)

        return read_and_run

    async def read(self, context: _Context) -> Any:
        """Return the request of a call, or EOF if there is none. Raises `TooManyRequests`, `DeadlineExceeded`."""
        host = host_of(context.peer())
        own = self._arriving_of[host] if self._hosts.note(host, asyncio.get_running_loop().time()) else 0
        if len(self._arriving) - self._streamed + own >= self._max_uploads:
            words = f"{len(self._arriving)} requests are already arriving; retry later or add replicas"
            raise self._refusal(TOO_MANY, words)
        self._arriving_of[host] += 1
        try:
            return await self._read(context, _Arriving(streamed=False))
        finally:
            self._arriving_of[host] -= 1
            if not self._arriving_of[host]:
                del self._arriving_of[host]

    async def read_next(self, context: _Context) -> Any:
        """Return the next message of a stream, or EOF after the last one. Raises as `read`."""
        self._streamed += 1
        try:
            return await self._read(context, _Arriving(streamed=True))
        finally:
            self._streamed -= 1

    async def _read(self, context: _Context, arriving: _Arriving) -> Any:
        number = self._next = self._next + 1
        self._arriving[number] = arriving
        try:
            if not self._room.is_set():
                await self._wait_for_room()
            seconds = self._idle_seconds if arriving.streamed else self._timeout_seconds
            try:
                async with asyncio.timeout(seconds) as arriving.limit:
                    return await context.read()
            except TimeoutError as error:
                if arriving.cut_off:
                    words = "the request was cut off while it arrived: the server has no memory"
                    raise self._refusal(CUT_OFF, words) from error
                self._on_refused(TOO_SLOW)
                raise DeadlineExceeded(f"the request did not arrive in {seconds:.0f} s") from error
        finally:
            del self._arriving[number]

    async def _wait_for_room(self) -> None:
        try:
            async with asyncio.timeout(HOLD_SECONDS):
                await self._room.wait()
        except TimeoutError as error:
            raise self._refusal(NO_MEMORY, "the server has no memory for this request now; retry later") from error

    def _refusal(self, cause: str, message: str) -> TooManyRequests:
        self._on_refused(cause)
        return TooManyRequests(message, retry_after_seconds=self._retry_after_seconds)
