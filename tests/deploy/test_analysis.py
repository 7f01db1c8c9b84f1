"""The gate over a fleet: its queries, in a real Prometheus with the metrics of two pods with two processes each.

The same checks are those of `models compare --prometheus`, of `models promote --prometheus`, and of the
AnalysisTemplate for Argo Rollouts.
"""

import contextlib
import http.server
import itertools
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
import yaml
from click.testing import Result
from monitoring import MONITORING
from promql import CARD, LAST, Store, fleet, needs_prometheus, openmetrics, stored
from typer.testing import CliRunner

from deploy.monitoring import analysis
from service.cli import fleet_queries
from service.cli.fleet import Fleet, Verdict
from service.cli.main import app
from service.core.types import RequestRecord
from service.observability.metrics import Metrics
from service.serving import rollout_spec
from service.serving.rollout_spec import Entry

pytestmark = needs_prometheus

NAME = CARD.name
BOTH = {"1.0": ("stable", 0.9), "1.1": ("candidate", 0.1)}


def two_versions(metrics: Metrics) -> None:
    metrics.rollouts.versions_served(NAME, settled=True, shares=BOTH)


class Calls:
    """One call in ten is answered by the candidate, and each is compared. Nine of ten agree."""

    def __init__(self, *, candidate_seconds: float = 0.02, failed: bool = False) -> None:
        self._numbers = itertools.count()
        self._seconds = candidate_seconds
        self._failed = failed

    def __call__(self, metrics: Metrics) -> None:
        number = next(self._numbers)
        candidate = number % 10 == 0
        seconds = self._seconds if candidate else 0.02
        stages = {"queue": seconds / 2, "inference": seconds / 2}
        record = RequestRecord("", "Classify", NAME, version="1.1" if candidate else "1.0", stage_seconds=stages)
        if candidate and self._failed and number % 20 == 0:
            stages = {"queue": 0.01, "inference": 0.01}
            record = RequestRecord("", "Classify", NAME, version="1.0", passed_on="1.1", stage_seconds=stages)
        metrics.observe_request(record, code="OK", reason=None, duration_seconds=seconds)
        metrics.rollouts.agreed(NAME, stable="1.0", candidate="1.1", metric="top1", share=float(number % 10 != 5))
        metrics.rollouts.shadowed(NAME, "1.1", "compared")


def verdicts(store: Store, stable: str = "1.0", candidate: str = "1.1") -> dict[str, Verdict]:
    found = {}
    match = fleet_queries.match(NAME, "mobilevision")
    for check in fleet_queries.CHECKS:
        query = fleet_queries.filled(check.query, match=match, stable=stable, candidate=candidate, window="5m")
        values = [value for _, value in store.query(query, step=LAST)]
        assert len(values) <= 1
        found[check.name] = Verdict(check, values[0] if values and values[0] == values[0] else None, check.limit)
    return found


def test_the_checks_add_up_pods_and_processes(tmp_path: Path) -> None:
    with stored(tmp_path, openmetrics(fleet(2, 2, 20, 0.02, start=two_versions, each=Calls()))) as store:
        found = verdicts(store)
        other = verdicts(store, candidate="1.2")
    assert found["pods"].value == 1
    assert found["pictures"].value == pytest.approx(2 * 20 * 20)  # five minutes of 15 s
    assert found["agreement"].value == pytest.approx(0.9)
    assert found["failures"].value == 0
    assert found["slowdown"].value == pytest.approx(1)
    assert [name for name, one in found.items() if not one.passes] == ["agreement"]
    assert not any(one.passes for one in other.values()), "no data does not pass"


def test_a_slow_candidate_and_one_that_passes_calls_on_are_found(tmp_path: Path) -> None:
    calls = Calls(candidate_seconds=0.2, failed=True)
    with stored(tmp_path, openmetrics(fleet(2, 2, 20, 0.02, start=two_versions, each=calls))) as store:
        found = verdicts(store)
    assert found["failures"].value == pytest.approx(1 / 22)
    assert not found["failures"].passes
    assert found["slowdown"].value is not None
    assert found["slowdown"].value > 5


def test_a_candidate_with_shadow_runs_only_is_compared_by_its_inference(tmp_path: Path) -> None:
    def shadow(metrics: Metrics) -> None:
        record = RequestRecord("", "Classify", NAME, version="1.0", stage_seconds={"inference": 0.01})
        metrics.observe_request(record, code="OK", reason=None, duration_seconds=0.01)
        metrics.rollouts.inferred(NAME, "1.1", 0.02)
        metrics.rollouts.shadowed(NAME, "1.1", "compared")

    with stored(tmp_path, openmetrics(fleet(1, 2, 10, 0.02, start=two_versions, each=shadow))) as store:
        found = verdicts(store)
    assert found["slowdown"].value == pytest.approx(2)
    assert found["failures"].value == 0


def test_a_pod_that_does_not_serve_the_candidate_closes_the_gate(tmp_path: Path) -> None:
    def one_version(metrics: Metrics) -> None:
        metrics.rollouts.versions_served(NAME, settled=False, shares={"1.0": ("stable", 1.0)})

    series = fleet(2, 2, 20, 0.02, start=two_versions, each=Calls())
    late = fleet(1, 2, 20, 0.02, start=one_version)
    series |= {name.replace("pod-0", "pod-9").replace("10.0.0.0", "10.0.0.9"): one for name, one in late.items()}
    with stored(tmp_path, openmetrics(series)) as store:
        assert verdicts(store)["pods"].value == pytest.approx(2 / 3)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["models", *map(str, arguments)])


