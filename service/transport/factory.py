"""Makes the transport of each model version: shared memory of the right size, worker connections, batch timeout.

In: settings, the cards of all served models, a runner. Out: one `BatchTransport` per version. Never starts a transport.
"""

import logging
from collections.abc import Callable
from functools import partial

from handlers.contract.card import Card
from handlers.hardware import usable_cores
from service.core.settings import Settings
from service.core.types import Computed
from service.observability.metrics import Metrics
from service.transport.batch_transport import BatchTransport
from service.transport.patience import Patience
from service.transport.runner import Runner
from service.transport.shm_region import SharedDirectory, ShmRegion, Size, shares
from service.transport.worker_connections import WorkerConnections

_log = logging.getLogger(__name__)


class TransportFactory:
    """Makes transports. `cards` are the models that share the budget of shared memory (`shm_megabytes`).

    `workers`: expected workers per model. `replicas`: gateway processes that share the workers, this one included.

    A candidate version gets as much as the stable version of its model, beyond the budget. A slot takes memory only
    when it is used, and a picture lies in one version's slots only, so both together use about one version's memory.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        cards: tuple[Card, ...],
        runner: Runner,
        metrics: Metrics,
        clock: Callable[[], float],
        workers: int,
        replicas: int,
    ) -> None:
        self._settings = settings
        self._runner = runner
        self._metrics = metrics
        self._clock = clock
        self._workers = workers
        # A batch may wait at its worker for the batches that were sent before it.
        self._batch_timeout_seconds = settings.batch_timeout_seconds * settings.batches_per_worker * replicas
        # A worker takes the batches of all replicas in turn.
        self._longest_seconds = settings.batch_timeout_seconds * replicas
        self._wanted = {card.name: self._size(card) for card in cards}

    def build(
        self, card: Card, *, on_failure: Callable[[], None], on_change: Callable[[Computed], None]
    ) -> BatchTransport:
        """Make the transport of one version.

        `on_failure` is called when a batch was lost or not answered in time, `on_change` when the workers compute with
        something else than before.
        """
        region, memory = self._shared_memory(card)
        return BatchTransport(
            card=card,
            runner=self._runner,
            region=region,
            memory=memory,
            connections=WorkerConnections(card.name, wanted=self._workers, patience=self._patience()),
            patience=self._patience(),
            batch_timeout_seconds=self._batch_timeout_seconds,
            clock=self._clock,
            on_retry=partial(self._metrics.batches.retried, card.name),
            on_failure=on_failure,
            on_refused=partial(self._metrics.memory.refused, card.name),
            on_computed=partial(self._metrics.batches.computed, card.name),
            on_change=on_change,
        )

    def _patience(self) -> Patience:
        return Patience(hung_seconds=self._settings.hung_worker_seconds, longest_seconds=self._longest_seconds)

    def _size(self, card: Card) -> Size:
        settings = self._settings
        max_batch = min(settings.max_batch, card.max_batch)
        batches = self._workers * settings.batches_per_worker
        threads = settings.decode_threads or usable_cores()
        pictures = threads + settings.max_queue + batches * max_batch
        return Size.wanted(card, max_batch=max_batch, batches=batches, pictures=pictures)

    def _shared_memory(self, card: Card) -> tuple[ShmRegion | None, SharedDirectory | None]:
        """Slots in a directory of their own. None, None where shared memory is off or cannot be made."""
        settings = self._settings
        if not settings.shm_megabytes:
            return None, None
        size = shares(self._wanted | {card.name: self._size(card)}, settings.shm_megabytes * 2**20)[card.name]
        memory = None
        try:
            memory = SharedDirectory(settings.shm_dir)
            exhausted = partial(self._metrics.memory.exhausted, card.name)
            return memory.region(card, size, on_exhausted=exhausted), memory
        except OSError as error:
            if memory is not None:
                memory.remove()
            _log.warning(
                "no shared memory in %s for %s (%s): pixels travel inside the calls; give it more room, or set "
                "shm_megabytes to 0",
                settings.shm_dir,
                card.name,
                error.strerror or error,
            )
            return None, None
