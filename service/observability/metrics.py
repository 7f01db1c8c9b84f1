"""All metrics of one process, in one registry, and the page that Prometheus scrapes.

In: events of the gateway, by noun (`requests`, `batches`, `memory`, `uploads`, `workers`, `rollouts`, `callers`,
`recording`, `tls`, `grpc`). Out: a page in the text or OpenMetrics format. Base units; label values are closed sets.
Never aggregates over processes.
"""

from collections.abc import Callable

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from handlers.contract.card import Card
from service.core.types import RequestRecord
from service.observability.batch_metrics import BatchMetrics
from service.observability.caller_metrics import CallerMetrics
from service.observability.grpc_metrics import GrpcMetrics
from service.observability.memory_metrics import MemoryMetrics
from service.observability.recording_metrics import RecordingMetrics
from service.observability.registry import MetricFactory
from service.observability.request_metrics import RequestMetrics
from service.observability.rollout_metrics import RolloutMetrics
from service.observability.tls_metrics import TlsMetrics
from service.observability.upload_metrics import UploadMetrics
from service.observability.worker_metrics import WorkerMetrics

BACKGROUND_TASKS = ("health", "heartbeat", "reconciler", "memory", "engine", "replicas")


class Metrics:
    """The metrics of one process. Each instance has a registry of its own, so that tests can have several."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        factory = MetricFactory(self.registry)
        self.requests = RequestMetrics(factory)
        self.batches = BatchMetrics(factory)
        self.workers = WorkerMetrics(factory)
        self.memory = MemoryMetrics(factory)
        self.uploads = UploadMetrics(factory)
        self.rollouts = RolloutMetrics(factory)
        self.recording = RecordingMetrics(factory)
        self.callers = CallerMetrics(factory)
        self.tls = TlsMetrics(factory)
        self.grpc = GrpcMetrics(self.registry)
        self._background_failures = factory.counter(
            "background_failures", "Unexpected exceptions in background tasks. The task goes on after each.", "task"
        )
        for task in BACKGROUND_TASKS:
            self._background_failures.labels(task)

    def add_model(self, card: Card, *, queue_length: Callable[[], float], queue_age: Callable[[], float]) -> None:
        """Create all series of a model, so that rates include the first event. `queue_age` is in seconds."""
        self.requests.add_model(card.name, card.task)
        self.batches.add_model(card.name, queue_length=queue_length, queue_age=queue_age)
        self.workers.add_model(card.name)
        self.rollouts.add_model(card)

    def observe_request(self, record: RequestRecord, *, code: str, reason: str | None, duration_seconds: float) -> None:
        """Record a finished request once. See `RequestMetrics.observe`."""
        self.requests.observe(record, code=code, reason=reason, duration_seconds=duration_seconds)
        self.rollouts.observe(record, failed=reason is not None)

    def background_failed(self, task: str) -> None:
        """Count an unexpected exception in one of `BACKGROUND_TASKS`."""
        self._background_failures.labels(task).inc()

    def page(self, accept: str = "") -> bytes:
        """Render the page in the format that the Accept header `accept` asks for. Only OpenMetrics has exemplars."""
        encode, _ = choose_encoder(accept)
        return encode(self.registry)

    @staticmethod
    def content_type(accept: str = "") -> str:
        """Return the content type of `page` for the same Accept header."""
        _, content_type = choose_encoder(accept)
        return content_type
