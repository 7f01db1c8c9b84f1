"""Metrics of versions: which are served, how requests are split among them, how a candidate compares.

In: what reconciler, workers and shadow runner report, and finished `RequestRecord`s. Out: Prometheus series.
"""

from collections.abc import Mapping

from handlers.contract.card import Card
from service.core.types import Computed, RequestRecord
from service.observability.registry import MetricFactory
from service.observability.request_metrics import UNKNOWN_MODEL

SHADOW_OUTCOMES = ("compared", "failed", "dropped")
VERSION_OUTCOMES = ("answered", "failed", "passed_on")

_SHARE_BUCKETS = (0.0, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0)


class RolloutMetrics:
    """Records requests, shadow runs and shares by version."""

    def __init__(self, factory: MetricFactory) -> None:
        self._model_info = factory.gauge(
            "model_info",
            "The served version of each model, and what its workers compute with. The value is always 1. engine, dtype "
            "and device are empty until a worker has said them.",
            "model",
            "version",
            "task",
            "family",
            "variant",
            "head",
            "weights",
            "engine",
            "dtype",
            "device",
        )
        self._infos: dict[str, tuple[str, ...]] = {}  # label values of `model_info` by model
        self._requests = factory.counter(
            "version_requests",
            "Requests sent to a version, by outcome: answered, failed, or passed on to the stable version.",
            "model",
            "version",
            "outcome",
        )
        self._duration = factory.seconds(
            "version_duration_seconds",
            "Time an answered request spent in the stages of one version.",
            "model",
            "version",
        )
        self._inference = factory.seconds(
            "version_inference_seconds",
            "Time the model of a version took for one batch, shadow runs included.",
            "model",
            "version",
        )
        self._shadow_runs = factory.counter(
            "shadow_runs",
            "Requests repeated on a candidate for comparison, by outcome: compared, failed, or dropped under load.",
            "model",
            "version",
            "outcome",
        )
        self._agreement = factory.histogram(
            "version_agreement",
            "Agreement of a candidate with the stable version on one picture, 0 to 1. metric: top1, box_f1 or miou.",
            "model",
            "stable",
            "candidate",
            "metric",
            buckets=_SHARE_BUCKETS,
        )
        self._share = factory.gauge(
            "version_share", "Share of the requests that a version receives, 0 to 1.", "model", "version", "role"
        )
        self._file_valid = factory.gauge(
            "rollout_file_valid", "Whether the roll-out file is valid and used (1) or invalid (0)."
        )
        self._file_valid.set(1)
        self._settled = factory.gauge(
            "rollout_settled", "Whether the model is served as the roll-out file says (1) or not yet (0).", "model"
        )
        self._shares: dict[str, set[tuple[str, str]]] = {}  # label values (version, role) of `version_share` by model

    def add_model(self, card: Card) -> None:
        """Create the series of a model and of the version that is served."""
        self.computed(card, Computed())
        for outcome in VERSION_OUTCOMES:
            self._requests.labels(card.name, card.version, outcome)

    def observe(self, record: RequestRecord, *, failed: bool) -> None:
        """Record a finished request for the versions it was sent to."""
        model = record.model or UNKNOWN_MODEL
        if record.passed_on:
            self._requests.labels(model, record.passed_on, "passed_on").inc()
        if not record.version:
            return
        self._requests.labels(model, record.version, "failed" if failed else "answered").inc()
        if not failed:
            self._duration.labels(model, record.version).observe(sum(record.stage_seconds.values()))
            self.inferred(model, record.version, record.stage_seconds.get("inference", 0.0))

    def file_read(self, *, valid: bool) -> None:
        """Record whether the roll-out file was valid when it was last read."""
        self._file_valid.set(float(valid))

    def versions_served(self, model: str, *, settled: bool, shares: Mapping[str, tuple[str, float]]) -> None:
        """Record the served versions of a model. `shares` has role and share of the requests (0 to 1) by version."""
        self._settled.labels(model).set(float(settled))
        series = {(version, role) for version, (role, _) in shares.items()}
        for gone in self._shares.get(model, set()) - series:
            self._share.remove(model, *gone)
        self._shares[model] = series
        for version, (role, share) in shares.items():
            self._share.labels(model, version, role).set(share)
            if role == "candidate":
                for outcome in SHADOW_OUTCOMES:
                    self._shadow_runs.labels(model, version, outcome)
            for outcome in VERSION_OUTCOMES:
                self._requests.labels(model, version, outcome)

    def computed(self, card: Card, computed: Computed) -> None:
        """Record the stable version of a model, and what its workers compute with."""
        info = _info_of(card, computed)
        before = self._infos.get(card.name)
        if info == before:
            return
        if before is not None:
            self._model_info.remove(*before)
        self._model_info.labels(*info).set(1)
        self._infos[card.name] = info

    def inferred(self, model: str, version: str, seconds: float) -> None:
        """Record how long the model of a version took for one batch."""
        self._inference.labels(model, version).observe(seconds)

    def agreed(self, model: str, *, stable: str, candidate: str, metric: str, share: float) -> None:
        """Record how far two versions agreed on one picture, 0 to 1."""
        self._agreement.labels(model, stable, candidate, metric).observe(share)

    def shadowed(self, model: str, version: str, outcome: str) -> None:
        """Count a shadow run. `outcome` is one of `SHADOW_OUTCOMES`."""
        self._shadow_runs.labels(model, version, outcome).inc()


def _info_of(card: Card, computed: Computed) -> tuple[str, ...]:
    version = card.name, card.version, card.task, card.family, card.variant, card.head, card.weights.state
    return *version, computed.network_engine, computed.dtype, computed.device_kind
