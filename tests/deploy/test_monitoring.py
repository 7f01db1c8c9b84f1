"""Rules, alerts, runbook and dashboards agree with each other and with the metrics of the service."""

import itertools
import json
import re
import shutil
import subprocess
import tomllib
import urllib.parse
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from monitoring import (
    DASHBOARD_FILES,
    FOREIGN,
    MONITORING,
    ROOT,
    RULE_FILES,
    Panel,
    alerts,
    annotations,
    names,
    own_series,
    panels,
    recorded,
    rules,
    substituted,
)
from promql import CARD, LAST, fleet, needs_prometheus, openmetrics, stored

from deploy.monitoring import generate
from service.cli import fleet_queries
from service.observability.metrics import Metrics

promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool (Debian: prometheus) is not installed")
RUNBOOK = generate.default_runbook()
RULE_TESTS = sorted((MONITORING / "rules_test").glob("*.yaml"))


def test_generated_files_are_up_to_date() -> None:
    written = generate.files()
    for name, text in written.items():
        assert (MONITORING / name).read_text() == text, f"{name} is stale; run: make monitoring"
    assert {file.name for file in DASHBOARD_FILES} == {Path(n).name for n in written if n.startswith("dashboards/")}


def test_the_runbook_address_reaches_every_link() -> None:
    written = generate.files("https://wiki/runbook")
    assert "docs/runbook.md" not in "".join(written.values())
    assert "https://wiki/runbook#mobilevisionnotscraped" in written["rules/causes.yaml"]
    assert "https://wiki/runbook#mobilevisionlatencyburnsfast" in written["rules/slo.yaml"]
    assert "https://wiki/runbook#mobilevisionmodelnotready" in written["prometheusrule.yaml"]
    assert '"https://wiki/runbook"' in written["dashboards/service.json"]


def test_the_default_address_of_the_runbook_is_absolute_and_that_of_the_release() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"{project['urls']['Repository']}/blob/v{project['version']}/docs/runbook.md" == RUNBOOK
    assert urllib.parse.urlsplit(RUNBOOK).scheme == "https"
    assert (ROOT / RUNBOOK.partition(f"/v{project['version']}/")[2]).is_file()


def test_names_of_an_expression() -> None:
    expression = (
        'sum by (le, a_b) (rate(x_bucket{le="0.5", c=~"d e"}[$__rate_interval])) / on (f) group_left (g) y:z:rate5m'
        " unless max_over_time(w[1d:5m]) > 1e6 or vector(0) * $price"
    )
    assert names(expression) == {"x_bucket", "y:z:rate5m", "w"}


def test_every_metric_in_an_expression_exists() -> None:
    known = own_series() | recorded()
    read = {name: rule["expr"] for rule in rules() for name in names(rule["expr"])}
    read |= {
        name: f"{panel.dashboard}: {panel.title}"
        for panel in panels()
        for expression in panel.expressions
        for name in names(expression)
    }
    read |= {name: each["name"] for each in annotations() for name in names(each["expr"])}
    read |= {name: "gate" for check in fleet_queries.CHECKS for name in names(check.query)}
    unknown = {name: where for name, where in read.items() if name not in known and not FOREIGN.fullmatch(name)}
    assert not unknown


@promtool
@pytest.mark.parametrize("file", RULE_FILES, ids=lambda file: file.stem)
def test_promtool_accepts_the_rules(file: Path) -> None:
    subprocess.run(["promtool", "check", "rules", "--lint=all", "--lint-fatal", str(file)], check=True)


@promtool
def test_promtool_accepts_the_configuration() -> None:
    subprocess.run(["promtool", "check", "config", str(MONITORING / "prometheus.yml")], check=True)


