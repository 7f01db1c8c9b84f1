"""The gateway: everything around a backend, constructed, wired, started and stopped in order.

In: the settings, the models, a backend. Out: a gRPC and an HTTP port that answer until `stop`. Never starts a backend,
never reads the environment: that is `server`.
"""

import asyncio
import logging
import math
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from handlers.hardware import usable_cores
from service import ports
from service.api import VisionApi
from service.backend import Backend
from service.catalog import Catalog
from service.decode import Limits
from service.decoder import Decoder
from service.health import SERVICE, Health
from service.interceptors import Door
from service.lanes import LaneBuilder, ModelLanes
from service.metrics import Metrics
from service.pb.mobilevision.v1 import vision_pb2_grpc
from service.pipeline import Pipeline
from service.probes import GatewayProbes, Heartbeat, ProbeServer
from service.reconcile import POLL_SECONDS, Reconciler
from service.settings import DEFAULT_GRPC_PORT, DEFAULT_HTTP_PORT, Settings
from service.shadow import Shadows
from service.slots import Usage
from service.tls import server_credentials
from service.tracing import OFF, Tracing

RETRY_AFTER_SECONDS = 1.0
REFUSAL_SECONDS = 0.5  # long enough for busy clients to be told to go elsewhere
LINGER_POLLS = 3  # until the slowest of several gateway processes has seen a new roll-out file
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
        clock = asyncio.get_running_loop().time
        threads = settings.decode_threads or usable_cores()
        self._decoder = Decoder(
            limits=Limits(max_bytes=settings.max_image_bytes, max_pixels=settings.max_image_pixels), threads=threads
        )
        self._render_pool = ThreadPoolExecutor(threads, thread_name_prefix="render")
        self._lanes: dict[str, ModelLanes] = {}
        stuck_seconds = settings.batch_timeout_seconds / 2 * peers  # it may wait for a batch of each of them
        self.health = Health(
            backend=backend,
            progress=self._lanes,
            models=[card.name for card in catalog.cards],
            metrics=metrics,
            poll_seconds=settings.health_poll_seconds,
            stuck_seconds=stuck_seconds,
        )
        workers = settings.workers_per_model or 1  # where nothing is known of those of another's TorchServe
        builder = LaneBuilder(
            settings=settings,
            cards=catalog.cards,
            backend=backend,
            metrics=metrics,
            clock=clock,
            workers=workers,
            peers=peers,
            on_trouble=self.health.suspect,
        )
        for card in catalog.cards:
            self._lanes[card.name] = lanes = ModelLanes(builder.build(card, self._lanes))
            _watch(metrics, lanes)
        self._reconciler = Reconciler(
            settings=settings,
            catalog=catalog,
            backend=backend,
            lanes=self._lanes,
            build=lambda card: builder.build(card, self._lanes),
            metrics=metrics,
            clock=clock,
            workers=workers,
            stuck_seconds=stuck_seconds,
            # Others may have calls in a version that this process has drained.
            linger_seconds=LINGER_POLLS * POLL_SECONDS + settings.batch_timeout_seconds if peers > 1 else 0.0,
            on_switch=self.health.suspect,
        )
        self._shadows = Shadows(decoder=self._decoder, metrics=metrics, pool=self._render_pool)
        self._pipeline = Pipeline(
            catalog=catalog,
            decoder=self._decoder,
            lanes=self._lanes,
            shadows=self._shadows,
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
            await self._close_lanes()
            raise

    async def _start(self) -> tuple[str, str]:
        settings = self._settings
        if self._peers > 1 and settings.grpc_port:  # held for all of us by the supervisor
            grpc_port = settings.grpc_port
        else:
            grpc_port = ports.choose(settings.grpc_host, settings.grpc_port, DEFAULT_GRPC_PORT)
        http_port = ports.choose(settings.http_host, settings.http_port, DEFAULT_HTTP_PORT)
        await self.health.check()
        for lanes in self._lanes.values():
            await lanes.stable.open()
        await asyncio.gather(*(lanes.stable.carrier.agree() for lanes in self._lanes.values()))
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
        running = (self.health.run(), self._heartbeat.run(), self._reconciler.run())
        self._tasks = [asyncio.create_task(each) for each in running]
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
        await self._close_lanes()
        await self._backend.close()
        self._decoder.close()
        self._render_pool.shutdown()
        await asyncio.to_thread(self._tracing.close)
        if self._probes is not None:
            await asyncio.to_thread(self._probes.close)

    async def _close_lanes(self) -> None:
        await self._shadows.close()
        await self._reconciler.close()
        await asyncio.gather(*(lane.close() for lanes in self._lanes.values() for lane in lanes.all))


def _watch(metrics: Metrics, lanes: ModelLanes) -> None:
    """Show a model's state on the metrics page: that of its stable version, whichever that is by then."""
    card = lanes.stable.card
    metrics.add_model(
        card,
        queue_length=partial(_queue_length, lanes),
        queue_age=partial(_queue_age_seconds, lanes),
    )
    kinds = ("input", "output") if lanes.stable.has_memory else ()
    metrics.watch_shared_memory(
        card.name,
        in_use=lambda: lanes.stable.carrier.shared,
        slots={kind: partial(_usage, lanes, kind) for kind in kinds},
        channels=lambda: len(lanes.stable.channels),
    )


def _queue_length(lanes: ModelLanes) -> float:
    return lanes.stable.batcher.queue_length


def _queue_age_seconds(lanes: ModelLanes) -> float:
    return lanes.stable.batcher.queue_age_seconds()


def _usage(lanes: ModelLanes, kind: str) -> Usage:
    return lanes.stable.usage(kind)


def _connection_age(settings: Settings) -> tuple[tuple[str, int], ...]:
    """Options of the gRPC server; gRPC itself varies the age by a tenth, so that clients do not all come at once."""
    if not settings.max_connection_age_seconds:
        return ()
    return (
        ("grpc.max_connection_age_ms", math.ceil(settings.max_connection_age_seconds * 1000)),
        # Health watchers never end by themselves; calls have had their deadline long before.
        ("grpc.max_connection_age_grace_ms", math.ceil(settings.drain_timeout_seconds * 1000)),
    )
