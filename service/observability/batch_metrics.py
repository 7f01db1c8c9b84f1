"""Metrics of queues and batches: sizes, why a batch was sent, how good its predicted time was.

In: what the batcher reports. Out: Prometheus series. Never sees requests.
"""

from collections.abc import Callable

from service.core.types import Computed
from service.observability.registry import MetricFactory

DISPATCH_REASONS = ("idle", "full", "deadline")

_SIZE_BUCKETS = (1, 2, 4, 8, 16, 32, 64)  # pictures


class BatchMetrics:
    """Records batches and shows the queue of each model."""

    def __init__(self, factory: MetricFactory) -> None:
        self._size = factory.histogram("batch_size", "Pictures per batch.", "model", buckets=_SIZE_BUCKETS)
        self._dispatch = factory.counter(
            "dispatch",
            "Batches sent. full: the batch was full. idle: a worker was free and took all waiting pictures. deadline: "
            "the batch was kept smaller to meet a deadline.",
            "model",
            "reason",
        )
        self._predicted = factory.seconds(
            "predicted_batch_seconds", "Time predicted for a batch when it was sent.", "model"
        )
        self._prediction_error = factory.seconds(
            "prediction_error_seconds", "Absolute difference between predicted and measured time of a batch.", "model"
        )
        self._refused_late = factory.counter(
            "refused_late", "Requests accepted and later refused, because batches took longer than predicted.", "model"
        )
        self._retried = factory.counter(
            "batches_retried", "Batches sent a second time after their worker died.", "model"
        )
        self._engine_batches = factory.counter(
            "engine_batches",
            "Batches answered, by what computed them in the worker. refused: faster engines that the worker refused, "
            "because they do not run the model or do not compute what TorchScript computes.",
            "model",
            "engine",
            "dtype",
            "refused",
        )
        self._queue_length = factory.gauge("queue_length", "Pictures waiting in the queue.", "model")
        self._queue_age = factory.gauge("queue_age_seconds", "Age of the oldest picture in the queue.", "model")

    def add_model(self, model: str, *, queue_length: Callable[[], float], queue_age: Callable[[], float]) -> None:
        """Create the series of a model. Its queue is read whenever Prometheus scrapes; `queue_age` is in seconds."""
        self._queue_length.labels(model).set_function(queue_length)
        self._queue_age.labels(model).set_function(queue_age)
        self._retried.labels(model)
        self._refused_late.labels(model)
        for reason in DISPATCH_REASONS:
            self._dispatch.labels(model, reason)

    def dispatched(self, model: str, *, size: int, reason: str) -> None:
        """Record a batch that was sent to a worker. `reason` is one of `DISPATCH_REASONS`."""
        self._size.labels(model).observe(size)
        self._dispatch.labels(model, reason).inc()

    def answered(self, model: str, *, predicted_seconds: float, spent_seconds: float) -> None:
        """Record predicted and measured time of a batch. A prediction of 0 means that there was none yet."""
        if predicted_seconds:
            self._predicted.labels(model).observe(predicted_seconds)
            self._prediction_error.labels(model).observe(abs(spent_seconds - predicted_seconds))

    def computed(self, model: str, computed: Computed) -> None:
        """Count a batch by what computed it."""
        self._engine_batches.labels(model, computed.network_engine, computed.dtype, computed.refused).inc()

    def refused_late(self, model: str) -> None:
        """Count a request that was accepted and later refused."""
        self._refused_late.labels(model).inc()

    def retried(self, model: str) -> None:
        """Count a batch that was sent again."""
        self._retried.labels(model).inc()
