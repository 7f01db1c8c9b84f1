"""The composition root: the backend (a TorchServe of its own, or one started elsewhere) and the `Gateway` around it.

Adds signals, and the file that tells others where the gateway listens. With several gateway processes, the `Gateway` is
in each of them, and this one has a `Fleet` in its place.
"""

import asyncio
import contextlib
import gc
import json
import logging
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from handlers.hardware import usable_cores
from service import allocation, gpu, ports, rollout
from service.backend import ModelStatus
from service.catalog import Catalog, CatalogError
from service.embedded import EmbeddedTorchServe
from service.fleet import Fleet
from service.gateway import GRPC_STOP_SECONDS, REFUSAL_SECONDS, Gateway
from service.launch import MAX_MESSAGE_BYTES, EmbeddedConfig, config_for
from service.member import MemberProcess
from service.metrics import Metrics
from service.settings import DEFAULT_GRPC_PORT, DEFAULT_HTTP_PORT, Settings, as_environment, child_environment
from service.torchserve import TorchServeBackend, TorchServeEndpoint
from service.tracing import Tracing, start_tracing

FLEET_STOP_SECONDS = 10.0  # of a gateway process, beside its drain: batches that are not awaited any more, its pools
LOOPBACK = "127.0.0.1"

Result = TypeVar("Result")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Address:
    """Where a running gateway listens, and how long it took to get there."""

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
    peers: int = 1,
) -> None:
    """Serve until SIGTERM or SIGINT, then drain. A second signal ends the process at once.

    Raises `PortTaken`, `TracingUnavailable`, `EmbeddedError`, `FleetFailed`, `SettingsError`. `ready_file` holds the
    address as JSON while calls are answered. `peers`: see `Gateway`.
    """
    began = time.monotonic()
    settings = allocation.with_gateways(settings, usable_cores())
    tracing = start_tracing(settings.otlp_endpoint, settings.trace_sample_ratio)
    async with contextlib.AsyncExitStack() as stack:
        # A port that is taken is told before the models load, not after.
        settings = stack.enter_context(_ports_checked(settings, peers))
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, _on_signal, stop, number)
        stopped = asyncio.create_task(_set(stop))
        if settings.torchserve_inference is None:
            machine = allocation.Machine.here(child_environment())
            settings = allocation.resolved(settings, machine, models=len(catalog.cards))
            _log.info("%d workers per model, %d threads each", settings.workers_per_model, settings.worker_threads)
        metrics = Metrics()
        if peers == 1:  # one page of them all tells of a GPU once
            gpu.watch(metrics.registry)
        torchserve = _torchserve(settings, catalog, metrics, on_progress)
        endpoint = await _unless(stopped, stack.enter_async_context(torchserve))
        if endpoint is None:
            return
        if settings.gateway_processes > 1:
            front = await _unless(stopped, _fleet(settings, endpoint, metrics))
        else:
            front = await _gateway(settings, catalog, endpoint, metrics, tracing, peers)
        if front is None:
            return
        address = Address(grpc=front.grpc, http=front.http, startup_seconds=time.monotonic() - began)
        _log.info("ready", extra={"grpc": front.grpc, "http": front.http})
        if ready_file is not None:
            _write_ready_file(ready_file, address)
        on_ready(address)
        gc.collect()
        gc.freeze()  # what is there now stays: there is no use in looking through it again and again
        try:
            await asyncio.wait({stopped, front.running}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            on_stopping()
            if ready_file is not None:
                ready_file.unlink(missing_ok=True)  # noqa: ASYNC240 - one small file
            front.running.cancel()
            await asyncio.gather(front.running, return_exceptions=True)
            await front.stop()
        if not front.running.cancelled():
            front.running.result()  # raises why it ended


@dataclass(frozen=True, slots=True)
class _Front:
    """What answers calls: a gateway, or several in processes of their own. `running` ends by itself only on failure."""

    grpc: str
    http: str
    running: asyncio.Future[None]
    stop: Callable[[], Awaitable[None]]


async def _gateway(
    settings: Settings,
    catalog: Catalog,
    endpoint: TorchServeEndpoint,
    metrics: Metrics,
    tracing: Tracing,
    peers: int,
) -> _Front:
    backend = TorchServeBackend(endpoint)
    gateway = Gateway(
        settings=settings, catalog=catalog, backend=backend, metrics=metrics, tracing=tracing, peers=peers
    )
    grpc_address, http_address = await gateway.start()
    return _Front(grpc_address, http_address, asyncio.get_running_loop().create_future(), gateway.stop)


async def _fleet(settings: Settings, endpoint: TorchServeEndpoint, metrics: Metrics) -> _Front:
    """The gateway processes, each as if TorchServe were started elsewhere, with probes of its own on a free port."""
    processes = settings.gateway_processes
    theirs = allocation.shared_out(settings, usable_cores()).model_copy(
        update={
            "gateway_processes": 1,
            "http_host": LOOPBACK,
            "http_port": 0,
            "torchserve_inference": endpoint.inference_address,
            "torchserve_management": endpoint.management_address,
            "torchserve_key_file": endpoint.key_file,
        }
    )
    environment = child_environment(**as_environment(theirs))

    def spawn(number: int) -> Awaitable[MemberProcess]:
        command = [sys.executable, "-m", "service", "gateway-process", str(number), str(processes)]
        return MemberProcess.spawn(command, environment)

    stop_seconds = settings.drain_delay_seconds + settings.drain_timeout_seconds + REFUSAL_SECONDS + GRPC_STOP_SECONDS
    http_port = ports.choose(settings.http_host, settings.http_port, DEFAULT_HTTP_PORT)
    fleet = Fleet(
        processes=processes,
        spawn=spawn,
        metrics=metrics,
        drain_seconds=stop_seconds + FLEET_STOP_SECONDS,
        http=(settings.http_host, http_port),
        clock=time.monotonic,
    )
    http_address = await fleet.start()
    running = asyncio.create_task(fleet.run())
    return _Front(f"{settings.grpc_host}:{settings.grpc_port}", http_address, running, fleet.stop)


@contextlib.contextmanager
def _ports_checked(settings: Settings, peers: int) -> Iterator[Settings]:
    """The settings, with a gRPC port that is held where several processes will share it. Raises `PortTaken`."""
    if settings.http_port:
        ports.choose(settings.http_host, settings.http_port, DEFAULT_HTTP_PORT)
    if settings.gateway_processes > 1:
        with ports.reserved(settings.grpc_host, settings.grpc_port, DEFAULT_GRPC_PORT) as port:
            yield settings.model_copy(update={"grpc_port": port})
        return
    if settings.grpc_port and peers == 1:
        ports.choose(settings.grpc_host, settings.grpc_port, DEFAULT_GRPC_PORT)
    yield settings


async def _set(event: asyncio.Event) -> None:
    await event.wait()


async def _unless(stopped: asyncio.Task[None], starting: Awaitable[Result]) -> Result | None:
    """What was started; None, and it is cancelled, where we are stopped first."""
    started = asyncio.ensure_future(starting)
    both: list[asyncio.Future[Any]] = [started, stopped]
    await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
    if started.done():
        return started.result()
    started.cancel()
    await asyncio.gather(started, return_exceptions=True)
    return None


def _renewed(settings: Settings, before: EmbeddedConfig) -> EmbeddedConfig:
    """What a TorchServe that starts again is to run: the versions that are stable now, or else what it ran before."""
    try:
        return config_for(settings, rollout.served(settings))
    except CatalogError as error:
        _log.warning("roll-out: %s; TorchServe starts again as before", error)
        return before


@contextlib.asynccontextmanager
async def _torchserve(
    settings: Settings,
    catalog: Catalog,
    metrics: Metrics,
    on_progress: Callable[[Mapping[str, ModelStatus]], None],
) -> AsyncIterator[TorchServeEndpoint]:
    if settings.torchserve_inference is not None and settings.torchserve_management is not None:
        yield TorchServeEndpoint(
            inference_address=settings.torchserve_inference,
            management_address=settings.torchserve_management,
            key_file=settings.torchserve_key_file,
            max_message_bytes=MAX_MESSAGE_BYTES,
        )
        return
    config = config_for(settings, catalog)
    torchserve = EmbeddedTorchServe(
        config, on_progress=on_progress, on_restart=metrics.backend_restarted, renewed=partial(_renewed, settings)
    )
    endpoint = await torchserve.start()
    supervisor = asyncio.create_task(torchserve.supervise())
    try:
        yield endpoint
    finally:
        # First, so that the supervisor does not take the stop for a crash.
        await torchserve.stop()
        await supervisor


def _on_signal(stop: asyncio.Event, number: int) -> None:
    if stop.is_set():
        os._exit(128 + number)  # the leash takes TorchServe along
    stop.set()


def _write_ready_file(path: Path, address: Address) -> None:
    content = {"grpc": address.grpc, "http": address.http, "startup_seconds": round(address.startup_seconds, 3)}
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(json.dumps(content) + "\n")
    temporary.replace(path)
