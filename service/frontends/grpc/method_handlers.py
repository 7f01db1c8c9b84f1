"""Connects the methods of VisionService to gRPC, by way of `service.frontends.call`.

In: functions from a proto request and a `CallScope` to a proto reply. Out: a handler to add to a gRPC server, which
sends the reply with trailers, or a gRPC status with its details. Never decides what a call does or how it is reported.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import grpc
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from grpc import aio

from service.core.call_scope import CallScope
from service.core.errors import RequestMalformed, ServiceError
from service.frontends.call import CallHandler, Failed, IncomingCall
from service.frontends.grpc.certificates import certificate_names
from service.frontends.grpc.status import STATUS_DETAILS_KEY, status_code, to_status
from service.pb.mobilevision.v1 import vision_pb2

Context = aio.ServicerContext[Any, Any]
Method = Callable[[Any, CallScope], Awaitable[Any]]

_DESCRIPTOR = vision_pb2.DESCRIPTOR.services_by_name["VisionService"]
SERVICE: str = _DESCRIPTOR.full_name
METHODS: tuple[str, ...] = tuple(_DESCRIPTOR.methods_by_name)


def vision_service_handler(methods: Mapping[str, Method], calls: CallHandler) -> grpc.GenericRpcHandler:
    """Return a handler for `methods`, by their names in the proto. All are unary. gRPC refuses other methods."""
    return grpc.method_handlers_generic_handler(
        SERVICE, {name: _method_handler(name, method, calls) for name, method in methods.items()}
    )


def _method_handler(name: str, method: Method, calls: CallHandler) -> "grpc.RpcMethodHandler[Any, Any]":
    async def behaviour(request: Any, context: Context) -> Any:
        # gRPC cancels this coroutine when the caller hangs up and when its deadline passes.
        call = IncomingCall(
            service=SERVICE,
            method=name,
            metadata=context.invocation_metadata() or (),
            remaining_seconds=context.time_remaining,
            certificate_names=certificate_names(context) if calls.access.checks_certificates else (),
            request_bytes=request.ByteSize() if isinstance(request, Message) else 0,
        )

        held = [request]
        del request  # the method frees the picture in it long before the call ends

        async def work(scope: CallScope) -> Any:
            if isinstance(held[0], ServiceError):  # malformed, or refused while it arrived
                raise held[0]
            return await method(held.pop(), scope)

        outcome = await calls.handle(call, work)
        if isinstance(outcome, Failed):
            details = to_status(outcome.error, request_id=outcome.request_id).SerializeToString()
            trailers = (*outcome.metadata, (STATUS_DETAILS_KEY, details))
            await context.abort(status_code(outcome.error), outcome.error.message, trailers)  # raises
        context.set_trailing_metadata(outcome.metadata)
        return outcome.reply

    described = _DESCRIPTOR.methods_by_name[name]
    return grpc.unary_unary_rpc_method_handler(
        behaviour,
        request_deserializer=_reader(described.input_type),
        response_serializer=GetMessageClass(described.output_type).SerializeToString,
    )


def _reader(described: Descriptor) -> Callable[[bytes], Message | RequestMalformed]:
    """Return a function that reads a request, or returns why it cannot be read.

    gRPC answers an exception here with UNKNOWN, the text of the exception and no details.
    """
    message = GetMessageClass(described)

    def read(raw: bytes) -> Message | RequestMalformed:
        try:
            return message.FromString(raw)
        except DecodeError:
            return RequestMalformed(f"the request is not a valid {described.full_name}; see the server's proto")

    return read
