"""Metrics of the processes behind a server: readiness and count of the workers, restarts.

In: what the health monitor and the supervisors report. Out: Prometheus series.
"""

from service.observability.registry import MetricFactory


class WorkerMetrics:
    """Records the state of the workers of each model, and restarts of processes."""

    def __init__(self, factory: MetricFactory) -> None:
        self._ready = factory.gauge("worker_ready", "Whether the model answers requests (1) or not (0).", "model")
        self._count = factory.gauge("workers", "Backend workers that are ready.", "model")
        self._backend_restarts = factory.counter("worker_restarts", "Restarts of the embedded TorchServe.")
        self._replacements = factory.counter(
            "worker_replacements", "Worker processes that took the place of one that ended.", "model"
        )
        self._quarantined = factory.gauge(
            "model_quarantined", "Whether the model is not loaded for now, because its workers cannot load it.", "model"
        )
        self._gateway_restarts = factory.counter("gateway_restarts", "Restarts of a gateway process.")

    def add_model(self, model: str) -> None:
        """Create the series of a model. It counts as not ready until `observe` is called."""
        self._ready.labels(model).set(0)
        self._count.labels(model).set(0)
        self._replacements.labels(model)
        self._quarantined.labels(model).set(0)

    def observe(self, model: str, *, ready: bool, count: int) -> None:
        """Record whether a model answers, and how many of its workers are ready."""
        self._ready.labels(model).set(1 if ready else 0)
        self._count.labels(model).set(count)

    def replaced(self, model: str) -> None:
        """Count a worker process that took the place of another."""
        self._replacements.labels(model).inc()

    def quarantined(self, model: str, held: bool) -> None:
        """Record whether a model is in quarantine."""
        self._quarantined.labels(model).set(1 if held else 0)

    def backend_restarted(self) -> None:
        """Count a restart of the embedded TorchServe."""
        self._backend_restarts.inc()

    def gateway_restarted(self) -> None:
        """Count a restart of a gateway process."""
        self._gateway_restarts.inc()