@promtool
@pytest.mark.parametrize("file", RULE_TESTS, ids=lambda file: file.stem)
def test_alerts_fire_and_stay_silent_as_their_cases_say(file: Path, tmp_path: Path) -> None:
    copy = tmp_path / file.name
    text = file.read_text().replace("docs/runbook.md", RUNBOOK).replace("../rules/", f"{MONITORING}/rules/")
    copy.write_text(text)
    done = subprocess.run(["promtool", "test", "rules", str(copy)], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_firing_and_a_silent_case() -> None:
    fires, silent = Counter(), Counter()
    for file in RULE_TESTS:
        for case in itertools.chain.from_iterable(
            test["alert_rule_test"] for test in yaml.safe_load(file.read_text())["tests"]
        ):
            (fires if case["exp_alerts"] else silent)[case["alertname"]] += 1
    assert set(fires) == set(silent) == set(alerts())


def test_every_alert_has_a_heading_in_the_runbook_and_a_known_severity() -> None:
    text = (ROOT / "docs" / "runbook.md").read_text()
    sections = dict(re.findall(r"^### (\w+)\n(.*?)(?=^#|\Z)", text, re.MULTILINE | re.DOTALL))
    assert set(sections) == set(alerts())
    for name, alert in alerts().items():
        for part in ("**Meaning.**", "**Impact.**", "**Diagnosis.**", "**Mitigation.**"):
            assert part in sections[name], f"{name} lacks {part}"
        assert alert["annotations"]["runbook_url"] == f"{RUNBOOK}#{name.lower()}"
        severity = alert["labels"]["severity"]
        assert severity in {"critical", "warning"}
        assert f"**Meaning.** {severity.capitalize()}." in sections[name], name
        assert {"summary", "description"} < set(alert["annotations"])


def test_every_alert_names_one_deployment_and_no_gateway_process() -> None:
    """A living deployment hides no dead one, and a pod with several processes has one alert."""
    for name, alert in alerts().items():
        for labels in re.findall(r"(?:sum|min|max|count|avg) by \(([^)]*)\)", alert["expr"]):
            assert {"cluster", "namespace"} <= set(labels.split(", ")), name
        assert not re.search(r"(?:sum|min|max|count|avg) ?\(", alert["expr"]), f"{name} adds up all deployments"


def route_of(labels: dict[str, str], route: dict[str, Any], receiver: str = "") -> str:
    """The receiver of an alert: that of the first child route whose matchers hold, as Alertmanager chooses it."""
    for child in route.get("routes", ()):
        wanted = dict(re.fullmatch(r'(\w+)="(.*)"', matcher).groups() for matcher in child["matchers"])  # type: ignore[union-attr, misc]
        if wanted.items() <= labels.items():
            return route_of(labels, child, child["receiver"])
    return receiver


def test_every_alert_ends_in_a_receiver_of_the_example_that_is_not_the_default() -> None:
    example = yaml.safe_load((MONITORING / "alertmanager.yml").read_text())
    receivers = {one["name"] for one in example["receivers"]}
    found = {
        name: route_of(alert["labels"] | {"alertname": name}, example["route"]) for name, alert in alerts().items()
    }
    assert set(found.values()) == {"mobilevision-critical", "mobilevision-warning"} <= receivers
    assert example["route"]["receiver"] in receivers - set(found.values())
    for name, receiver in found.items():
        assert receiver == f"mobilevision-{alerts()[name]['labels']['severity']}"


@pytest.mark.skipif(shutil.which("amtool") is None, reason="amtool (Debian: prometheus-alertmanager) is not installed")
def test_alertmanager_accepts_the_example() -> None:
    subprocess.run(["amtool", "check-config", str(MONITORING / "alertmanager.yml")], check=True)


@pytest.mark.parametrize("file", DASHBOARD_FILES, ids=lambda file: file.stem)
def test_dashboards_have_a_cluster_a_pod_and_marks_of_rollouts(file: Path) -> None:
    dashboard = json.loads(file.read_text())
    variables = [one["name"] for one in dashboard["templating"]["list"]]
    assert variables[:5] == ["datasource", "cluster", "namespace", "pod", "model"]
    assert [one["name"] for one in dashboard["annotations"]["list"]] == ["Versions", "Candidates", "Pods"]
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids), "rows have ids too"
    assert 0 not in ids


