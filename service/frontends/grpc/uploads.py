"""Requests on their way in: bounds of time, number and memory for calls whose message has not arrived whole.

gRPC reads a request only when it is asked to; until then a sender fills one window of 64 KiB. It has no time limit for
a request of a caller without a deadline. So each call passes here before its request is read. A call that is refused or
cut off runs its handler with the error in place of the request: it is answered and counted like any other call.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import grpc
from grpc import aio

from service.core.errors import DeadlineExceeded, ServiceError, TooManyRequests
from service.observability.upload_metrics import CUT_OFF, NO_MEMORY, TOO_MANY, TOO_SLOW

HOLD_SECONDS = 1.0  # how long a request waits for memory before it is refused

Handler = Any  # grpc.RpcMethodHandler, which takes types in its stubs only
_Context = aio.ServicerContext[Any, Any]
_Continuation = Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]]


@dataclass(slots=True)
class _Arriving:
    """A request on its way in. `limit` is running while gRPC reads it."""

    limit: asyncio.Timeout
    cut_off: bool = False


class UploadGate(aio.ServerInterceptor):
    """Lets requests arrive: at most `max_uploads` at once, each within `timeout_seconds`. For one event loop.

    `typed` is the prefix of methods whose handlers take a `ServiceError` in place of a request. Calls of other methods
    end with a status alone. Callers that are refused are told to retry after `retry_after_seconds`. `on_refused` is
    called for each request that did not arrive whole, with one of the `CAUSES` of `UploadMetrics`.
    """

    def __init__(
        self,
        *,
        typed: str,
        max_uploads: int,
        timeout_seconds: float,
        retry_after_seconds: float,
        on_refused: Callable[[str], None] = lambda cause: None,
    ) -> None:
        self._typed = typed
        self._max_uploads = max_uploads
        self._timeout_seconds = timeout_seconds
        self._retry_after_seconds = retry_after_seconds
        self._on_refused = on_refused
        self._arriving: dict[int, _Arriving] = {}  # by number, in the order of arrival
        self._next = 0
        self._room = asyncio.Event()
        self._room.set()

    @property
    def count(self) -> int:
        """Requests that have not arrived whole."""
        return len(self._arriving)

    def hold(self, held: bool) -> None:
        """Let no new request arrive while `held`: it waits a second, then it is refused."""
        if held:
            self._room.clear()
        else:
            self._room.set()

    def cut_off(self, count: int) -> None:
        """End the oldest requests that gRPC reads. Their callers are told to retry."""
        now = asyncio.get_running_loop().time()
        reading = [each for each in self._arriving.values() if not each.limit.expired()]
        for each in reading[:count]:
            each.cut_off = True
            each.limit.reschedule(now)

    async def intercept_service(
        self, continuation: _Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler | None:
        """Return the handler of a method with its request read here. Streams of requests are left alone."""
        handler = await continuation(handler_call_details)
        if handler is None or handler.request_streaming:
            return handler
        typed = handler_call_details.method.startswith(self._typed)
        if handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(
                self._reading(handler.unary_stream, typed), handler.request_deserializer, handler.response_serializer
            )
        return grpc.stream_unary_rpc_method_handler(
            self._reading(handler.unary_unary, typed), handler.request_deserializer, handler.response_serializer
        )

    def _reading(self, behaviour: Any, typed: bool) -> Any:
        async def read_and_run(_: Any, context: _Context) -> Any:
            # The request is not kept here: a picture is freed when it is decoded, before the call ends.
            return await behaviour(await self._request(context, typed), context)

        return read_and_run

    async def _request(self, context: _Context, typed: bool) -> Any:
        try:
            request = await self._read(context)
        except ServiceError as error:
            if typed:
                return error
            await context.abort(grpc.StatusCode[error.code.name], error.message)  # raises
        if request is aio.EOF:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the call has no request message")  # raises
        return request

    async def _read(self, context: _Context) -> Any:
        """Return the message of a call, or EOF if there is none. Raises `TooManyRequests`, `DeadlineExceeded`."""
        if len(self._arriving) >= self._max_uploads:
            words = f"{len(self._arriving)} requests are already arriving; retry later or add replicas"
            raise self._refusal(TOO_MANY, words)
        number = self._next = self._next + 1
        arriving = self._arriving[number] = _Arriving(asyncio.timeout(self._timeout_seconds))
        try:
            if not self._room.is_set():
                await self._wait_for_room()
            try:
                async with arriving.limit:
                    return await context.read()
            except TimeoutError as error:
                if arriving.cut_off:
                    words = "the request was cut off while it arrived: the server has no memory"
                    raise self._refusal(CUT_OFF, words) from error
                self._on_refused(TOO_SLOW)
                raise DeadlineExceeded(f"the request did not arrive in {self._timeout_seconds:.0f} s") from error
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
