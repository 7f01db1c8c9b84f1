"""The composition root: constructs every part, wires them, starts and stops them in order. Nobody else constructs.

`Gateway` is everything around a backend; `serve` adds the backend (a TorchServe of its own, or one started elsewhere),
signals, and the file that tells others where the gateway listens.
"""

import asyncio
import contextlib
import errno
import json
import logging
import math
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from handlers.hardware import usable_cores
from model_store.card import Card
from service import allocation, gpu
from service.api import VisionApi
from service.backend import Backend, ModelStatus
from service.batcher import Batcher
from service.carrier import Carrier
from service.catalog import Catalog
from service.decode import Decoder, Limits
from service.dispatch import Dispatcher
from service.embedded import EmbeddedTorchServe
from service.health import SERVICE, Health
from service.interceptors import Door
from service.launch import MAX_MESSAGE_BYTES, config_for
from service.metrics import Metrics
from service.pb.mobilevision.v1 import vision_pb2_grpc
from service.pipeline import Pipeline
from service.probes import Heartbeat, ProbeServer
from service.region import Region, SharedDirectory, Size, shares
from service.settings import DEFAULT_GRPC_PORT, DEFAULT_HTTP_PORT, Settings, child_environment
from service.tls import server_credentials
from service.torchserve import TorchServeBackend, TorchServeEndpoint
from service.tracing import OFF, Tracing, start_tracing

RETRY_AFTER_SECONDS = 1.0
HEARTBEAT_SECONDS = 0.5
REFUSAL_SECONDS = 0.5  # long enough for busy clients to be told to go elsewhere
GRPC_STOP_SECONDS = 1.0  # replies on their way out, health watchers

_log = logging.getLogger(__name__)


class PortTaken(Exception):
    """A port the operator asked for is in use; the message names it."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a running gateway listens, and how long it took to get there."""

    grpc: str
    http: str
    startup_seconds: float


