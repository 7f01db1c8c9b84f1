"""The gateway: everything around a backend, constructed, wired, started and stopped in order.

In: the settings, the models, a backend. Out: a gRPC and an HTTP port that answer until `stop`. Never starts a backend,
never reads the environment: that is `server`.
"""

import asyncio
import logging
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from handlers.hardware import usable_cores
from model_store.card import Card
from service import ports
from service.api import VisionApi
from service.backend import Backend
from service.batcher import Batcher
from service.carrier import Carrier
from service.catalog import Catalog
from service.channels import Channels
from service.decode import Decoder, Limits
from service.dispatch import Dispatcher
from service.health import SERVICE, Health
from service.interceptors import Door
from service.metrics import Metrics
from service.pb.mobilevision.v1 import vision_pb2_grpc
from service.pipeline import Pipeline
from service.probes import GatewayProbes, Heartbeat, ProbeServer
from service.region import Region, SharedDirectory, Size, shares
from service.settings import DEFAULT_GRPC_PORT, DEFAULT_HTTP_PORT, Settings
from service.tls import server_credentials
from service.tracing import OFF, Tracing

RETRY_AFTER_SECONDS = 1.0
REFUSAL_SECONDS = 0.5  # long enough for busy clients to be told to go elsewhere
GRPC_STOP_SECONDS = 1.0  # replies on their way out, health watchers

_log = logging.getLogger(__name__)


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


def _connection_age(settings: Settings) -> tuple[tuple[str, int], ...]:
    """Options of the gRPC server; gRPC itself varies the age by a tenth, so that clients do not all come at once."""
    if not settings.max_connection_age_seconds:
        return ()
    return (
        ("grpc.max_connection_age_ms", math.ceil(settings.max_connection_age_seconds * 1000)),
        # Health watchers never end by themselves; calls have had their deadline long before.
        ("grpc.max_connection_age_grace_ms", math.ceil(settings.drain_timeout_seconds * 1000)),
    )
