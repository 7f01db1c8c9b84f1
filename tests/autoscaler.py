"""The horizontal autoscaler of Kubernetes, as its documentation describes it, on plain numbers and given times.

https://kubernetes.io/docs/tasks/run-application/horizontal-pod-autoscale/: each metric wishes ceil(value / target), or
what there is where the quotient is within the tolerance; the greatest wish counts; a window takes the greatest of the
wishes lately before going down; policies bound how far each period may go. Pods are ready at once here.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

TOLERANCE = 0.1
SYNC_SECONDS = 15.0


@dataclass(frozen=True)
class Metric:
    """`total`: over all pods. `target`: the mean per pod that is wanted (AverageValue)."""

    total: float
    target: float


@dataclass
class Autoscaler:
    """`behavior`: as in the manifest. `decide` is asked every `SYNC_SECONDS`."""

    least: int
    most: int
    behavior: Mapping[str, Any]
    _wishes: list[tuple[float, int]] = field(default_factory=list)
    _changes: list[tuple[float, int]] = field(default_factory=list)

    def decide(self, now: float, replicas: int, metrics: Sequence[Metric]) -> int:
        """How many pods from now on."""
        self._wishes.append((now, max(_wish(replicas, metric) for metric in metrics)))
        calm = self.behavior["scaleDown"]["stabilizationWindowSeconds"]
        assert self.behavior["scaleUp"]["stabilizationWindowSeconds"] == 0  # the latest wish counts at once
        wish = self._wishes[-1][1]
        if wish < replicas:
            wish = min(replicas, max(wish for at, wish in self._wishes if at > now - calm))
        bounded = min(max(wish, self._lowest(now, replicas)), self._highest(now, replicas))
        decided = min(max(bounded, self.least), self.most)
        self._changes.append((now, decided - replicas))
        return decided

    def _highest(self, now: float, replicas: int) -> int:
        def allowed(policy: Mapping[str, Any]) -> int:
            started = replicas - self._changed(now, policy["periodSeconds"], up=True)
            added = started * policy["value"] / 100 if policy["type"] == "Percent" else policy["value"]
            return math.ceil(started + added)

        assert self.behavior["scaleUp"]["selectPolicy"] == "Max"
        return max(allowed(policy) for policy in self.behavior["scaleUp"]["policies"])

    def _lowest(self, now: float, replicas: int) -> int:
        def allowed(policy: Mapping[str, Any]) -> int:
            started = replicas - self._changed(now, policy["periodSeconds"], up=False)
            removed = started * policy["value"] / 100 if policy["type"] == "Percent" else policy["value"]
            return int(started - removed)

        assert self.behavior["scaleDown"]["selectPolicy"] == "Max"
        return min(allowed(policy) for policy in self.behavior["scaleDown"]["policies"])

    def _changed(self, now: float, seconds: float, *, up: bool) -> int:
        return sum(by for at, by in self._changes if at > now - seconds and (by > 0) == up)


def _wish(replicas: int, metric: Metric) -> int:
    if abs(metric.total / (metric.target * replicas) - 1) <= TOLERANCE:
        return replicas
    return math.ceil(metric.total / metric.target)
