"""Makes deployments: a model card in, a deployment with its own queue and transport out. Never opens a deployment."""

from collections.abc import Callable
from dataclasses import dataclass

from handlers.contract.card import Card
from service.batching.batcher import Batcher
from service.core.settings import Settings
from service.observability.metrics import Metrics
from service.preprocess.pool import DecodePool
from service.serving.deployment import BatchedDeployment
from service.serving.stable_observer import StableObserver
from service.transport.factory import TransportFactory


@dataclass(frozen=True, slots=True)
class DeploymentBuilder:
    """Makes deployments that plan for `workers` workers. `on_failure` is called when a stable deployment lost a batch.

    `stuck_seconds`: a batch that is with a worker for longer makes its deployment not ready.
    """

    settings: Settings
    transports: TransportFactory
    decoder: DecodePool
    metrics: Metrics
    clock: Callable[[], float]
    workers: int
    stuck_seconds: float
    on_failure: Callable[[], None]

    def build(self, card: Card) -> BatchedDeployment:
        """Make a deployment of the version that the card describes. It is not stable and not open."""
        settings = self.settings
        observer = StableObserver(card, self.metrics, self.on_failure)
        transport = self.transports.build(card, on_failure=observer.failed, on_change=observer.engine_changed)
        batcher = Batcher(
            max_batch=min(settings.max_batch, card.max_batch),
            workers=self.workers,
            batches_per_worker=settings.batches_per_worker,
            max_queue=settings.max_queue,
            run_batch=transport.run,
            clock=self.clock,
            on_dispatch=observer.dispatched,
            on_batch=observer.answered,
            on_late_refusal=observer.refused_late,
        )
        return BatchedDeployment(
            card=card,
            decoder=self.decoder,
            batcher=batcher,
            transport=transport,
            observer=observer,
            workers=self.workers,
            stuck_seconds=self.stuck_seconds,
        )