@pytest.mark.parametrize("panel", list(panels()), ids=lambda panel: f"{panel.dashboard}: {panel.title}")
def test_panels_name_pods_where_they_show_each(panel: Panel) -> None:
    for target in panel.json["targets"]:
        if "{{instance}}" in target["legendFormat"]:
            assert "{{pod}}" in target["legendFormat"]


# What the processes themselves take, which is not the same in each.
OF_PROCESSES = {"Gateway CPU per picture", "Memory of the gateways"}
TWO_VERSIONS = {"1.0": ("stable", 0.9), "1.1": ("candidate", 0.1)}


def _start(metrics: Metrics) -> None:
    metrics.workers.observe(CARD.name, ready=True, count=2)
    metrics.rollouts.versions_served(CARD.name, settled=True, shares=TWO_VERSIONS)


def _each(metrics: Metrics) -> None:
    metrics.callers.observe("camera", listed=True, code="OK")
    metrics.batches.dispatched(CARD.name, size=1, reason="idle")
    metrics.uploads.refused("too_slow")
    metrics.recording.count("written")


@needs_prometheus
def test_panels_show_the_same_for_one_and_for_three_gateway_processes(tmp_path: Path) -> None:
    shown: list[dict[str, Any]] = []
    for processes in (1, 3):
        folder = tmp_path / str(processes)
        folder.mkdir()
        series = fleet(2, processes, 30, 0.25, start=_start, each=_each)
        with stored(folder, openmetrics(series)) as store:
            found = {}
            for panel in panels():
                for expression in map(substituted, panel.expressions):
                    result = store.query(expression, step=LAST)
                    found[panel.title, expression] = {json.dumps(labels, sort_keys=True): v for labels, v in result}
            shown.append(found)
    one, three = shown
    assert [key for key, values in one.items() if not values] != list(one)
    for (title, expression), values in one.items():
        if title not in OF_PROCESSES:
            assert three[title, expression] == pytest.approx(values, nan_ok=True), (title, expression)
    (replicas,) = {tuple(values.values()) for (title, _), values in three.items() if title == "Replicas"}
    assert replicas == (2.0,)


@pytest.mark.parametrize("dashboard", [file.stem for file in DASHBOARD_FILES])
def test_panels_are_complete_and_do_not_overlap(dashboard: str) -> None:
    shown = [panel for panel in panels() if panel.dashboard == dashboard]
    assert shown
    assert len({panel.json["id"] for panel in shown}) == len(shown)
    taken: dict[tuple[int, int], str] = {}
    for panel in shown:
        assert panel.json["description"], panel.title
        heatmap = panel.json["type"] == "heatmap"
        assert (panel.json["options"]["yAxis"] if heatmap else panel.json["fieldConfig"]["defaults"])["unit"], (
            panel.title
        )
        for link in panel.json.get("links", []):
            assert link["url"].removeprefix("${runbook}#") in {name.lower() for name in alerts()}
        at = panel.json["gridPos"]
        for cell in itertools.product(range(at["x"], at["x"] + at["w"]), range(at["y"], at["y"] + at["h"])):
            assert cell not in taken, f"{panel.title} lies on {taken[cell]}"
            assert cell[0] < 24
            taken[cell] = panel.title


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
def test_the_kustomization_builds(tmp_path: Path) -> None:
    shutil.copytree(MONITORING, tmp_path / "monitoring")
    (tmp_path / "kustomization.yaml").write_text("resources: [monitoring]\nnamespace: vision\n")
    built = subprocess.run(["kubectl", "kustomize", str(tmp_path)], check=True, capture_output=True, text=True)
    rule, dashboards = sorted(yaml.safe_load_all(built.stdout), key=lambda resource: -len(resource["kind"]))
    assert (rule["kind"], dashboards["kind"]) == ("PrometheusRule", "ConfigMap")
    assert rule["metadata"]["namespace"] == "vision"
    assert sum(len(group["rules"]) for group in rule["spec"]["groups"]) == len(rules())
    assert set(dashboards["data"]) == {file.name for file in DASHBOARD_FILES}
