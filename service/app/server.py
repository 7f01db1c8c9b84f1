"""The composition root: an engine, and either one `Gateway` around it or a `Supervisor` of several gateway processes.

In: the settings and the models. Out: a server that runs until a signal. Handles signals, the ready file and the ports.
The engine is an embedded TorchServe, or one that another program started.
"""

import asyncio
import contextlib
import gc
import json
import logging
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from handlers.hardware import usable_cores
from service.app import startup_checks
from service.app.gateway import GRPC_STOP_SECONDS, HELD_SECONDS, MOST_HELD_SECONDS, REFUSAL_SECONDS, Gateway
from service.app.replica import ReplicaProcess
from service.app.stop_signal import stop_signal
from service.app.supervisor import Supervisor
from service.core import allocation, foreign_output, ports
from service.core.background import keep_running
from service.core.catalog import Catalog
from service.core.settings import Settings, as_environment, child_environment
from service.core.settings.listeners import DEFAULT_GRPC_PORT, DEFAULT_HTTP_PORT
from service.engines.base import Engine, ModelStatus
from service.engines.torchserve.engine import TorchServeEngine
from service.observability import gpu
from service.observability.metrics import Metrics
from service.observability.tracing import Tracing, start_tracing
from service.serving import rollout_spec

REPLICA_STOP_SECONDS = 10.0  # limit for a gateway process to end after its drain
LOOPBACK = "127.0.0.1"

Result = TypeVar("Result")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Address:
    """Where a running server listens (host:port), and how long its start took."""

    grpc: str
    http: str
    startup_seconds: float


