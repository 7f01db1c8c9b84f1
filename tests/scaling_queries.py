"""The queries of the autoscalers in the manifests, with their thresholds, which are means per pod."""

import re
from typing import Any

import yaml
from serving import ROOT

COMPONENTS = ROOT / "deploy" / "k8s" / "components"


def spec(folder: str, file: str, patch: str, items: str) -> dict[str, Any]:
    """The autoscaler of a component, and what the component for two cores adds to it."""
    found: dict[str, Any] = yaml.safe_load((COMPONENTS / folder / file).read_text())["spec"]
    path = COMPONENTS / f"{folder}-cpu-2" / patch
    added = yaml.safe_load(path.read_text()) if path.exists() else []
    assert {(one["op"], one["path"]) for one in added} <= {("add", f"/spec/{items}/-")}
    return found | {items: [*found[items], *(one["value"] for one in added)]}


SCALED = spec("keda", "scaledobject.yaml", "triggers.yaml", "triggers")
HPA = spec("hpa", "horizontalpodautoscaler.yaml", "metrics.yaml", "metrics")


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
