"""One gateway: the serving stack and its fronts, started and stopped in order.

In: the settings, the models, a started engine. Out: a gRPC and an HTTP port that answer until `stop`. Never starts an
engine and never reads the environment; `service.app.server` does.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from service.access.control import AccessControl
from service.app.serving_stack import RETRY_AFTER_SECONDS, ServingStack
from service.core import ports, process_memory
from service.core.background import keep_running
from service.core.catalog import Catalog
from service.core.settings import Settings
from service.core.settings.listeners import DEFAULT_GRPC_PORT, DEFAULT_HTTP_PORT
from service.engines.base import Engine
from service.frontends.call import CallHandler
from service.frontends.grpc.certificate_expiry import expiry_of
from service.frontends.grpc.health import GrpcHealth
from service.frontends.grpc.method_handlers import MethodHandlers, vision_service_handler
from service.frontends.grpc.server import grpc_server
from service.frontends.grpc.tls import server_credentials
from service.frontends.grpc.uploads import UploadGate
from service.frontends.http.probe_server import ProbeServer
from service.frontends.http.probes import GatewayProbes, Heartbeat
from service.frontends.memory_guard import MemoryGuard
from service.frontends.pictures import BatchCalls, PictureCalls
from service.frontends.recording.recorder import Recorder
from service.frontends.recording.store import Bounds, RecordingStore
from service.frontends.servicer import VisionServicer
from service.frontends.streams import StreamCalls
from service.observability.metrics import Metrics
from service.observability.tracing import OFF, Tracing
from service.serving.pipeline import Pipeline

HELD_SECONDS = 0.1  # without a new call before gRPC's stop begins, and how long refusals wait after that
MOST_HELD_SECONDS = 1.0  # callers that never stop calling cannot hold up the stop for longer
REFUSAL_SECONDS = 0.5  # how long new calls are refused at the end of a drain, so that busy clients change the server
GRPC_STOP_SECONDS = 1.0  # limit for replies being sent and health watches when the gRPC server stops


class Gateway:
    """A gateway around a started engine. Construct it inside a running event loop, `start`, then `stop`.

    `replicas`: the number of gateway processes that share the gRPC port and the workers, this one included.
    `process_bytes` measures the memory of this process. Raises `SettingsError` where the files of callers cannot be
    read.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        catalog: Catalog,
        engine: Engine,
        metrics: Metrics,
        tracing: Tracing = OFF,
        replicas: int = 1,
        process_bytes: Callable[[], int] = process_memory.anonymous_bytes,
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._tracing = tracing
        self._replicas = replicas
        self._heartbeat = Heartbeat()
        self._probes: ProbeServer | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._grpc_health = GrpcHealth(settings.max_health_watches)
        self._stack = ServingStack(
            settings=settings,
            catalog=catalog,
            engine=engine,
            metrics=metrics,
            replicas=replicas,
            publish_health=self._grpc_health.publish,
        )
        self.health = self._stack.health
        access = AccessControl.from_settings(settings, asyncio.get_running_loop().time)
        self._recorder = _recorder(settings, engine.name, metrics, replicas)
        servicer = VisionServicer(
            pipeline=self._stack.pipeline,
            catalog=catalog,
            health=self.health,
            engine=engine.name,
            recorder=self._recorder,
        )
        grpc_calls = CallHandler(
            system="grpc",
            metrics=metrics,
            protocol_metrics=metrics.grpc,
            tracing=tracing,
            default_deadline_seconds=settings.default_deadline_seconds,
            access=access,
            max_deadline_seconds=settings.max_deadline_seconds,
        )
        self.uploads = UploadGate(
            max_uploads=settings.max_inflight_requests,
            timeout_seconds=settings.upload_timeout_seconds,
            idle_seconds=settings.stream_idle_seconds,
            retry_after_seconds=RETRY_AFTER_SECONDS,
            on_refused=metrics.uploads.refused,
        )
        self._memory = MemoryGuard(
            max_bytes=settings.call_megabytes * 2**20,
            uploads=self.uploads,
            measure=process_bytes,
            reserved=lambda: self._stack.decode_bytes,
            give_back=process_memory.give_back,
        )
        metrics.uploads.watch(arriving=lambda: self.uploads.count, call_bytes=lambda: self._memory.call_bytes)
        handlers = MethodHandlers(grpc_calls, read=self.uploads.read, read_next=self.uploads.read_next)
        self._server = grpc_server(
            settings,
            vision_service=vision_service_handler(self._vision_methods(servicer, handlers)),
            at_once={name: handlers.at_once(name, look) for name, look in servicer.first_looks.items()},
            health_service=self._grpc_health.servicer,
            access=access,
            uploads=self.uploads,
            shares_port=replicas > 1,
        )

    def _vision_methods(self, servicer: VisionServicer, handlers: MethodHandlers) -> Mapping[str, Any]:
        """Return the handlers of VisionService, by method."""
        settings = self._settings
        pictures = PictureCalls(servicer.task_methods)
        max_bytes = settings.max_call_pictures_megabytes * 2**20
        batches = BatchCalls(
            pictures,
            max_pictures=settings.max_call_pictures,
            max_bytes=max_bytes,
            retry_after_seconds=RETRY_AFTER_SECONDS,
        )
        streams = StreamCalls(
            pictures,
            max_streams=settings.max_streams,
            max_pictures=settings.max_stream_pictures,
            max_bytes=max_bytes,
            default_seconds=settings.default_deadline_seconds,
            max_seconds=settings.max_deadline_seconds,
            retry_after_seconds=RETRY_AFTER_SECONDS,
        )
        return {
            **{name: handlers.unary(name, method) for name, method in servicer.methods.items()},
            "Batch": handlers.pictures("Batch", batches.batch),
            "Stream": handlers.stream(
                "Stream",
                streams.stream,
                max_seconds=settings.max_stream_seconds,
                write_seconds=settings.stream_idle_seconds,
            ),
        }

    @property
    def pipeline(self) -> Pipeline:
        """The running pipeline."""
        return self._stack.pipeline

    async def start(self) -> tuple[str, str]:
        """Listen, and return the gRPC and the HTTP address. Raises `PortTaken`, `SettingsError`."""
        try:
            return await self._start()
        except BaseException:
            await self._stack.close_deployments()
            raise

    async def _start(self) -> tuple[str, str]:
        settings = self._settings
        if self._replicas > 1 and settings.grpc_port:  # the supervisor holds the port for all replicas
            grpc_port = settings.grpc_port
        else:
            grpc_port = ports.choose(settings.grpc_host, settings.grpc_port, DEFAULT_GRPC_PORT)
        http_port = ports.choose(settings.http_host, settings.http_port, DEFAULT_HTTP_PORT)
        await self._stack.open()
        address, credentials = ports.address(settings.grpc_host, grpc_port), server_credentials(settings)
        if credentials is None:
            grpc_port = self._server.add_insecure_port(address)
        else:
            grpc_port = self._server.add_secure_port(address, credentials)
            self._watch_certificates()
        self._probes = ProbeServer(
            host=settings.http_host,
            port=http_port,
            probes=GatewayProbes(health=self.health, metrics=self._metrics, heartbeat=self._heartbeat),
            max_connections=settings.max_http_connections,
        )
        if self._recorder is not None:
            self._recorder.start()
        self._memory.start()
        await self._server.start()
        running = {
            "health": self.health.run,
            "heartbeat": self._heartbeat.run,
            "reconciler": self._stack.reconciler.run,
            "memory": self._memory.run,
        }
        self._tasks = [
            asyncio.create_task(keep_running(name, run, on_failure=self._metrics.background_failed))
            for name, run in running.items()
        ]
        return ports.address(settings.grpc_host, grpc_port), ports.address(settings.http_host, self._probes.port)

    def _watch_certificates(self) -> None:
        files = {"certificate": self._settings.tls_certificate, "client_ca": self._settings.tls_client_ca}
        for name, path in files.items():
            if path is not None:
                self._metrics.tls.watch(name, expiry_of(path))

    async def stop(self) -> None:
        """Drain and close.

        First the server reports NOT_SERVING. Then new calls are refused while calls in progress finish. gRPC's own stop
        comes last: a call that arrives after it ends as CANCELLED, which clients do not retry.
        """
        self.health.drain()
        await asyncio.sleep(self._settings.drain_delay_seconds)
        await self._stack.pipeline.drain(self._settings.drain_timeout_seconds)
        # Callers that got the last replies call again. They are refused, so that they change to another server.
        await asyncio.sleep(REFUSAL_SECONDS)
        self._grpc_health.close()
        # gRPC ends a call as CANCELLED that it has read and not yet handed over when its stop begins (grpc/grpc#41785).
        # While refusals are held, busy callers wait, so no call is left in between.
        with self._stack.pipeline.refusals_held():
            await self._until_no_call_comes()
            stopping = asyncio.create_task(self._server.stop(GRPC_STOP_SECONDS))
            await asyncio.sleep(HELD_SECONDS)
        await stopping
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._stack.close_deployments()
        await asyncio.to_thread(self._stack.close_pools)
        await asyncio.to_thread(self._tracing.close)
        if self._recorder is not None:
            await asyncio.to_thread(self._recorder.close)
        if self._probes is not None:
            await asyncio.to_thread(self._probes.close)

    async def _until_no_call_comes(self) -> None:
        """Wait until every busy caller waits for its refusal. On a machine under load that takes a while."""
        with suppress(TimeoutError):
            async with asyncio.timeout(MOST_HELD_SECONDS):
                seen = -1
                while seen != self._stack.pipeline.refused:
                    seen = self._stack.pipeline.refused
                    await asyncio.sleep(HELD_SECONDS)


def _recorder(settings: Settings, engine: str, metrics: Metrics, replicas: int) -> Recorder | None:
    if settings.recording_dir is None:
        return None
    bounds = Bounds(
        most_bytes=settings.recording_megabytes * 2**20,
        most_calls=settings.recording_count,
        most_seconds=settings.recording_hours * 3600,
        writers=replicas,
    )
    return Recorder(
        RecordingStore(settings.recording_dir, bounds, time.time),
        engine=engine,
        share=settings.recording_share,
        content=settings.recording_content == "all",
        on_outcome=metrics.recording.count,
    )
