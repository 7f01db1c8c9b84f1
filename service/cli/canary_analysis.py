"""How a candidate does beside the stable version, from the metrics pages of the gateways that serve both.

In: metrics pages as Prometheus scrapes them, one per gateway, or samples of a Prometheus. Out: a `CanaryAnalysis` of
one model, with the counts of all gateways added up. On pages, counts start when a gateway starts. This module never
fetches a page.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample


class NotServed(ValueError):
    """The pages have no metrics of a roll-out of the model."""


@dataclass(frozen=True, slots=True)
class VersionState:
    """What one version of a model did. Times are None where it answered no request."""

    version: str
    role: str
    share: float  # of the requests, 0..1, from the roll-out file
    answered: float
    failed: float
    passed_on: float
    median_seconds: float | None
    p95_seconds: float | None
    inference_seconds: float | None  # mean time that a batch spends in the model


@dataclass(frozen=True, slots=True)
class CanaryAnalysis:
    """The versions of a model, stable first, and how far their answers agree.

    `agreement` is the mean of `metric` over the `compared` pictures, 0..1; None where no picture was compared. Of the
    pictures that the candidate ran for comparison, `dropped` were left out to leave room and `failed` had no answer.
    """

    versions: tuple[VersionState, ...]
    metric: str
    agreement: float | None
    compared: int
    dropped: int
    failed: int


def analyze_canary(model: str, pages: Iterable[str]) -> CanaryAnalysis:
    """Compare the versions of `model` by the metrics of all `pages`. Raises `NotServed`."""
    return analyze_samples(
        model,
        [sample for page in pages for family in text_string_to_metric_families(page) for sample in family.samples],
    )


def analyze_samples(model: str, samples: Iterable[Sample]) -> CanaryAnalysis:
    """Compare the versions of `model` by the samples of all gateways. Raises `NotServed`."""
    mine = [sample for sample in samples if sample.labels.get("model") == model]
    found = {
        (sample.labels["version"], sample.labels["role"]): sample.value
        for sample in mine
        if sample.name == "mobilevision_version_share"
    }
    if not found:
        raise NotServed(
            f"these gateways know no roll-out of {model}; start one with: mobilevision models canary {model}"
        )
    order = sorted(found, key=lambda key: key[1] != "stable")
    states = tuple(_state(mine, version, role, found[version, role]) for version, role in order)
    stable, candidate = _version_of(states, "stable"), _version_of(states, "candidate")
    both = {"stable": stable, "candidate": candidate}
    compared = _sum(mine, "version_agreement_count", both)
    total = _sum(mine, "version_agreement_sum", both)
    shadow = {
        outcome: round(_sum(mine, "shadow_runs_total", {"version": candidate, "outcome": outcome}))
        for outcome in ("dropped", "failed")
    }
    metrics = {s.labels["metric"] for s in mine if s.name == "mobilevision_version_agreement_count"}
    return CanaryAnalysis(
        versions=states,
        metric=", ".join(sorted(metrics)),
        agreement=total / compared if compared else None,
        compared=round(compared),
        dropped=shadow["dropped"],
        failed=shadow["failed"],
    )


def _state(samples: list[Sample], version: str, role: str, share: float) -> VersionState:
    of = {"version": version}
    outcomes = {
        outcome: _sum(samples, "version_requests_total", of | {"outcome": outcome})
        for outcome in ("answered", "failed", "passed_on")
    }
    batches = _sum(samples, "version_inference_seconds_count", of)
    return VersionState(
        version=version,
        role=role,
        share=share,
        **outcomes,
        median_seconds=_quantile(samples, of, 0.5),
        p95_seconds=_quantile(samples, of, 0.95),
        inference_seconds=_sum(samples, "version_inference_seconds_sum", of) / batches if batches else None,
    )


def _version_of(states: tuple[VersionState, ...], role: str) -> str:
    return next((state.version for state in states if state.role == role), "")


def _sum(samples: list[Sample], name: str, labels: Mapping[str, str]) -> float:
    return sum(
        sample.value
        for sample in samples
        if sample.name == f"mobilevision_{name}" and labels.items() <= sample.labels.items()
    )


def _quantile(samples: list[Sample], labels: Mapping[str, str], share: float) -> float | None:
    """The quantile as Prometheus' histogram_quantile computes it: linear in a bucket, up to the last finite bound."""
    buckets: dict[float, float] = defaultdict(float)
    for sample in samples:
        if sample.name == "mobilevision_version_duration_seconds_bucket" and labels.items() <= sample.labels.items():
            buckets[float(sample.labels["le"])] += sample.value
    total = buckets.get(math.inf, 0.0)
    if not total:
        return None
    low, below = 0.0, 0.0
    for bound, count in sorted(buckets.items()):
        if count >= share * total:
            return low if math.isinf(bound) else low + (bound - low) * (share * total - below) / (count - below)
        low, below = bound, count
    raise ValueError("this is a bug: the last bucket holds all requests")
