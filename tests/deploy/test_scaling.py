"""On a recorded load, the autoscaler's queries ask for the number of pods that the model in docs/capacity.md predicts.

`python -m benchmarks.load_profile` made the recording on one pod. A real Prometheus answers the queries of the
manifests for clusters of such pods. `autoscaler` contains the documented arithmetic of the autoscaler.
"""

import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from autoscaler import SYNC_SECONDS, Autoscaler, Metric
from replay import PROFILE, ROOT, Replay, prometheus

COMPONENTS = ROOT / "deploy" / "k8s" / "components"


def spec(folder: str, file: str, patch: str, items: str) -> dict[str, Any]:
    """The autoscaler of a component for two cores: that of the component for all hardware, and what is added to it."""
    found: dict[str, Any] = yaml.safe_load((COMPONENTS / folder / file).read_text())["spec"]
    added = yaml.safe_load((COMPONENTS / f"{folder}-cpu-2" / patch).read_text())
    assert {(one["op"], one["path"]) for one in added} == {("add", f"/spec/{items}/-")}
    return found | {items: [*found[items], *(one["value"] for one in added)]}


SCALED = spec("keda", "scaledobject.yaml", "triggers.yaml", "triggers")
HPA = spec("hpa", "horizontalpodautoscaler.yaml", "metrics.yaml", "metrics")
HOUR_SECONDS = 3600.0
PER_POD = PROFILE["capacity_per_second"] * PROFILE["planned_load"]  # R x u

needs_prometheus = pytest.mark.skipif(
    shutil.which("promtool") is None or shutil.which("prometheus") is None,
    reason="prometheus (Debian package: prometheus) is not installed",
)


def keda() -> dict[str, float]:
    """The queries and their thresholds, which are means per pod."""
    return {one["metadata"]["query"]: float(one["metadata"]["threshold"]) for one in SCALED["triggers"]}


def hpa() -> dict[str, float]:
    """The same for prometheus-adapter, from the rules in docs/kubernetes.md, without CPU."""
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
    """The number of pods after each decision. It starts with the minimum."""
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
