"""The horizontal pod autoscaler of Kubernetes, as its documentation describes it, on plain numbers and given times.

https://kubernetes.io/docs/tasks/run-application/horizontal-pod-autoscale/: each metric asks for ceil(value / target)
pods, or for the current number if the quotient is within the tolerance. The largest number counts. Before scaling down,
the largest number within the stabilization window counts. Policies limit the change in each period. In this simulation
pods are ready at once.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

TOLERANCE = 0.1
SYNC_SECONDS = 15.0


@dataclass(frozen=True)
class Metric:
    """`total`: the sum over all pods. `target`: the wanted mean per pod (AverageValue)."""

    total: float
    target: float


@dataclass
class Autoscaler:
    """`behavior` is that of the manifest. Call `decide` every `SYNC_SECONDS`."""

    least: int
    most: int
    behavior: Mapping[str, Any]
    _wanted_at: list[tuple[float, int]] = field(default_factory=list)
    _changes: list[tuple[float, int]] = field(default_factory=list)

    def decide(self, now: float, replicas: int, metrics: Sequence[Metric]) -> int:
        """The number of pods from `now` (seconds) on."""
        self._wanted_at.append((now, max(_wanted(replicas, metric) for metric in metrics)))
        window_seconds = self.behavior["scaleDown"]["stabilizationWindowSeconds"]
        # Without a window for scaling up the latest number counts at once.
        assert self.behavior["scaleUp"]["stabilizationWindowSeconds"] == 0
        wanted = self._wanted_at[-1][1]
        if wanted < replicas:
            wanted = min(replicas, max(count for at, count in self._wanted_at if at > now - window_seconds))
        bounded = min(max(wanted, self._lowest(now, replicas)), self._highest(now, replicas))
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


def _wanted(replicas: int, metric: Metric) -> int:
    if abs(metric.total / (metric.target * replicas) - 1) <= TOLERANCE:
        return replicas
    return math.ceil(metric.total / metric.target)
