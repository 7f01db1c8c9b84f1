"""Connects the methods of VisionService to gRPC, by way of `service.frontends.call`.

In: functions from a proto request and a `CallScope` to a proto reply. Out: a handler to add to a gRPC server, which
sends the reply with trailers, or a gRPC status with its details. Never decides what a call does or how it is reported.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import grpc
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from grpc import aio

from service.core.call_scope import CallScope
from service.core.errors import Cancelled, DeadlineExceeded, RequestMalformed, ServiceError
from service.frontends.call import Answered, CallHandler, Failed, IncomingCall, Pictures
from service.frontends.grpc.aio_server import AtOnce, Refusal
from service.frontends.grpc.certificates import certificate_names
from service.frontends.grpc.peer import host_of
from service.frontends.grpc.status import status_code, status_trailer
from service.frontends.request_bounds import Method
from service.frontends.servicer import MODEL_KEY, FirstLook
from service.frontends.streams import Read, Write
from service.pb.mobilevision.v1 import vision_pb2

Context = aio.ServicerContext[Any, Any]
ReadMessage = Callable[[Context], Awaitable[Any]]
"""Returns the next message of a call, or `aio.EOF`. Raises a `ServiceError` if it does not arrive."""
PicturesMethod = Callable[[Any, Pictures], Awaitable[Any]]
"""Takes a request with several pictures, returns the reply. Raises a `ServiceError`."""
StreamMethod = Callable[[Read, Write, Pictures], Awaitable[None]]
"""Reads requests and writes replies until the stream ends. Raises a `ServiceError`."""

_DESCRIPTOR = vision_pb2.DESCRIPTOR.services_by_name["VisionService"]
SERVICE: str = _DESCRIPTOR.full_name
METHODS: tuple[str, ...] = tuple(_DESCRIPTOR.methods_by_name)
# A call whose caller resets it looks like one without a message for a moment, until gRPC cancels its handler.
_RESET_SECONDS = 0.1


async def _read_at_once(context: Context) -> Any:
    return await context.read()


class MethodHandlers:
    """Makes the handlers of methods for a gRPC server, by their names in the proto. `calls` runs the calls.

    `read` reads the request of a call, `read_next` one of a stream.
    """

    def __init__(
        self, calls: CallHandler, *, read: ReadMessage = _read_at_once, read_next: ReadMessage = _read_at_once
    ) -> None:
        self._calls = calls
        self._read = read
        self._read_next = read_next

    def at_once(self, name: str, first_look: FirstLook) -> AtOnce:
        """Return what refuses calls of a method before their request arrives, where their metadata has hints."""

        def refusal(context: Context) -> Refusal | None:
            metadata = context.invocation_metadata() or ()
            if not any(key == MODEL_KEY for key, _ in metadata):
                return None
            call = self._incoming(name, context, None)
            failed = self._calls.refused_at_once(call, lambda scope: first_look(metadata, scope))
            return None if failed is None else _refusal(failed)

        return refusal

    def unary(self, name: str, method: Method) -> "grpc.RpcMethodHandler[Any, Any]":
        """Return the handler of a method with one request."""

        async def behaviour(_: Any, context: Context) -> Any:
            # gRPC cancels this coroutine when the caller hangs up and when its deadline passes.
            held: list[Any] = []

            async def work(scope: CallScope) -> Any:
                # The method frees the picture in the request long before the call ends.
                return await method(_taken(held), scope)

            return await _answered(await self._calls.handle(self._incoming(name, context, held), work), context)

        return _handler(name, behaviour)

    def pictures(self, name: str, method: PicturesMethod) -> "grpc.RpcMethodHandler[Any, Any]":
        """Return the handler of a method with one request of several pictures."""

        async def behaviour(_: Any, context: Context) -> Any:
            held: list[Any] = []

            async def work(pictures: Pictures) -> Any:
                return await method(_taken(held), pictures)

            outcome = await self._calls.handle_pictures(self._incoming(name, context, held), work)
            return await _answered(outcome, context)

        return _handler(name, behaviour)

    def stream(
        self, name: str, method: StreamMethod, *, max_seconds: float, write_seconds: float
    ) -> "grpc.RpcMethodHandler[Any, Any]":
        """Return the handler of a method with a stream of requests and a stream of replies.

        A stream lasts `max_seconds` at most. It ends if its caller does not take a reply within `write_seconds`.
        """

        async def behaviour(_: Any, context: Context) -> None:
            async def read() -> Any:
                message = await _connected(self._read_next(context))
                return None if message is aio.EOF else _taken([message])

            async def write(reply: Message) -> None:
                try:
                    async with asyncio.timeout(write_seconds):
                        await _connected(context.write(reply))
                except TimeoutError as error:
                    raise DeadlineExceeded(f"the caller did not take an answer in {write_seconds:.0f} s") from error

            async def work(pictures: Pictures) -> None:
                await method(read, write, pictures)

            call = self._incoming(name, context, None)
            await _answered(await self._calls.handle_pictures(call, work, max_seconds=max_seconds), context)

        described = _DESCRIPTOR.methods_by_name[name]
        return grpc.stream_stream_rpc_method_handler(
            behaviour,
            request_deserializer=_reader(described.input_type),
            response_serializer=GetMessageClass(described.output_type).SerializeToString,
        )

    def _incoming(self, name: str, context: Context, held: list[Any] | None) -> IncomingCall:
        """Return a call whose request is put into `held` when it has arrived. None: its requests are read elsewhere."""

        async def arrives() -> int:
            assert held is not None  # noqa: S101 - for mypy
            message = await _connected(self._read(context))
            if message is aio.EOF:
                await asyncio.sleep(_RESET_SECONDS)
                raise RequestMalformed("the call has no request message")
            arrived: _Arrived = message
            held.append(arrived)
            return arrived.size

        return IncomingCall(
            service=SERVICE,
            method=name,
            metadata=context.invocation_metadata() or (),
            remaining_seconds=context.time_remaining,
            certificate_names=certificate_names(context) if self._calls.access.checks_certificates else (),
            host=host_of(context.peer()),
            arrives=None if held is None else arrives,
        )


def vision_service_handler(methods: Mapping[str, "grpc.RpcMethodHandler[Any, Any]"]) -> grpc.GenericRpcHandler:
    """Return a handler of VisionService, of handlers by the names of their methods. gRPC refuses other methods."""
    return grpc.method_handlers_generic_handler(SERVICE, dict(methods))


class _Arrived:
    """A message that arrived: the request, or why it cannot be read. `size` is that of the message, in bytes."""

    __slots__ = ("request", "size")

    def __init__(self, request: Message | RequestMalformed, size: int) -> None:
        self.request = request
        self.size = size


def _taken(held: list[_Arrived]) -> Any:
    """Return the request in `held`, and keep nothing of it. Raises `RequestMalformed`."""
    request = held.pop().request
    if isinstance(request, ServiceError):
        raise request
    return request


async def _connected(step: Awaitable[Any]) -> Any:
    """Wait for a step of gRPC. Raises `Cancelled` if the connection or the server ended meanwhile."""
    try:
        return await step
    except aio.BaseError as error:
        raise Cancelled("the connection ended during the call") from error


async def _answered(outcome: Answered[Any] | Failed, context: Context) -> Any:
    if isinstance(outcome, Failed):
        await context.abort(*_refusal(outcome))  # raises
    context.set_trailing_metadata(outcome.metadata)
    return outcome.reply


def _refusal(failed: Failed) -> Refusal:
    error = failed.error
    details = status_trailer(error, request_id=failed.request_id)
    trailers: tuple[tuple[str, str | bytes], ...] = (*failed.metadata, details)
    return Refusal(status_code(error), error.message, trailers)


def _handler(name: str, behaviour: Any) -> "grpc.RpcMethodHandler[Any, Any]":
    described = _DESCRIPTOR.methods_by_name[name]
    # For gRPC the request is a stream of one message, so that the message is read where this module says.
    return grpc.stream_unary_rpc_method_handler(
        behaviour,
        request_deserializer=_reader(described.input_type),
        response_serializer=GetMessageClass(described.output_type).SerializeToString,
    )


def _reader(described: Descriptor) -> Callable[[bytes], _Arrived]:
    """Return a function that reads a request.

    gRPC answers an exception here with UNKNOWN, the text of the exception and no details.
    """
    message = GetMessageClass(described)

    def read(raw: bytes) -> _Arrived:
        try:
            return _Arrived(message.FromString(raw), len(raw))
        except DecodeError:
            words = f"the request is not a valid {described.full_name}; see the server's proto"
            return _Arrived(RequestMalformed(words), len(raw))

    return read
