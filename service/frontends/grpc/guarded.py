"""Health and reflection for callers only: the same services, with a check of the caller before each call.

In: the services and an `AccessControl`. Out: services that refuse with UNAUTHENTICATED. Their calls count against no
limit of a caller.
"""

import uuid
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from typing import Any, cast

import grpc
from google.protobuf.message import Message
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.reflection import aio as reflection_aio

from service.access.control import AccessControl
from service.core.errors import ServiceError
from service.frontends.grpc.certificates import certificate_names
from service.frontends.grpc.status import status_code, status_trailer

_Context = aio.ServicerContext[Any, Any]


def refusal(context: _Context, access: AccessControl) -> ServiceError | None:
    """Return why the caller is refused, None if it may call."""
    names = certificate_names(context) if access.checks_certificates else ()
    try:
        access.identify(_metadata(context), names)
    except ServiceError as error:
        return error
    return None


class GuardedHealth(health_pb2_grpc.HealthServicer):
    """Health for callers. `servicer` answers."""

    def __init__(self, servicer: health_pb2_grpc.HealthServicer, access: AccessControl) -> None:
        self._servicer: Any = servicer
        self._access = access

    async def Check(  # noqa: N802 - the name in the proto
        self, request: health_pb2.HealthCheckRequest, context: _Context
    ) -> health_pb2.HealthCheckResponse:
        """Return the state of a service."""
        await _check(context, self._access)
        return cast(health_pb2.HealthCheckResponse, await self._servicer.Check(request, context))

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: _Context) -> None:  # noqa: N802
        """Send the state of a service now and after each change."""
        if refusal(context, self._access) is not None:
            # Clients that balance by health cannot add credentials to a watch. After UNIMPLEMENTED they use the
            # connection without health reports; after UNAUTHENTICATED they would not use it at all.
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "health watches need a client certificate or API key")
        await self._servicer.Watch(request, context)


class GuardedReflection:
    """Reflection of `services` for callers, with the method of grpc.reflection.v1alpha.ServerReflection."""

    def __init__(self, services: Iterable[str], access: AccessControl) -> None:
        self._servicer: Any = reflection_aio.ReflectionServicer(services)
        self._access = access

    async def ServerReflectionInfo(  # noqa: N802 - the name in the proto
        self, request_iterator: AsyncIterable[Message], context: _Context
    ) -> AsyncIterator[Message]:
        """Answer questions about the methods of the server."""
        await _check(context, self._access)
        async for reply in self._servicer.ServerReflectionInfo(request_iterator, context):
            yield reply


async def _check(context: _Context, access: AccessControl) -> None:
    error = refusal(context, access)
    if error is not None:
        trailer = status_trailer(error, request_id=uuid.uuid4().hex)
        await context.abort(status_code(error), error.message, (trailer,))


def _metadata(context: _Context) -> Iterable[tuple[str, str | bytes]]:
    return cast(Iterable[tuple[str, str | bytes]], context.invocation_metadata() or ())
