"""The autoscaler's queries, on a recorded load, ask for the pods that the model in docs/capacity.md predicts.

Recorded by `python -m benchmarks.marks` on one pod; a real Prometheus answers the queries of the manifests for clusters
of such pods; the rest is the documented arithmetic of the autoscaler.
"""

import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from autoscaler import SYNC_SECONDS, Autoscaler, Metric
from replay import MARKS, ROOT, Replay, prometheus

COMPONENTS = ROOT / "deploy" / "k8s" / "components"
SCALED = yaml.safe_load((COMPONENTS / "keda" / "scaledobject.yaml").read_text())["spec"]
HPA = yaml.safe_load((COMPONENTS / "hpa" / "horizontalpodautoscaler.yaml").read_text())["spec"]
HOUR_SECONDS = 3600.0
PER_POD = MARKS["capacity_per_second"] * MARKS["planned"]  # R x u

needs_prometheus = pytest.mark.skipif(
    shutil.which("promtool") is None or shutil.which("prometheus") is None,
    reason="prometheus (Debian package: prometheus) is not installed",
)


def keda() -> dict[str, float]:
    """Queries and the mean per pod they are held to."""
    return {one["metadata"]["query"]: float(one["metadata"]["threshold"]) for one in SCALED["triggers"]}


def hpa() -> dict[str, float]:
    """The same for prometheus-adapter, by the rules in docs/kubernetes.md, which ask for each pod. CPU is left out."""
    text = (ROOT / "docs" / "kubernetes.md").read_text()
    rules = yaml.safe_load(re.search(r"```yaml\n(rules:.*?)```", text, re.DOTALL)[1])["rules"]
    queries = {}
    for rule in rules:
        query = rule["metricsQuery"].replace("<<.Series>>", rule["seriesQuery"].partition("{")[0])
        query = query.replace("<<.LabelMatchers>>", 'namespace="mobilevision"').replace("<<.GroupBy>>", "pod")
        queries[rule["name"]["as"]] = f"sum({query})"
    metrics = [one["pods"] for one in HPA["metrics"] if one["type"] == "Pods"]
    assert {one["metric"]["name"] for one in metrics} == set(queries)
    return {queries[one["metric"]["name"]]: quantity(one["target"]["averageValue"]) for one in metrics}


def quantity(text: str) -> float:
    return float(text.removesuffix("m")) / (1000 if text.endswith("m") else 1)


def course(replay: Replay, wanted: dict[str, float], behavior: dict[str, Any], seconds: float) -> list[int]:
    """The number of pods after each decision, from the fewest on."""
    scaler = Autoscaler(least=SCALED["minReplicaCount"], most=SCALED["maxReplicaCount"], behavior=behavior)
    counts = [scaler.least]
    for step in range(int(seconds // SYNC_SECONDS)):
        now = step * SYNC_SECONDS
        metrics = [Metric(replay.query(query, counts[-1], now), target) for query, target in wanted.items()]
        counts.append(scaler.decide(now, counts[-1], metrics))
    return counts


@needs_prometheus
@pytest.mark.parametrize("load", [2 * PER_POD, 3.5 * PER_POD, 9 * PER_POD, 10.5 * PER_POD, 12 * PER_POD])
def test_the_queries_ask_for_what_the_capacity_model_predicts(load: float, tmp_path: Path) -> None:
    predicted = math.ceil(load / PER_POD)
    possible = range(SCALED["minReplicaCount"], SCALED["maxReplicaCount"] + 1)
    with prometheus(tmp_path, load, possible) as replay:
        by_keda = course(replay, keda(), SCALED["advanced"]["horizontalPodAutoscalerConfig"]["behavior"], HOUR_SECONDS)
        by_hpa = course(replay, hpa(), HPA["behavior"], HOUR_SECONDS)
    for counts in (by_keda, by_hpa):
        assert min(counts[8:]) >= predicted, "enough within two minutes, and from then on"
        assert set(counts[-160:]) == {predicted}, "no more than that in the last forty minutes"


def test_the_thresholds_are_the_marks_of_the_recorded_pod() -> None:
    (at_capacity,) = (step for step in MARKS["steps"] if step["load"] == 1.0)
    marks = {"seconds_count": PER_POD, "seconds_sum": at_capacity["calls_in_work"]}
    assert list(MARKS["marks"].values()) == pytest.approx(list(marks.values()))
    for wanted in (keda(), hpa()):
        for series, mark in marks.items():
            (threshold,) = (target for query, target in wanted.items() if series in query)
            assert threshold == round(mark)
    assert set(keda().values()) == set(hpa().values())


BEHAVIOR = HPA["behavior"]


def decide(counts: list[tuple[float, int, float]], target: float = 1.0) -> list[int]:
    scaler = Autoscaler(least=1, most=100, behavior=BEHAVIOR)
    return [scaler.decide(now, replicas, [Metric(total, target)]) for now, replicas, total in counts]


def test_the_autoscaler_as_documented() -> None:
    assert decide([(0, 10, 15)]) == [15]  # ceil(15 / 1)
    assert decide([(0, 10, 10.9)]) == [10]  # within a tenth
    assert decide([(0, 10, 11.1)]) == [12]
    assert decide([(0, 2, 50)]) == [6]  # 4 pods are more than 100 %
    assert decide([(0, 10, 50)]) == [20]  # 100 %
    assert decide([(0, 10, 50), (15, 20, 50), (30, 20, 50)]) == [20, 20, 40]  # each half minute
    assert decide([(0, 10, 10), (15, 10, 1), (615, 10, 1), (630, 9, 1), (690, 9, 1)]) == [
        10,
        10,
        9,
        9,
        8,
    ]  # quiet first
