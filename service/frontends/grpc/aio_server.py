"""grpcio's server, mended: a call of a method that does not exist cannot end it.

grpcio decodes the path of such a call as UTF-8 in the loop that accepts all calls. One request with another path ended
that loop, and with it the server. Methods that exist are registered, so their paths are known bytes. All other calls
are refused here, without a look at their paths. Never decides what a method does.

There are no interceptors: grpcio would look for the handler of each call in a coroutine of its own.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import grpc
from grpc import aio
from grpc._cython import cygrpc  # type: ignore[attr-defined]

if TYPE_CHECKING:
    from grpc.aio import Server
else:  # the public class is abstract
    from grpc.aio._server import Server

_log = logging.getLogger(__name__)
_NO_METHOD = "this server has no such method; see the server's proto"


class AioServer(Server):
    """A server whose methods are all registered: by `add_service`, or by `add_registered_method_handlers`.

    `guarded` wraps the handlers that are registered by the latter, which generated code calls.
    """

    def __init__(self, *, guarded: Callable[[Any], Any], options: Sequence[tuple[str, Any]]) -> None:
        self._guarded = guarded
        # Not `super().__init__`: it would make an inner server that nobody shuts down.
        self._loop = cygrpc.get_working_loop()
        self._server = _Calls(self._loop, None, [], (), tuple(options), None)

    def add_service(self, service: str, methods: Sequence[str], handler: grpc.GenericRpcHandler) -> None:
        """Add the `methods` of a service, by their names in the proto."""
        found: Mapping[str, Any] = {name: handler.service(_Details(f"/{service}/{name}")) for name in methods}
        super().add_registered_method_handlers(service, dict(found))

    def add_registered_method_handlers(self, service_name: str, method_handlers: dict[str, Any]) -> None:
        """Add the methods of a service, by their names in the proto, each in what `guarded` makes of it."""
        wrapped = {name: self._guarded(handler) for name, handler in method_handlers.items()}
        super().add_registered_method_handlers(service_name, wrapped)


class _Details(grpc.HandlerCallDetails):
    def __init__(self, method: str) -> None:
        self.method = method
        self.invocation_metadata = ()


class _Calls(cygrpc.AioServer):  # type: ignore[misc]  # compiled code without types
    """Hands only calls of registered methods to grpcio's loop, and refuses the others."""

    def _make_request_call_future(self, method_bytes: bytes | None) -> "asyncio.Task[Any]":
        """Return a task that ends with the next call of a method; for None, with the server."""
        if method_bytes is not None:
            return super()._make_request_call_future(method_bytes)  # type: ignore[no-any-return]
        return asyncio.get_running_loop().create_task(self._refuse_unknown())

    async def _refuse_unknown(self) -> None:
        refusals: set[asyncio.Task[None]] = set()
        while True:
            call = await self._request_call()  # raises when the server stops
            refusal = asyncio.get_running_loop().create_task(_refuse(call))
            refusals.add(refusal)  # the loop alone would not keep it
            refusal.add_done_callback(refusals.discard)


async def _refuse(call: Any) -> None:
    context = cygrpc._ServicerContext(call, None, None, asyncio.get_running_loop())
    try:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, _NO_METHOD)
    except aio.AbortError:  # raised when the status was sent
        pass
    except Exception as error:  # noqa: BLE001 - the caller has hung up
        _log.debug("a call of an unknown method was not answered: %s", error)