async def serve(
    settings: Settings,
    catalog: Catalog,
    *,
    on_progress: Callable[[Mapping[str, ModelStatus]], None] = lambda statuses: None,
    on_ready: Callable[[Address], None] = lambda address: None,
    on_stopping: Callable[[], None] = lambda: None,
    ready_file: Path | None = None,
    replicas: int = 1,
) -> None:
    """Serve until SIGTERM or SIGINT, then drain. A signal that comes more than a second later ends the process.

    `ready_file` holds the address as JSON while the server answers. `replicas`: the number of gateway processes that
    this process is one of; 1 unless a supervisor started it. Raises `PortTaken`, `TracingUnavailable`,
    `TorchServeFailed`, `SupervisorFailed`, `SettingsError`.
    """
    started_at = time.monotonic()
    settings = startup_checks.check(settings, ready_file)
    settings = allocation.with_gateways(settings, usable_cores())
    tracing = start_tracing(settings.otlp_endpoint, settings.trace_sample_ratio)
    async with contextlib.AsyncExitStack() as stack:
        # A port in use is reported before the models load, not after.
        settings = stack.enter_context(_ports_checked(settings, replicas))
        stopped = stop_signal()
        settings = _workers_chosen(settings, catalog)
        metrics = Metrics()
        if replicas == 1:  # the supervisor reports the GPU for all replicas
            gpu.watch(metrics.registry)
        started = _started_engine(settings, catalog, metrics, on_progress)
        engine = await _unless(stopped, stack.enter_async_context(started))
        if engine is None:
            return
        if settings.gateway_processes > 1:
            running = await _unless(stopped, _start_supervisor(settings, engine, metrics))
        else:
            stack.enter_context(foreign_output.logged())
            running = await _start_gateway(settings, catalog, engine, metrics, tracing, replicas)
        if running is None:
            return
        address = Address(grpc=running.grpc, http=running.http, startup_seconds=time.monotonic() - started_at)
        _log.info("ready", extra={"grpc": running.grpc, "http": running.http})
        if ready_file is not None:
            _write_ready_file(ready_file, address)
        on_ready(address)
        gc.collect()
        gc.freeze()  # present objects live as long as the process, so the collector need not visit them again
        try:
            await asyncio.wait({stopped, running.failure}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            on_stopping()
            if ready_file is not None:
                ready_file.unlink(missing_ok=True)  # noqa: ASYNC240 - one small file
            running.failure.cancel()
            await asyncio.gather(running.failure, return_exceptions=True)
            await running.stop()
        if not running.failure.cancelled():
            running.failure.result()  # raises the failure


@dataclass(frozen=True, slots=True)
class _Running:
    """A running gateway, or a supervisor of several. `failure` raises when it cannot go on, and never returns."""

    grpc: str
    http: str
    failure: asyncio.Future[None]
    stop: Callable[[], Awaitable[None]]


def _workers_chosen(settings: Settings, catalog: Catalog) -> Settings:
    """Return the settings with numbers of workers and threads, if this server starts TorchServe."""
    if settings.torchserve_inference is not None:
        return settings
    machine = allocation.Machine.here(child_environment())
    settings = allocation.resolved(settings, machine, models=len(catalog.cards))
    _log.info("%d workers per model, %d threads each", settings.workers_per_model, settings.worker_threads)
    return settings


async def _start_gateway(
    settings: Settings,
    catalog: Catalog,
    engine: Engine,
    metrics: Metrics,
    tracing: Tracing,
    replicas: int,
) -> _Running:
    gateway = Gateway(
        settings=settings, catalog=catalog, engine=engine, metrics=metrics, tracing=tracing, replicas=replicas
    )
    grpc_address, http_address = await gateway.start()
    return _Running(grpc_address, http_address, asyncio.get_running_loop().create_future(), gateway.stop)


async def _start_supervisor(settings: Settings, engine: Engine, metrics: Metrics) -> _Running:
    """Start gateway processes that use the engine of this process. Each has its probes on a free local port."""
    processes = settings.gateway_processes
    replica_settings = allocation.shared_out(settings, usable_cores()).model_copy(
        update={
            "gateway_processes": 1,
            "http_host": LOOPBACK,
            "http_port": 0,
            **engine.replica_settings,
        }
    )
    environment = child_environment(**as_environment(replica_settings))

    def spawn(number: int) -> Awaitable[ReplicaProcess]:
        command = [sys.executable, "-m", "service", "gateway-process", str(number), str(processes)]
        return ReplicaProcess.spawn(command, environment)

    stop_seconds = settings.drain_delay_seconds + settings.drain_timeout_seconds + REFUSAL_SECONDS + GRPC_STOP_SECONDS
    stop_seconds += MOST_HELD_SECONDS + HELD_SECONDS
    http_port = ports.choose(settings.http_host, settings.http_port, DEFAULT_HTTP_PORT)
    supervisor = Supervisor(
        processes=processes,
        spawn=spawn,
        metrics=metrics,
        drain_seconds=stop_seconds + REPLICA_STOP_SECONDS,
        http=(settings.http_host, http_port),
        max_http_connections=settings.max_http_connections,
        clock=time.monotonic,
    )
    http_address = await supervisor.start()
    failure = asyncio.create_task(supervisor.run())
    return _Running(
        ports.address(settings.grpc_host, settings.grpc_port or DEFAULT_GRPC_PORT),
        http_address,
        failure,
        supervisor.stop,
    )


@contextlib.contextmanager
def _ports_checked(settings: Settings, replicas: int) -> Iterator[Settings]:
    """Check that the ports are free. Yields the settings, with a reserved gRPC port if several processes will share it.

    Raises `PortTaken`.
    """
    if settings.http_port:
        ports.choose(settings.http_host, settings.http_port, DEFAULT_HTTP_PORT)
    if settings.gateway_processes > 1:
        with ports.reserved(settings.grpc_host, settings.grpc_port, DEFAULT_GRPC_PORT) as port:
            yield settings.model_copy(update={"grpc_port": port})
        return
    if settings.grpc_port and replicas == 1:
        ports.choose(settings.grpc_host, settings.grpc_port, DEFAULT_GRPC_PORT)
    yield settings


async def _unless(stopped: asyncio.Task[None], starting: Awaitable[Result]) -> Result | None:
    """Wait for `starting` and return its result. If `stopped` ends first, cancel it and return None."""
    started = asyncio.ensure_future(starting)
    both: list[asyncio.Future[Any]] = [started, stopped]
    await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
    if started.done():
        return started.result()
    started.cancel()
    await asyncio.gather(started, return_exceptions=True)
    return None


@contextlib.asynccontextmanager
async def _started_engine(
    settings: Settings,
    catalog: Catalog,
    metrics: Metrics,
    on_progress: Callable[[Mapping[str, ModelStatus]], None],
) -> AsyncIterator[Engine]:
    engine = TorchServeEngine.from_settings(
        settings,
        catalog,
        on_progress=on_progress,
        on_restart=metrics.workers.backend_restarted,
        catalog_at_restart=partial(rollout_spec.served, settings),
        on_quarantine=metrics.workers.quarantined,
        on_replaced=metrics.workers.replaced,
    )
    await engine.start()
    supervised = keep_running("engine", engine.supervise, on_failure=metrics.background_failed)
    supervising = asyncio.create_task(supervised)
    try:
        yield engine
    finally:
        # First, so that `supervise` does not take the stop for a crash.
        await engine.stop()
        await supervising


def _write_ready_file(path: Path, address: Address) -> None:
    content = {"grpc": address.grpc, "http": address.http, "startup_seconds": round(address.startup_seconds, 3)}
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(json.dumps(content) + "\n")
    temporary.replace(path)