class Gateway:
    """Everything around a backend. Construct inside a running event loop, `start`, then `stop`."""

    def __init__(
        self, *, settings: Settings, catalog: Catalog, backend: Backend, metrics: Metrics, tracing: Tracing = OFF
    ) -> None:
        self._settings = settings
        self._backend = backend
        self._workers = settings.workers_per_model or 1  # where nothing is known of those of another's TorchServe
        clock = asyncio.get_running_loop().time
        threads = settings.decode_threads or usable_cores()
        self._decoder = Decoder(
            limits=Limits(max_bytes=settings.max_image_bytes, max_pixels=settings.max_image_pixels), threads=threads
        )
        self._render_pool = ThreadPoolExecutor(threads, thread_name_prefix="render")
        self._batchers: dict[str, Batcher] = {}
        self.health = Health(
            backend=backend,
            progress=self._batchers,
            models=[card.name for card in catalog.cards],
            metrics=metrics,
            poll_seconds=settings.health_poll_seconds,
            stuck_seconds=settings.batch_timeout_seconds / 2,
        )
        self._shm: SharedDirectory | None = None
        regions = self._regions(catalog, metrics, threads)
        self._carriers = {
            card.name: Carrier(
                card=card,
                backend=backend,
                region=regions.get(card.name),
                clock=clock,
                on_refused=partial(metrics.shm_refused, card.name),
            )
            for card in catalog.cards
        }
        for card in catalog.cards:
            self._batchers[card.name] = self._batcher(card, clock, metrics)
            region, carrier = regions.get(card.name), self._carriers[card.name]
            slots = {} if region is None else {"input": region.inputs.usage, "output": region.outputs.usage}
            metrics.watch_shared_memory(card.name, in_use=partial(getattr, carrier, "shared"), slots=slots)
        self._pipeline = Pipeline(
            catalog=catalog,
            decoder=self._decoder,
            batchers=self._batchers,
            carriers=self._carriers,
            health=self.health,
            render_pool=self._render_pool,
            max_inflight=settings.max_inflight_requests,
            retry_after_seconds=RETRY_AFTER_SECONDS,
        )
        metrics.watch_inflight(lambda: self._pipeline.inflight)
        self._metrics = metrics
        self._tracing = tracing
        self._heartbeat = Heartbeat()
        self._probes: ProbeServer | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._server = aio.server(
            interceptors=[Door(metrics, tracing)],
            options=[
                # Twice the limit, so that pictures somewhat too large get our answer, not the transport's.
                ("grpc.max_receive_message_length", 2 * settings.max_image_bytes + 2**20),
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", 0),  # a second gateway on the same port is a mistake, not load balancing
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
                *_connection_age(settings),
            ],
        )
        api = VisionApi(
            pipeline=self._pipeline,
            catalog=catalog,
            health=self.health,
            default_deadline_seconds=settings.default_deadline_seconds,
        )
        vision_pb2_grpc.add_VisionServiceServicer_to_server(api, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self.health.servicer, self._server)
        health_name = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
        reflection.enable_server_reflection((SERVICE, health_name, reflection.SERVICE_NAME), self._server)

    @property
    def pipeline(self) -> Pipeline:
        """The running pipeline."""
        return self._pipeline

    async def start(self) -> tuple[str, str]:
        """Listen; returns the gRPC and the HTTP address. Raises `PortTaken`, `SettingsError`."""
        try:
            return await self._start()
        except BaseException:
            self._remove_shm()
            raise

    async def _start(self) -> tuple[str, str]:
        settings = self._settings
        grpc_port = _choose_port(settings.grpc_host, settings.grpc_port, DEFAULT_GRPC_PORT)
        http_port = _choose_port(settings.http_host, settings.http_port, DEFAULT_HTTP_PORT)
        await self.health.check()
        await asyncio.gather(*(carrier.agree() for carrier in self._carriers.values()))
        address, credentials = f"{settings.grpc_host}:{grpc_port}", server_credentials(settings)
        if credentials is None:
            grpc_port = self._server.add_insecure_port(address)
        else:
            grpc_port = self._server.add_secure_port(address, credentials)
        self._probes = ProbeServer(
            host=settings.http_host,
            port=http_port,
            health=self.health,
            metrics=self._metrics,
            heartbeat=self._heartbeat,
        )
        await self._server.start()
        self._tasks = [asyncio.create_task(self.health.run()), asyncio.create_task(self._beat())]
        return f"{settings.grpc_host}:{grpc_port}", f"{settings.http_host}:{self._probes.port}"

    async def stop(self) -> None:
        """Drain: NOT_SERVING, then new calls are refused while those in work finish, then everything closes.

        gRPC's own stop comes last: a call that reaches it while stopping ends as CANCELLED, which no client retries.
        """
        await self.health.drain()
        await asyncio.sleep(self._settings.drain_delay_seconds)
        await self._pipeline.drain(self._settings.drain_timeout_seconds)
        await asyncio.sleep(REFUSAL_SECONDS)  # after the drain: its last answers, too, make callers call again
        await self._server.stop(GRPC_STOP_SECONDS)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(batcher.close() for batcher in self._batchers.values()))
        await self._backend.close()
        self._decoder.close()
        self._render_pool.shutdown()
        await asyncio.to_thread(self._tracing.close)
        if self._probes is not None:
            await asyncio.to_thread(self._probes.close)
        self._remove_shm()

    def _regions(self, catalog: Catalog, metrics: Metrics, threads: int) -> dict[str, Region]:
        """The shared memory of each model; those it cannot be made for are left out."""
        settings = self._settings
        if not settings.shm_megabytes:
            return {}
        batches = self._workers * settings.batches_per_worker
        wanted = {}
        for card in catalog.cards:
            max_batch = min(settings.max_batch, card.max_batch)
            pictures = threads + settings.max_queue + batches * max_batch
            wanted[card.name] = Size.wanted(card, max_batch=max_batch, batches=batches, pictures=pictures)
        regions = {}
        try:
            self._shm = SharedDirectory(settings.shm_dir)
            for model, size in shares(wanted, settings.shm_megabytes * 2**20).items():
                exhausted = partial(metrics.shm_exhausted, model)
                regions[model] = self._shm.region(catalog.get(model), size, on_exhausted=exhausted)
        except OSError as error:
            _log.warning(
                "no shared memory in %s for %s (%s): pixels travel inside the calls; give it more room, or set "
                "shm_megabytes to 0",
                settings.shm_dir,
                ", ".join(sorted(wanted.keys() - regions.keys())),
                error.strerror or error,
            )
        return regions

    def _remove_shm(self) -> None:
        if self._shm is not None:
            self._shm.remove()
            self._shm = None

    def _batcher(self, card: Card, clock: Callable[[], float], metrics: Metrics) -> Batcher:
        settings, name = self._settings, card.name
        dispatcher = Dispatcher(
            card=card,
            carrier=self._carriers[name],
            # A batch may wait at its worker for those sent before it.
            batch_timeout_seconds=settings.batch_timeout_seconds * settings.batches_per_worker,
            clock=clock,
            on_retry=lambda: metrics.batch_retried(name),
            on_trouble=self.health.suspect,
        )
        batcher = Batcher(
            max_batch=min(settings.max_batch, card.max_batch),
            workers=self._workers,
            batches_per_worker=settings.batches_per_worker,
            max_queue=settings.max_queue,
            run_batch=dispatcher.run,
            clock=clock,
            on_dispatch=lambda size, reason: metrics.batch_dispatched(name, size=size, reason=reason),
            on_batch=lambda predicted, spent: metrics.batch_answered(
                name, predicted_seconds=predicted, spent_seconds=spent
            ),
            on_late_refusal=lambda: metrics.refused_late(name),
        )
        metrics.add_model(card, queue_length=lambda: batcher.queue_length, queue_age=batcher.queue_age_seconds)
        return batcher

    async def _beat(self) -> None:
        while True:
            self._heartbeat.beat()
            await asyncio.sleep(HEARTBEAT_SECONDS)


