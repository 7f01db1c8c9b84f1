"""Reads deploy/monitoring for tests: rules, alerts, metric names, panels."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from service.observability.gpu import GpuCollector
from service.observability.metrics import Metrics

ROOT = Path(__file__).parents[1]
MONITORING = ROOT / "deploy" / "monitoring"
RULE_FILES = sorted((MONITORING / "rules").glob("*.yaml"))
DASHBOARD_FILES = sorted((MONITORING / "dashboards").glob("*.json"))

# Metrics of other exporters: Prometheus itself, cAdvisor, kube-state-metrics, NVIDIA's DCGM exporter.
FOREIGN = re.compile(r"up|ALERTS|container_\w+|kube_\w+|DCGM_FI_\w+")

_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_LABEL_LISTS = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)")
_DURATION = re.compile(r"\[[^]]*\]")
_NAME = re.compile(r"(?<![\w:$])[a-zA-Z_:][\w:]*+(?!\s*\()")
_WORDS = frozenset({"and", "or", "unless", "by", "without", "on", "ignoring", "bool", "offset"})


@dataclass(frozen=True)
class Panel:
    """A panel of a dashboard that shows data."""

    dashboard: str
    title: str
    json: dict[str, Any]

    @property
    def expressions(self) -> list[str]:
        return [target["expr"] for target in self.json["targets"]]


def rules() -> list[dict[str, Any]]:
    """Every rule of every group."""
    groups = [group for file in RULE_FILES for group in yaml.safe_load(file.read_text())["groups"]]
    return [rule for group in groups for rule in group["rules"]]


def alerts() -> dict[str, dict[str, Any]]:
    """Alerting rules by name."""
    return {rule["alert"]: rule for rule in rules() if "alert" in rule}


def recorded() -> set[str]:
    """Names of recorded series."""
    return {rule["record"] for rule in rules() if "record" in rule}


def panels() -> Iterator[Panel]:
    """Every panel with queries."""
    for file in DASHBOARD_FILES:
        dashboard = json.loads(file.read_text())
        for panel in dashboard["panels"]:
            if panel["type"] != "row":
                yield Panel(file.stem, panel["title"], panel)


def annotations() -> Iterator[dict[str, Any]]:
    """Every annotation of the dashboards."""
    for file in DASHBOARD_FILES:
        yield from json.loads(file.read_text())["annotations"]["list"]


# Values of the variables of the dashboards, as Grafana puts them in.
VARIABLES = {
    **dict.fromkeys(("$cluster", "$namespace", "$pod", "$model"), ".*"),
    "$price_per_hour": "0.10",
    "$__rate_interval": "1m",
}


def substituted(expression: str) -> str:
    """The expression with a value for each variable of the dashboards."""
    for name, value in VARIABLES.items():
        expression = expression.replace(name, value)
    assert "$" not in expression
    return expression


def names(expression: str) -> set[str]:
    """Names of the metrics in a PromQL expression."""
    plain = _DURATION.sub("", _LABEL_LISTS.sub("", _STRING.sub('""', expression)))
    plain = re.sub(r"\{[^}]*\}", "", plain)
    return {name for name in _NAME.findall(plain) if name not in _WORDS}


def own_series() -> set[str]:
    """Every series name the gateway can export."""
    metrics = Metrics()
    families = [*metrics.registry.collect(), *GpuCollector(nvml=None).describe()]  # type: ignore[arg-type]
    found = set()
    for family in families:
        suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}.get(family.type, ("",))
        found |= {family.name + suffix for suffix in suffixes}
    return found


def shortened(text: str, factor: int = 60) -> str:
    """The rules or expression with every range divided by `factor`, but at least four seconds."""
    seconds = {"s": 1, "m": 60, "h": 3600, "d": 86400}

    def shorter(match: re.Match[str]) -> str:
        return f"{max(4, int(match[1]) * seconds[match[2]] // factor)}s"

    return re.sub(r"(?<=[\[:])(\d+)([smhd])(?=[\]:])", shorter, text)
