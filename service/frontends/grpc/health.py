"""The gRPC health service (grpc.health.v1): reports of `service.serving.health` in, serving states out.

The empty service name is SERVING while at least one model answers: probes and load balancers ask it, and a model that
does not answer must not keep calls from the other models. `ALL_MODELS` is SERVING while every model answers, a model's
name while the model answers. The name of VisionService is SERVING until the server drains: load balancers in clients
watch it.

`publish` never waits for a client. A watcher that does not read gets only the latest state when it reads again. The
servicer of grpcio-health-checking is not used: it holds a lock while it writes to a client, and `set` needs that lock.
"""

import asyncio
from typing import Any

import grpc
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from service.frontends.grpc.method_handlers import SERVICE
from service.serving.health import HealthReport

ALL_MODELS = "mobilevision.v1.AllModels"  # the name of no service: whether every model answers
MOST_NAME_CHARACTERS = 256  # longer service names are refused, because a watch holds its request in memory

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN

_Context = aio.ServicerContext[Any, Any]


class GrpcHealth:
    """The states that `servicer` answers with. `max_watches` limits the watches that are open at once."""

    def __init__(self, max_watches: int) -> None:
        self.servicer = HealthServicer(max_watches)

    def publish(self, report: HealthReport) -> None:
        """Answer health checks and watches with this report from now on. Returns at once."""
        states = {model: _state(why is None and not report.draining) for model, why in report.why_not_ready.items()}
        states |= {"": _state(report.any_ready), ALL_MODELS: _state(report.all_ready)}
        self.servicer.publish(states | {SERVICE: _state(not report.draining)})

    def close(self) -> None:
        """End all watches. gRPC must cancel the watches of clients that do not read."""
        self.servicer.close()


class HealthServicer(health_pb2_grpc.HealthServicer):
    """The methods of grpc.health.v1.Health. For one event loop."""

    def __init__(self, max_watches: int) -> None:
        self._max_watches = max_watches
        self._states: dict[str, int] = {}
        self._changes: set[asyncio.Event] = set()  # one per watch
        self._closed = False

    @property
    def watches(self) -> int:
        """The number of open watches."""
        return len(self._changes)

    def publish(self, states: dict[str, int]) -> None:
        """Replace all states, by service name."""
        if states == self._states:
            return
        self._states = states
        self._wake_watches()

    def close(self) -> None:
        """End all watches that do not wait for their client."""
        self._closed = True
        self._wake_watches()

    async def Check(  # noqa: N802 - the name in the proto
        self, request: health_pb2.HealthCheckRequest, context: _Context
    ) -> health_pb2.HealthCheckResponse:
        """Return the state of a service. NOT_FOUND if there is no service of that name."""
        state = self._states.get(request.service)
        if state is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "there is no service of this name")
        return health_pb2.HealthCheckResponse(status=state)

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: _Context) -> None:  # noqa: N802
        """Send the state of a service now and after each change."""
        if len(request.service) > MOST_NAME_CHARACTERS:
            await context.abort(
                grpc.StatusCode.INVALID_ARGUMENT, f"the service name has more than {MOST_NAME_CHARACTERS} characters"
            )
        if len(self._changes) >= self._max_watches:
            # gRPC clients use a connection without health reports after this code. After any other code they do not
            # use the connection at all, so that one client with many watches could keep the others away.
            await context.abort(
                grpc.StatusCode.UNIMPLEMENTED,
                f"the server has {self._max_watches} health watches, its limit; call Check",
            )
        changed = asyncio.Event()
        self._changes.add(changed)
        sent: int | None = None
        try:
            while not self._closed:
                changed.clear()
                state = self._states.get(request.service, _UNKNOWN)
                if state != sent:
                    await context.write(health_pb2.HealthCheckResponse(status=state))
                    sent = state
                await changed.wait()
        finally:
            self._changes.discard(changed)

    def _wake_watches(self) -> None:
        for changed in self._changes:
            changed.set()


def _state(serving: bool) -> int:
    return _SERVING if serving else _NOT_SERVING