async def serve(
    settings: Settings,
    catalog: Catalog,
    *,
    on_progress: Callable[[Mapping[str, ModelStatus]], None] = lambda statuses: None,
    on_ready: Callable[[Address], None] = lambda address: None,
    on_stopping: Callable[[], None] = lambda: None,
    ready_file: Path | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, then drain. A second signal ends the process at once.

    Raises `PortTaken`, `TracingUnavailable`, `EmbeddedError`, `SettingsError`. `ready_file` holds the address as JSON
    while the gateway answers.
    """
    began = time.monotonic()
    for host, port in ((settings.grpc_host, settings.grpc_port), (settings.http_host, settings.http_port)):
        if port:  # a port that is taken is told before the models load, not after
            _choose_port(host, port, port)
    tracing = start_tracing(settings.otlp_endpoint, settings.trace_sample_ratio)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _on_signal, stop, number)
    if settings.torchserve_inference is None:
        machine = allocation.Machine.here(child_environment())
        settings = allocation.resolved(settings, machine, models=len(catalog.cards))
        _log.info("%d workers per model, %d threads each", settings.workers_per_model, settings.worker_threads)
    metrics = Metrics()
    gpu.watch(metrics.registry)
    async with contextlib.AsyncExitStack() as stack:
        backend_ready = asyncio.ensure_future(
            stack.enter_async_context(_backend(settings, catalog, metrics, on_progress))
        )
        stopped = asyncio.ensure_future(stop.wait())
        await asyncio.wait({backend_ready, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if stop.is_set():
            backend_ready.cancel()
            await asyncio.gather(backend_ready, return_exceptions=True)
            return
        gateway = Gateway(
            settings=settings, catalog=catalog, backend=backend_ready.result(), metrics=metrics, tracing=tracing
        )
        grpc_address, http_address = await gateway.start()
        address = Address(grpc=grpc_address, http=http_address, startup_seconds=time.monotonic() - began)
        _log.info("ready", extra={"grpc": grpc_address, "http": http_address})
        if ready_file is not None:
            _write_ready_file(ready_file, address)
        on_ready(address)
        try:
            await stopped
        finally:
            on_stopping()
            if ready_file is not None:
                ready_file.unlink(missing_ok=True)  # noqa: ASYNC240 - one small file
            await gateway.stop()


@contextlib.asynccontextmanager
async def _backend(
    settings: Settings,
    catalog: Catalog,
    metrics: Metrics,
    on_progress: Callable[[Mapping[str, ModelStatus]], None],
) -> AsyncIterator[Backend]:
    if settings.torchserve_inference is not None and settings.torchserve_management is not None:
        yield TorchServeBackend(
            TorchServeEndpoint(
                inference_address=settings.torchserve_inference,
                management_address=settings.torchserve_management,
                key_file=settings.torchserve_key_file,
                max_message_bytes=MAX_MESSAGE_BYTES,
            )
        )
        return
    config = config_for(settings, catalog)
    torchserve = EmbeddedTorchServe(config, on_progress=on_progress, on_restart=metrics.backend_restarted)
    endpoint = await torchserve.start()
    supervisor = asyncio.create_task(torchserve.supervise())
    try:
        yield TorchServeBackend(endpoint)
    finally:
        # First, so that the supervisor does not take the stop for a crash.
        await torchserve.stop()
        await supervisor


def _connection_age(settings: Settings) -> tuple[tuple[str, int], ...]:
    """Options of the gRPC server; gRPC itself varies the age by a tenth, so that clients do not all come at once."""
    if not settings.max_connection_age_seconds:
        return ()
    return (
        ("grpc.max_connection_age_ms", math.ceil(settings.max_connection_age_seconds * 1000)),
        # Health watchers never end by themselves; calls have had their deadline long before.
        ("grpc.max_connection_age_grace_ms", math.ceil(settings.drain_timeout_seconds * 1000)),
    )


def _on_signal(stop: asyncio.Event, number: int) -> None:
    if stop.is_set():
        os._exit(128 + number)  # the leash takes TorchServe along
    stop.set()


def _choose_port(host: str, port: int | None, default: int) -> int:
    """The port asked for, or the default, or 0 (any) where the default is taken. Raises `PortTaken`."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, default if port is None else port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise PortTaken(f"cannot listen on {host}:{port or default}: {error.strerror}") from error
            if port is None:
                return 0
            raise PortTaken(f"port {port} on {host} is taken; choose another, or 0 for a free one") from error
    return default if port is None else port


def _write_ready_file(path: Path, address: Address) -> None:
    content = {"grpc": address.grpc, "http": address.http, "startup_seconds": round(address.startup_seconds, 3)}
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(json.dumps(content) + "\n")
    temporary.replace(path)
