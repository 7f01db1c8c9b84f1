"""Rules, alerts, runbook and dashboards agree with each other and with the metrics of the service."""

import itertools
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest
import yaml
from monitoring import (
    DASHBOARD_FILES,
    FOREIGN,
    MONITORING,
    ROOT,
    RULE_FILES,
    alerts,
    names,
    own_series,
    panels,
    recorded,
    rules,
)

from deploy.monitoring import generate

promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool (Debian: prometheus) is not installed")
RULE_TESTS = sorted((MONITORING / "rules_test").glob("*.yaml"))


def test_generated_files_are_up_to_date() -> None:
    written = generate.files()
    for name, text in written.items():
        assert (MONITORING / name).read_text() == text, f"{name} is stale; run: make monitoring"
    assert {file.name for file in DASHBOARD_FILES} == {Path(n).name for n in written if n.startswith("dashboards/")}


def test_the_runbook_address_reaches_every_link() -> None:
    written = generate.files("https://wiki/runbook")
    assert "docs/runbook.md" not in "".join(written.values())
    assert "https://wiki/runbook#mobilevisionmodelnotready" in written["prometheusrule.yaml"]
    assert '"https://wiki/runbook"' in written["dashboards/service.json"]


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
def test_alerts_fire_and_stay_silent_as_their_cases_say(file: Path) -> None:
    done = subprocess.run(["promtool", "test", "rules", str(file)], check=False, capture_output=True, text=True)
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
        assert alert["annotations"]["runbook_url"] == f"docs/runbook.md#{name.lower()}"
        assert alert["labels"]["severity"] in {"page", "ticket"}
        assert {"summary", "description"} < set(alert["annotations"])


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
