"""The composition root: constructs every part, wires them, starts and stops them in order. Nobody else constructs.

`Gateway` is everything around a backend; `serve` adds the backend (a TorchServe of its own, or one started elsewhere),
signals, and the file that tells others where the gateway listens. With several gateway processes, the `Gateway` is in
each of them, and this one has a `Fleet` in its place.
"""

import asyncio
import contextlib
import gc
import json
import logging
import math
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from handlers.hardware import usable_cores
from model_store.card import Card
from service import allocation, gpu, ports
from service.api import VisionApi
from service.backend import Backend, ModelStatus
from service.batcher import Batcher
from service.carrier import Carrier
from service.catalog import Catalog
from service.channels import Channels
from service.decode import Decoder, Limits
from service.dispatch import Dispatcher
from service.embedded import EmbeddedTorchServe
from service.fleet import Fleet
from service.health import SERVICE, Health
from service.interceptors import Door
from service.launch import MAX_MESSAGE_BYTES, config_for
from service.member import MemberProcess
from service.metrics import Metrics
from service.pb.mobilevision.v1 import vision_pb2_grpc
from service.pipeline import Pipeline
from service.probes import GatewayProbes, Heartbeat, ProbeServer
from service.region import Region, SharedDirectory, Size, shares
from service.settings import DEFAULT_GRPC_PORT, DEFAULT_HTTP_PORT, Settings, as_environment, child_environment
from service.tls import server_credentials
from service.torchserve import TorchServeBackend, TorchServeEndpoint
from service.tracing import OFF, Tracing, start_tracing

RETRY_AFTER_SECONDS = 1.0
REFUSAL_SECONDS = 0.5  # long enough for busy clients to be told to go elsewhere
GRPC_STOP_SECONDS = 1.0  # replies on their way out, health watchers
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


class Gateway:
    """Everything around a backend. Construct inside a running event loop, `start`, then `stop`.

    `peers`: gateway processes that share the gRPC port and the workers, this one included.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        catalog: Catalog,
        backend: Backend,
        metrics: Metrics,
        tracing: Tracing = OFF,
        peers: int = 1,
    ) -> None:
        self._settings = settings
        self._backend = backend
        self._peers = peers
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
            stuck_seconds=settings.batch_timeout_seconds / 2 * peers,  # it may wait for a batch of each of them
        )
        self._shm: SharedDirectory | None = None
        self._regions = self._make_regions(catalog, metrics, threads)
        self._channels = {model: Channels(model, wanted=self._workers) for model in self._regions}
        self._carriers = {
            card.name: Carrier(
                card=card,
                backend=backend,
                region=self._regions.get(card.name),
                clock=clock,
                channels=self._channels.get(card.name),
                on_refused=partial(metrics.shm_refused, card.name),
            )
            for card in catalog.cards
        }
        for card in catalog.cards:
            self._batchers[card.name] = self._batcher(card, clock, metrics)
            region, carrier = self._regions.get(card.name), self._carriers[card.name]
            slots = {} if region is None else {"input": region.inputs.usage, "output": region.outputs.usage}
            metrics.watch_shared_memory(
                card.name,
                in_use=partial(getattr, carrier, "shared"),
                slots=slots,
                channels=partial(len, self._channels.get(card.name, ())),
            )
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
                # Unless it is one of ours, a second gateway on the same port is a mistake, not load balancing.
                ("grpc.so_reuseport", int(peers > 1)),
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
        if self._peers > 1 and settings.grpc_port:  # held for all of us by the supervisor
            grpc_port = settings.grpc_port
        else:
            grpc_port = ports.choose(settings.grpc_host, settings.grpc_port, DEFAULT_GRPC_PORT)
        http_port = ports.choose(settings.http_host, settings.http_port, DEFAULT_HTTP_PORT)
        await self.health.check()
        for model, channels in self._channels.items():
            await channels.listen(self._regions[model].calls)
        await asyncio.gather(*(carrier.agree() for carrier in self._carriers.values()))
        address, credentials = f"{settings.grpc_host}:{grpc_port}", server_credentials(settings)
        if credentials is None:
            grpc_port = self._server.add_insecure_port(address)
        else:
            grpc_port = self._server.add_secure_port(address, credentials)
        self._probes = ProbeServer(
            host=settings.http_host,
            port=http_port,
            probes=GatewayProbes(health=self.health, metrics=self._metrics, heartbeat=self._heartbeat),
        )
        await self._server.start()
        self._tasks = [asyncio.create_task(self.health.run()), asyncio.create_task(self._heartbeat.run())]
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
        await asyncio.gather(*(channels.close() for channels in self._channels.values()))
        await self._backend.close()
        self._decoder.close()
        self._render_pool.shutdown()
        await asyncio.to_thread(self._tracing.close)
        if self._probes is not None:
            await asyncio.to_thread(self._probes.close)
        self._remove_shm()

    def _make_regions(self, catalog: Catalog, metrics: Metrics, threads: int) -> dict[str, Region]:
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
            batch_timeout_seconds=settings.batch_timeout_seconds * settings.batches_per_worker * self._peers,
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
    torchserve = EmbeddedTorchServe(config, on_progress=on_progress, on_restart=metrics.backend_restarted)
    endpoint = await torchserve.start()
    supervisor = asyncio.create_task(torchserve.supervise())
    try:
        yield endpoint
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


def _write_ready_file(path: Path, address: Address) -> None:
    content = {"grpc": address.grpc, "http": address.http, "startup_seconds": round(address.startup_seconds, 3)}
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(json.dumps(content) + "\n")
    temporary.replace(path)
