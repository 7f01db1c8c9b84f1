"""Metrics of the way to the workers: slots of shared memory, and the workers that have a connection of their own.

In: what the transport reports, and functions that read its state. Out: Prometheus series.
"""

from collections.abc import Callable, Mapping
from functools import partial

from service.core.types import Usage
from service.observability.registry import MetricFactory

SLOT_STATES = ("free", "used", "quarantined")  # the fields of `Usage`


class MemoryMetrics:
    """Shows the shared memory of each model."""

    def __init__(self, factory: MetricFactory) -> None:
        self._slots = factory.gauge("shm_slots", "Slots of shared memory, by state.", "model", "kind", "state")
        self._in_use = factory.gauge(
            "shm_in_use", "Whether the batches of the model travel in shared memory (1) or inline (0).", "model"
        )
        self._connections = factory.gauge(
            "worker_channels",
            "Workers that receive batches directly, not through TorchServe. 0 until all workers have a connection.",
            "model",
        )
        self._exhausted = factory.counter("shm_exhausted", "Pictures sent inline because no slot was free.", "model")
        self._refused = factory.counter(
            "shm_refused", "Batches sent again inline because a worker could not use the slots.", "model"
        )

    def watch(
        self,
        model: str,
        *,
        in_use: Callable[[], bool],
        slots: Mapping[str, Callable[[], Usage]],
        connections: Callable[[], int],
    ) -> None:
        """Read the state of a model whenever Prometheus scrapes. The keys of `slots` are kinds: `input`, `output`."""
        self._connections.labels(model).set_function(connections)
        self._in_use.labels(model).set_function(lambda: float(in_use()))
        for kind, usage in slots.items():
            for state in SLOT_STATES:
                self._slots.labels(model, kind, state).set_function(partial(_count, usage, state))
        self._exhausted.labels(model)
        self._refused.labels(model)

    def exhausted(self, model: str) -> None:
        """Count a picture for which no slot was free."""
        self._exhausted.labels(model).inc()

    def refused(self, model: str) -> None:
        """Count a batch that a worker could not read from shared memory."""
        self._refused.labels(model).inc()


def _count(usage: Callable[[], Usage], state: str) -> float:
    count: int = getattr(usage(), state)
    return float(count)
