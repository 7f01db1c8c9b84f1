"""Every metric of the gateway, declared once. Base units; label values are closed sets.

Recorded in one place per request (`observe_request`, from its `Record`), by the batcher and the health monitor through
the small methods below, and read at scrape time where a gauge mirrors state.
"""

from collections.abc import Callable, Mapping
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import choose_encoder
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from model_store.card import Card
from service.errors import reasons
from service.slots import Usage
from service.work import Record

STAGES = ("decode", "queue", "transport", "inference", "results")
SHADOW_OUTCOMES = ("compared", "failed", "dropped")
VERSION_OUTCOMES = ("answered", "failed", "passed_on")
UNKNOWN_MODEL = "unknown"  # label value of requests that name no model we serve: names from outside stay out

_SECONDS = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.0, 2.0, 4.0, 8.0)
_SHARES = (0.0, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0)
_BATCH = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """One registry per gateway, so that tests can have several."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"mobilevision_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"mobilevision_{name}", text, labels, registry=registry)

        def seconds(name: str, text: str, *labels: str) -> Histogram:
            return Histogram(f"mobilevision_{name}", text, labels, registry=registry, buckets=_SECONDS)

        self._requests = counter("requests", "Requests answered, by gRPC code.", "method", "model", "code")
        self._duration = seconds("request_duration_seconds", "Time from the door to the answer.", "method", "model")
        self._stages = seconds("stage_duration_seconds", "Time of an answered request in one stage.", "model", "stage")
        self._rejected = counter("rejected", "Requests refused or failed, by reason.", "reason")
        for reason in reasons():  # from the start, so that rates do not miss the first event
            self._rejected.labels(reason)
        self._deadline_missed = counter("deadline_missed", "Requests whose deadline passed before the answer.", "model")
        self._inflight = gauge("inflight_requests", "Inference requests in work.")
        self._batch_size = Histogram(
            "mobilevision_batch_size", "Pictures per batch.", ["model"], registry=registry, buckets=_BATCH
        )
        self._dispatch = counter(
            "dispatch",
            "Batches sent: full, all that waited when a slot fell idle, or kept smaller to meet a deadline.",
            "model",
            "reason",
        )
        self._predicted = seconds("predicted_batch_seconds", "Time predicted for a batch when it was sent.", "model")
        self._prediction_error = seconds(
            "prediction_error_seconds", "Difference between predicted and real time of a batch, either way.", "model"
        )
        self._refused_late = counter(
            "refused_late", "Requests accepted and then refused: batches took longer than predicted.", "model"
        )
        self._retried = counter("batches_retried", "Batches sent a second time after their worker died.", "model")
        self._queue_length = gauge("queue_length", "Pictures waiting.", "model")
        self._queue_age = gauge("queue_age_seconds", "Age of the picture that waits longest.", "model")
        self._worker_ready = gauge("worker_ready", "Whether the model answers requests (1) or not (0).", "model")
        self._worker_count = gauge("workers", "Backend workers ready.", "model")
        self._restarts = counter("worker_restarts", "Restarts of the embedded TorchServe.")
        self._gateway_restarts = counter("gateway_restarts", "Restarts of one of several gateway processes.")
        self._shm_slots = gauge("shm_slots", "Slots of shared memory, by state.", "model", "kind", "state")
        self._shm_shared = gauge(
            "shm_in_use", "Whether the model's batches travel in shared memory (1) or inline (0).", "model"
        )
        self._channels = gauge(
            "worker_channels",
            "Workers that batches go to directly, not through TorchServe, once all have one.",
            "model",
        )
        self._shm_exhausted = counter("shm_exhausted", "Pictures carried inline because no slot was free.", "model")
        self._shm_refused = counter(
            "shm_refused", "Batches sent again inline because a worker could not use the slots.", "model"
        )
        self._model_info = gauge(
            "model_info", "Models served; always 1.", "model", "version", "task", "family", "variant", "head", "weights"
        )
        self._version_requests = counter(
            "version_requests",
            "Requests by the version that was asked: answered, failed, or passed on to the stable version.",
            "model",
            "version",
            "outcome",
        )
        self._version_duration = seconds(
            "version_duration_seconds", "Time of an answered request in the stages of one version.", "model", "version"
        )
        self._version_inference = seconds(
            "version_inference_seconds", "Time of one batch in a version's model, shadow runs too.", "model", "version"
        )
        self._shadow_runs = counter(
            "shadow_runs",
            "Requests run on a candidate as well, only to be compared: compared, failed, or dropped to leave room.",
            "model",
            "version",
            "outcome",
        )
        self._agreement = Histogram(
            "mobilevision_version_agreement",
            "Agreement of a candidate with the stable version on one picture, 0 to 1: top1, box_f1 or miou.",
            ["model", "stable", "candidate", "metric"],
            registry=registry,
            buckets=_SHARES,
        )
        self._version_share = gauge(
            "version_share", "Share of the requests that goes to a version, 0 to 1.", "model", "version", "role"
        )
        self._rollout_file = gauge("rollout_file_valid", "Whether the roll-out file is in force (1) or broken (0).")
        self._rollout_file.set(1)
        self._rollout_settled = gauge(
            "rollout_settled", "Whether the model is served as the roll-out file says (1) or not yet (0).", "model"
        )
        self._shares: dict[str, set[tuple[str, str]]] = {}  # series of `version_share` by model
        self._grpc_started = Counter(
            "grpc_server_started", "RPCs started.", ["grpc_type", "grpc_service", "grpc_method"], registry=registry
        )
        self._grpc_handled = Counter(
            "grpc_server_handled",
            "RPCs completed, by code.",
            ["grpc_type", "grpc_service", "grpc_method", "grpc_code"],
            registry=registry,
        )
        self._grpc_seconds = Histogram(
            "grpc_server_handling_seconds",
            "Time to handle RPCs.",
            ["grpc_type", "grpc_service", "grpc_method"],
            registry=registry,
            buckets=_SECONDS,
        )

    def add_model(self, card: Card, *, queue_length: Callable[[], float], queue_age: Callable[[], float]) -> None:
        """Announce a model: all its series exist from the start, so that rates do not miss the first event."""
        name = card.name
        self._model_info.labels(*_info_of(card)).set(1)
        for outcome in VERSION_OUTCOMES:
            self._version_requests.labels(name, card.version, outcome)
        self._queue_length.labels(name).set_function(queue_length)
        self._queue_age.labels(name).set_function(queue_age)
        self._worker_ready.labels(name).set(0)
        self._worker_count.labels(name).set(0)
        self._retried.labels(name)
        self._deadline_missed.labels(name)
        self._refused_late.labels(name)
        for reason in ("idle", "full", "deadline"):
            self._dispatch.labels(name, reason)

    def watch_shared_memory(
        self,
        model: str,
        *,
        in_use: Callable[[], bool],
        slots: Mapping[str, Callable[[], Usage]],
        channels: Callable[[], int],
    ) -> None:
        """Read the state of a model's shared memory at scrape time; `slots` by kind, `input` and `output`."""
        self._channels.labels(model).set_function(channels)
        self._shm_shared.labels(model).set_function(lambda: float(in_use()))
        for kind, usage in slots.items():
            for state in ("free", "used", "quarantined"):
                self._shm_slots.labels(model, kind, state).set_function(partial(_state_of, usage, state))
        self._shm_exhausted.labels(model)
        self._shm_refused.labels(model)

    def shm_exhausted(self, model: str) -> None:
        """Count a picture that found no slot."""
        self._shm_exhausted.labels(model).inc()

    def shm_refused(self, model: str) -> None:
        """Count a batch that a worker refused to read from shared memory."""
        self._shm_refused.labels(model).inc()

    def watch_inflight(self, inflight: Callable[[], float]) -> None:
        """Read the number of inference requests in work at scrape time."""
        self._inflight.set_function(inflight)

    def request_started(self, service: str, method: str) -> None:
        """Count an RPC at the door."""
        self._grpc_started.labels("unary", service, method).inc()

    def observe_request(
        self, record: Record, *, service: str, code: str, reason: str | None, duration_seconds: float
    ) -> None:
        """Record a finished request: `code` is a gRPC code name, `reason` an error reason of the closed tree."""
        model = record.model or UNKNOWN_MODEL
        self._requests.labels(record.method, model, code).inc()
        exemplar = None if record.trace_id is None else {"trace_id": record.trace_id}
        self._duration.labels(record.method, model).observe(duration_seconds, exemplar)
        self._grpc_handled.labels("unary", service, record.method, code).inc()
        self._grpc_seconds.labels("unary", service, record.method).observe(duration_seconds)
        if reason is not None:
            self._rejected.labels(reason).inc()
        if code == "DEADLINE_EXCEEDED":
            self._deadline_missed.labels(model).inc()
        if record.passed_on:
            self._version_requests.labels(model, record.passed_on, "passed_on").inc()
        if record.version:
            self._version_requests.labels(model, record.version, "failed" if reason else "answered").inc()
            if reason is None:
                spent = sum(record.stage_seconds.values())
                self._version_duration.labels(model, record.version).observe(spent)
                self.version_inferred(model, record.version, record.stage_seconds.get("inference", 0.0))
        if reason is None:
            for stage, spent_seconds in record.stage_seconds.items():
                self._stages.labels(model, stage).observe(spent_seconds)

    def batch_dispatched(self, model: str, *, size: int, reason: str) -> None:
        """Record a batch leaving the queue; `reason` is `idle`, `full` or `deadline`."""
        self._batch_size.labels(model).observe(size)
        self._dispatch.labels(model, reason).inc()

    def batch_answered(self, model: str, *, predicted_seconds: float, spent_seconds: float) -> None:
        """Record how well a batch's time was foreseen. The first batch of a model has no prediction."""
        if predicted_seconds:
            self._predicted.labels(model).observe(predicted_seconds)
            self._prediction_error.labels(model).observe(abs(spent_seconds - predicted_seconds))

    def refused_late(self, model: str) -> None:
        """Count a request that was accepted and then refused."""
        self._refused_late.labels(model).inc()

    def batch_retried(self, model: str) -> None:
        """Count a batch sent again."""
        self._retried.labels(model).inc()

    def workers(self, model: str, *, ready: bool, count: int) -> None:
        """Record what the health monitor saw."""
        self._worker_ready.labels(model).set(1 if ready else 0)
        self._worker_count.labels(model).set(count)

    def rollout_file(self, *, valid: bool) -> None:
        """Record whether the roll-out file could be read."""
        self._rollout_file.set(float(valid))

    def rollout_state(self, model: str, *, settled: bool, shares: Mapping[str, tuple[str, float]]) -> None:
        """Record which versions of a model are served: role and share of the requests by version."""
        self._rollout_settled.labels(model).set(float(settled))
        series = {(version, role) for version, (role, _) in shares.items()}
        for gone in self._shares.get(model, set()) - series:
            self._version_share.remove(model, *gone)
        self._shares[model] = series
        for version, (role, share) in shares.items():
            self._version_share.labels(model, version, role).set(share)
            if role == "candidate":
                for outcome in SHADOW_OUTCOMES:
                    self._shadow_runs.labels(model, version, outcome)
            for outcome in VERSION_OUTCOMES:
                self._version_requests.labels(model, version, outcome)

    def version_inferred(self, model: str, version: str, seconds: float) -> None:
        """Record how long a version's model took over a batch."""
        self._version_inference.labels(model, version).observe(seconds)

    def version_agreed(self, model: str, *, stable: str, candidate: str, metric: str, share: float) -> None:
        """Record how far two versions agreed on a picture."""
        self._agreement.labels(model, stable, candidate, metric).observe(share)

    def shadowed(self, model: str, version: str, outcome: str) -> None:
        """Count a shadow run; `outcome` is one of `SHADOW_OUTCOMES`."""
        self._shadow_runs.labels(model, version, outcome).inc()

    def version_switched(self, before: Card, after: Card) -> None:
        """Record that another version stands for a model."""
        self._model_info.remove(*_info_of(before))
        self._model_info.labels(*_info_of(after)).set(1)

    def backend_restarted(self) -> None:
        """Count a restart of the embedded TorchServe."""
        self._restarts.inc()

    def gateway_restarted(self) -> None:
        """Count a gateway process started again."""
        self._gateway_restarts.inc()

    def page(self, accept: str = "") -> bytes:
        """Render the page Prometheus scrapes, in the format its Accept header asks for; OpenMetrics has exemplars."""
        encode, _ = choose_encoder(accept)
        return encode(self.registry)

    @staticmethod
    def content_type(accept: str = "") -> str:
        """The format of that page."""
        _, content_type = choose_encoder(accept)
        return content_type


def _info_of(card: Card) -> tuple[str, ...]:
    return card.name, card.version, card.task, card.family, card.variant, card.head, card.weights.state


def _state_of(usage: Callable[[], Usage], state: str) -> float:
    count: int = getattr(usage(), state)
    return float(count)