@contextlib.contextmanager
def at_the_last_step(store: Store) -> Iterator[str]:
    """The address of a Prometheus whose present is the last step: it adds the time to each query and passes it on."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with urllib.request.urlopen(f"http://{store.address}{self.path}&time={store.time(LAST)}") as answer:
                body = answer.read()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    series = fleet(2, 2, 20, 0.02, start=two_versions, each=Calls())
    with (
        stored(tmp_path_factory.mktemp("prometheus"), openmetrics(series)) as store,
        at_the_last_step(store) as found,
    ):
        yield found


def test_compare_shows_all_pods_and_the_gate(address: str) -> None:
    options = ("--prometheus", address, "--namespace", "mobilevision", "--window", "5m")
    shown = run("compare", NAME, *options)
    assert shown.exit_code == 0, shown.output
    rows = [line.split()[:5] for line in shown.output.splitlines() if line.strip().startswith("1.")]
    assert rows == [["1.0", "stable", "90%", "720", "0"], ["1.1", "candidate", "10%", "80", "0"]]
    assert "FAIL  agreement: 0.9, at least 0.95" in shown.output
    assert run("compare", NAME, *options, "--gate").exit_code == 1
    assert run("compare", NAME, *options, "--gate", "--limit", "agreement=0.9").exit_code == 0
    other = run("compare", NAME, "--prometheus", address, "--namespace", "elsewhere")
    assert other.exit_code == 1
    assert "know no roll-out" in " ".join(other.output.split())


def test_promote_changes_nothing_unless_the_gate_passes(address: str, tmp_path: Path) -> None:
    file = tmp_path / "rollout.json"
    before = Entry(stable="1.0", candidate="1.1", weight=0.1)
    rollout_spec.edit(file, lambda entries: entries.update({NAME: before}))
    options = ("--file", file, "--prometheus", address, "--window", "5m")
    refused = run("promote", NAME, *options)
    assert refused.exit_code == 1
    assert "agreement: 0.9, at least 0.95" in " ".join(refused.output.split())
    assert rollout_spec.read(file)[NAME] == before
    assert run("promote", NAME, *options, "--limit", "agreement=0.85").exit_code == 0
    assert rollout_spec.read(file)[NAME] == Entry(stable="1.1", previous="1.0")


def test_the_analysis_template_has_the_same_queries_and_limits() -> None:
    found = yaml.safe_load((MONITORING / "analysistemplate.yaml").read_text())
    assert (found["apiVersion"], found["kind"]) == ("argoproj.io/v1alpha1", "AnalysisTemplate")
    arguments = {one["name"]: one.get("value") for one in found["spec"]["args"]}
    given = {"match": fleet_queries.match("m", "ns"), "stable": "1.0", "candidate": "1.1", "window": "1h"}
    values = arguments | {"model": "m", "namespace": "ns", "stable": "1.0", "candidate": "1.1"}
    metrics = found["spec"]["metrics"]
    assert [one["name"] for one in metrics] == [check.name for check in fleet_queries.CHECKS]
    for check, metric in zip(fleet_queries.CHECKS, metrics, strict=True):
        text, condition = metric["provider"]["prometheus"]["query"], metric["successCondition"]
        for name, value in values.items():
            text = text.replace(f"{{{{args.{name}}}}}", str(value))
            condition = condition.replace(f"{{{{args.{name}}}}}", str(value))
        assert text == fleet_queries.filled(check.query, **given)
        assert condition.endswith(f"result[0] {'>=' if check.is_floor else '<='} {check.limit:g}")
        assert condition.startswith("len(result) > 0 && !isNaN(result[0]) && ")
    assert arguments["prometheus"] == analysis.PROMETHEUS


@pytest.mark.parametrize(
    ("url", "window"),
    [("localhost:9090", "1h"), ("file:///etc/passwd", "1h"), ("http://h", "soon"), ("http://h", "1h]) or vector(1")],
)
def test_a_wrong_address_and_a_wrong_window_are_wrong_usage(url: str, window: str) -> None:
    with pytest.raises(typer.BadParameter):
        Fleet(url, namespace=None, window=window)
    assert run("compare", NAME, "--prometheus", url, "--window", window).exit_code == 2


@pytest.mark.parametrize("limit", ["agreement", "agreement=much", "speed=1", "agreement=nan"])
def test_a_wrong_limit_is_wrong_usage(limit: str) -> None:
    assert run("compare", NAME, "--prometheus", "http://127.0.0.1:1", "--limit", limit).exit_code == 2


def test_a_prometheus_that_does_not_answer_is_one_line() -> None:
    done = run("compare", NAME, "--prometheus", "http://127.0.0.1:1")
    assert done.exit_code == 1
    assert "name its address with --prometheus" in " ".join(done.output.split())


def test_labels_of_the_operator_cannot_leave_their_quotes() -> None:
    assert fleet_queries.match('m"} or x{', None) == 'model="m\\"} or x{"'
