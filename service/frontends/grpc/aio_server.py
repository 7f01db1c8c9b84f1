"""grpcio's server, mended: calls of unknown methods cannot end it, and a call costs it less.

grpcio decodes the path of a call of an unknown method as UTF-8 in the loop that accepts all calls. One request with
another path ended that loop, and with it the server. Methods that exist are registered, so their paths are known bytes.
All other calls are refused here, without a look at their paths.

grpcio has one loop for all methods. For each call it makes a task, and waits for the tasks of all methods anew. Here
each method has a loop of its own, and a call that is refused at once gets its status from there. There are no
interceptors. Never decides what a method does.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import grpc
from grpc import aio
from grpc._cython import cygrpc  # type: ignore[attr-defined]

if TYPE_CHECKING:
    from grpc.aio import Server
else:  # the public class is abstract
    from grpc.aio._server import Server

_log = logging.getLogger(__name__)


class Refusal(NamedTuple):
    """The status of a call that is refused: what `ServicerContext.abort` takes."""

    code: grpc.StatusCode
    message: str
    trailers: tuple[tuple[str, str | bytes], ...] = ()


AtOnce = Callable[[aio.ServicerContext[Any, Any]], Refusal | None]
"""Looks at a call whose request has not arrived. Returns the refusal of a call that is refused at once."""

_NO_METHOD = Refusal(grpc.StatusCode.UNIMPLEMENTED, "this server has no such method; see the server's proto")

_RUNS = {  # by whether requests and replies are streams
    (False, False): cygrpc._handle_unary_unary_rpc,
    (False, True): cygrpc._handle_unary_stream_rpc,
    (True, False): cygrpc._handle_stream_unary_rpc,
    (True, True): cygrpc._handle_stream_stream_rpc,
}


class AioServer(Server):
    """A server whose methods are all registered: by `add_service`, or by `add_registered_method_handlers`.

    `guarded` wraps the handlers that are registered by the latter, which generated code calls.
    """

    def __init__(self, *, guarded: Callable[[Any], Any], options: Sequence[tuple[str, Any]]) -> None:
        # Not `super().__init__`: it would make an inner server that nobody shuts down.
        self._guarded = guarded
        self._loop = cygrpc.get_working_loop()
        self._server = _Calls(self._loop, None, [], (), tuple(options), None)
        self._server.methods = {}

    def add_service(
        self,
        service: str,
        methods: Sequence[str],
        handler: grpc.GenericRpcHandler,
        at_once: Mapping[str, AtOnce] | None = None,
    ) -> None:
        """Add the `methods` of a service, by their names in the proto. `at_once` refuses calls of some of them."""
        for name in methods:
            path = f"/{service}/{name}"
            self._add(path, handler.service(_Details(path)), (at_once or {}).get(name))

    def add_registered_method_handlers(self, service_name: str, method_handlers: Mapping[str, Any]) -> None:
        """Add the methods of a service, by their names in the proto, each in what `guarded` makes of it."""
        for name, handler in method_handlers.items():
            self._add(f"/{service_name}/{name}", self._guarded(handler), None)

    def _add(self, path: str, handler: Any, at_once: AtOnce | None) -> None:
        self._server.add_registered_method_handlers({path: handler})
        self._server.methods[path.encode()] = _Method(path, handler, at_once)


class _Details(grpc.HandlerCallDetails):
    def __init__(self, method: str) -> None:
        self.method = method
        self.invocation_metadata = ()


class _Method(NamedTuple):
    path: str
    handler: Any
    at_once: AtOnce | None


class _Calls(cygrpc.AioServer):  # type: ignore[misc]  # compiled code without types
    """Accepts the calls of each method in a loop of its own. grpcio's loop waits for the end of the server alone."""

    methods: dict[bytes, _Method]

    def _make_request_call_future(self, method_bytes: bytes | None) -> "asyncio.Task[None]":
        """Return a task that accepts the calls of a method until the server stops. None: those of unknown methods."""
        accepted = self._refuse_unknown() if method_bytes is None else self._accept(method_bytes)
        return asyncio.get_running_loop().create_task(accepted)

    async def _accept(self, method_bytes: bytes) -> None:
        loop, running = asyncio.get_running_loop(), _Running()
        path, handler, at_once = self.methods[method_bytes]
        run = _RUNS[handler.request_streaming, handler.response_streaming]
        while True:
            call = await self._request_registered_call(method_bytes)  # raises when the server stops
            if at_once is not None:
                context = cygrpc._ServicerContext(call, None, None, loop)
                refusal = _looked_at(context, at_once)
                if refusal is not None:
                    running.start(_refuse(context, refusal))
                    continue
            running.start(cygrpc._schedule_rpc_coro(run(handler, call, loop), call, loop, path))

    async def _refuse_unknown(self) -> None:
        loop, running = asyncio.get_running_loop(), _Running()
        while True:
            call = await self._request_call()  # raises when the server stops
            running.start(_refuse(cygrpc._ServicerContext(call, None, None, loop), _NO_METHOD))


class _Running:
    """Tasks that run. The event loop alone would not keep them."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Run `work` in a task."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _looked_at(context: Any, at_once: AtOnce) -> Refusal | None:
    try:
        return at_once(context)
    except Exception:  # noqa: BLE001 - the loop must go on
        _log.exception("this is a bug: a call was not looked at")
        return None


async def _refuse(context: Any, refusal: Refusal) -> None:
    try:
        await context.abort(*refusal)
    except aio.AbortError:  # raised when the status was sent
        pass
    except Exception as error:  # noqa: BLE001 - the caller has hung up
        _log.debug("a call was not refused, because its caller has gone: %s", error)
