"""On a recorded load, the autoscaler's queries ask for the number of pods that the model in docs/capacity.md predicts.

`python -m benchmarks.load_profile` made the recording on one pod. A real Prometheus answers the queries of the
manifests for clusters of such pods. `autoscaler` contains the documented arithmetic of the autoscaler.
"""

import math
from pathlib import Path
from typing import Any

import pytest
from autoscaler import SYNC_SECONDS, Autoscaler, Metric
from promql import needs_prometheus
from replay import PROFILE, Replay, prometheus
from scaling_queries import HPA, SCALED, hpa, keda

HOUR_SECONDS = 3600.0
PER_POD = PROFILE["capacity_per_second"] * PROFILE["planned_load"]  # R x u


def course(replay: Replay, wanted: dict[str, float], behavior: dict[str, Any], seconds: float) -> list[int]:
    """The number of pods after each decision. It starts with the minimum."""
    scaler = Autoscaler(least=SCALED["minReplicaCount"], most=SCALED["maxReplicaCount"], behavior=behavior)
    counts = [scaler.least]
    for step in range(int(seconds // SYNC_SECONDS)):
        now = step * SYNC_SECONDS
        metrics = [Metric(replay.query(query, counts[-1], now), target) for query, target in wanted.items()]
        counts.append(scaler.decide(now, counts[-1], metrics))
    return counts


@needs_prometheus
@pytest.mark.parametrize(
    ("load", "processes"),
    [
        (2 * PER_POD, 1),
        (3.5 * PER_POD, 1),
        (3.5 * PER_POD, 2),
        (9 * PER_POD, 1),
        (10.5 * PER_POD, 1),
        (12 * PER_POD, 1),
        (12 * PER_POD, 3),
    ],
)
def test_the_queries_ask_for_what_the_capacity_model_predicts(load: float, processes: int, tmp_path: Path) -> None:
    predicted = math.ceil(load / PER_POD)
    possible = range(SCALED["minReplicaCount"], SCALED["maxReplicaCount"] + 1)
    with prometheus(tmp_path, load, possible, processes) as replay:
        by_keda = course(replay, keda(), SCALED["advanced"]["horizontalPodAutoscalerConfig"]["behavior"], HOUR_SECONDS)
        by_hpa = course(replay, hpa(), HPA["behavior"], HOUR_SECONDS)
    for counts in (by_keda, by_hpa):
        assert min(counts[8:]) >= predicted, "enough pods within two minutes, and from then on"
        assert set(counts[-160:]) == {predicted}, "not more pods in the last forty minutes"


def test_the_thresholds_are_those_of_the_recorded_pod() -> None:
    (at_capacity,) = (step for step in PROFILE["steps"] if step["load"] == 1.0)
    expected = {"seconds_count": PER_POD, "seconds_sum": at_capacity["calls_in_flight"]}
    assert list(PROFILE["thresholds"].values()) == pytest.approx(list(expected.values()))
    for wanted in (keda(), hpa()):
        for series, value in expected.items():
            (threshold,) = (target for query, target in wanted.items() if series in query)
            assert threshold == round(value)
    assert set(keda().values()) == set(hpa().values())


BEHAVIOR = HPA["behavior"]


def decide(counts: list[tuple[float, int, float]], target: float = 1.0) -> list[int]:
    scaler = Autoscaler(least=1, most=100, behavior=BEHAVIOR)
    return [scaler.decide(now, replicas, [Metric(total, target)]) for now, replicas, total in counts]


def test_the_autoscaler_as_documented() -> None:
    assert decide([(0, 10, 15)]) == [15]  # ceil(15 / 1)
    assert decide([(0, 10, 10.9)]) == [10]  # within a tenth
    assert decide([(0, 10, 11.1)]) == [12]
    assert decide([(0, 2, 50)]) == [6]  # 4 more pods are allowed, which is more than 100 %
    assert decide([(0, 10, 50)]) == [20]  # 100 %
    assert decide([(0, 10, 50), (15, 20, 50), (30, 20, 50)]) == [20, 20, 40]  # 100 % in each half minute
    assert decide([(0, 10, 10), (15, 10, 1), (615, 10, 1), (630, 9, 1), (690, 9, 1)]) == [
        10,
        10,
        9,
        9,
        8,
    ]  # the stabilization window first
