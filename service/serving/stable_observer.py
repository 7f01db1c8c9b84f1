"""Passes the events of one deployment on to the metrics of its model, while the deployment is the stable one.

The metrics of a model, and its health, are those of its stable version. A candidate must not change them.
"""

from collections.abc import Callable

from handlers.contract.card import Card
from service.core.types import Computed
from service.observability.metrics import Metrics


class StableObserver:
    """The observer of one deployment. `TrafficSplit` sets `active` through `Deployment.become_stable`.

    `on_failure` is called when a batch was lost or not answered in time.
    """

    def __init__(self, card: Card, metrics: Metrics, on_failure: Callable[[], None]) -> None:
        self.active = False
        self._card = card
        self._model = card.name
        self._metrics = metrics
        self._on_failure = on_failure

    def failed(self) -> None:
        """A batch was lost or not answered in time."""
        if self.active:
            self._on_failure()

    def dispatched(self, size: int, reason: str) -> None:
        """A batch of `size` pictures left the queue. `reason`: `full`, `deadline` or `idle`."""
        if self.active:
            self._metrics.batches.dispatched(self._model, size=size, reason=reason)

    def answered(self, predicted_seconds: float, spent_seconds: float) -> None:
        """A batch was answered."""
        if self.active:
            self._metrics.batches.answered(
                self._model, predicted_seconds=predicted_seconds, spent_seconds=spent_seconds
            )

    def engine_changed(self, computed: Computed) -> None:
        """The workers say that they compute with something else than before."""
        if self.active:
            self._metrics.rollouts.computed(self._card, computed)

    def refused_late(self) -> None:
        """A picture was admitted, and found hopeless later."""
        if self.active:
            self._metrics.batches.refused_late(self._model)
