"""Everything between the fronts and the engine, constructed and wired: one `ServingStack` per gateway process.

In: the settings, the models, a started engine. Out: a pipeline that answers requests, health, roll-outs. Never listens
on a port and never starts an engine.
"""

import asyncio
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from handlers.hardware import usable_cores
from service.core.catalog import Catalog
from service.core.settings import Settings
from service.core.types import Usage
from service.engines.base import Engine
from service.observability.metrics import Metrics
from service.preprocess.decode_watch import DecodeWatch
from service.preprocess.limits import Limits
from service.preprocess.pool import DecodePool
from service.serving.deployment_builder import DeploymentBuilder
from service.serving.health import Health, Publish
from service.serving.pipeline import Pipeline
from service.serving.reconciler import POLL_SECONDS, Reconciler
from service.serving.shadow import ShadowRunner
from service.serving.traffic_split import TrafficSplit
from service.transport.factory import TransportFactory

RETRY_AFTER_SECONDS = 1.0  # what callers are told to wait when a model is not ready or the server is full
DECODE_CLOSE_SECONDS = 5.0  # longest wait at the end for pictures that are being decoded
LINGER_POLLS = 3  # polls until every gateway process has read a new roll-out file


class ServingStack:
    """The parts that serve models. Construct it inside a running event loop, `open`, then `close`.

    `replicas`: the number of gateway processes that share the workers, this one included. `publish_health` is called
    with each report on the models.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        catalog: Catalog,
        engine: Engine,
        metrics: Metrics,
        replicas: int,
        publish_health: Publish,
    ) -> None:
        self._settings = settings
        self._catalog = catalog
        self._engine = engine
        self._metrics = metrics
        self._replicas = replicas
        self._clock = asyncio.get_running_loop().time
        # The number of workers is not known if another program started TorchServe. One is always there.
        self._workers = settings.workers_per_model or 1
        # A batch may wait at its worker for one batch of each replica.
        self._stuck_seconds = settings.batch_timeout_seconds / 2 * replicas

        threads = settings.decode_threads or usable_cores()
        limits = Limits(
            max_bytes=settings.max_image_bytes,
            max_pixels=settings.max_image_pixels,
            max_side_px=settings.max_image_side_px,
            max_decode_bytes=settings.decode_megabytes * 2**20,
            max_decode_pixels=settings.max_decode_pixels,
            formats=settings.image_formats,
        )
        self._decoder = DecodePool(limits=limits, threads=threads)
        self._render_pool = ThreadPoolExecutor(threads, thread_name_prefix="render")
        self._splits: dict[str, TrafficSplit] = {}  # by model; health and pipeline read this mapping
        self.health = self._make_health(publish_health)
        builder = self._make_builder()
        for card in catalog.cards:
            self._splits[card.name] = TrafficSplit(builder.build(card))
            _watch(metrics, self._splits[card.name])
        self.reconciler = self._make_reconciler(builder)
        self._shadows = ShadowRunner(metrics=metrics, pool=self._render_pool)
        self.pipeline = self._make_pipeline()
        metrics.requests.watch_inflight(lambda: self.pipeline.inflight)

    @property
    def splits(self) -> Mapping[str, TrafficSplit]:
        """The deployments of each model."""
        return self._splits

    async def open(self) -> None:
        """Read the state of the models once, and connect each stable deployment to its workers."""
        await self.health.check()
        await asyncio.gather(*(splits.stable.open() for splits in self._splits.values()))

    async def close_deployments(self) -> None:
        """Close all deployments, and end shadow runs and roll-outs. The engine stays open."""
        await self._shadows.close()
        await self.reconciler.close()
        await asyncio.gather(*(deployment.close() for splits in self._splits.values() for deployment in splits.all))

    @property
    def decode_bytes(self) -> int:
        """Memory that decoding threads have reserved now, in bytes."""
        return self._decoder.reserved_bytes

    def close_pools(self) -> None:
        """End the threads that decode pictures and render replies. Blocks, for seconds if a picture takes long."""
        self._decoder.close(DECODE_CLOSE_SECONDS)
        self._render_pool.shutdown()

    def _make_health(self, publish: Publish) -> Health:
        return Health(
            versions=self._engine.versions,
            splits=self._splits,
            metrics=self._metrics,
            poll_seconds=self._settings.health_poll_seconds,
            publish=publish,
            decoding=DecodeWatch(
                self._decoder.running_seconds,
                max_seconds=self._settings.max_decode_seconds,
                on_overrun=self._metrics.requests.decode_overran,
            ),
        )

    def _make_builder(self) -> DeploymentBuilder:
        transports = TransportFactory(
            settings=self._settings,
            cards=self._catalog.cards,
            runner=self._engine.runner,
            metrics=self._metrics,
            clock=self._clock,
            workers=self._workers,
            replicas=self._replicas,
        )
        return DeploymentBuilder(
            settings=self._settings,
            transports=transports,
            decoder=self._decoder,
            metrics=self._metrics,
            clock=self._clock,
            workers=self._workers,
            stuck_seconds=self._stuck_seconds,
            on_failure=self.health.suspect,
        )

    def _make_reconciler(self, builder: DeploymentBuilder) -> Reconciler:
        # Other replicas may still have calls in a version that this one has drained.
        linger_seconds = LINGER_POLLS * POLL_SECONDS + self._settings.batch_timeout_seconds
        return Reconciler(
            settings=self._settings,
            catalog=self._catalog,
            versions=self._engine.versions,
            splits=self._splits,
            build=builder.build,
            metrics=self._metrics,
            clock=self._clock,
            workers=self._workers,
            linger_seconds=linger_seconds if self._replicas > 1 else 0.0,
            on_switch=self.health.suspect,
        )

    def _make_pipeline(self) -> Pipeline:
        return Pipeline(
            catalog=self._catalog,
            splits=self._splits,
            shadows=self._shadows,
            health=self.health,
            render_pool=self._render_pool,
            max_inflight=self._settings.max_inflight_requests,
            max_picture_bytes=self._settings.max_inflight_megabytes * 2**20,
            retry_after_seconds=RETRY_AFTER_SECONDS,
        )


def _watch(metrics: Metrics, splits: TrafficSplit) -> None:
    """Show a model on the metrics page. The functions read the version that is stable at the time of the scrape."""
    card = splits.stable.card
    metrics.add_model(
        card,
        queue_length=lambda: splits.stable.queue_length,
        queue_age=partial(_queue_age_seconds, splits),
    )
    kinds = ("input", "output") if splits.stable.has_shared_memory else ()
    metrics.memory.watch(
        card.name,
        in_use=lambda: splits.stable.uses_shared_memory,
        slots={kind: partial(_memory_usage, splits, kind) for kind in kinds},
        connections=lambda: splits.stable.connected_workers,
    )


def _queue_age_seconds(splits: TrafficSplit) -> float:
    return splits.stable.queue_age_seconds()


def _memory_usage(splits: TrafficSplit, kind: str) -> Usage:
    return splits.stable.memory_usage(kind)
