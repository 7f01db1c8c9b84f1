"""A real Prometheus and Alertmanager over a real `mobilevision serve`: panels show data, an alert comes and goes.

The rules are those of deploy/monitoring with every time made sixty times shorter, and nothing else changed.
"""

import contextlib
import importlib
import json
import math
import shutil
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import monitoring
import pytest
import yaml
from alert_chain import ALERTMANAGER, Webhook, alert_chain, until
from fakes import read
from monitoring import DASHBOARD_FILES, MONITORING, Panel, panels, shortened
from serving import Served, served

from deploy.monitoring import generate
from mobilevision.client import CallFailed, VisionClient

pytestmark = [
    pytest.mark.integration,
    pytest.mark.exhaustive,  # about a minute
    pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus (Debian: prometheus) is not installed"),
    pytest.mark.skipif(ALERTMANAGER is None, reason="Alertmanager (Debian: prometheus-alertmanager) is not installed"),
]

# Panels that have no data on a machine without these.
NO_DATA = {
    "Pictures per second per core": "Kubernetes (cAdvisor)",
    "CPU throttling": "Kubernetes (cAdvisor)",
    "Replicas that the autoscaler wants": "Kubernetes (kube-state-metrics)",
    "Restarts of containers": "Kubernetes (kube-state-metrics)",
    "TLS files expire in": "TLS",
    "Firing alerts": "a firing alert",
    "Share of the requests per version": "a roll-out",
    "Agreement of the candidate with the stable version": "a roll-out",
    "Shadow runs": "a roll-out",
    "Utilization": "a GPU",
    "Memory used": "a GPU",
    "Pictures per second per GPU": "a GPU",
}
MODEL = "mobilevit_xxs_classify"
VARIABLES = monitoring.VARIABLES | {"$__rate_interval": "8s"}


@dataclass
class Stack:
    """Everything that runs."""

    gateway: Served
    prometheus: str
    webhook: Webhook

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The result of an instant query."""
        query = urllib.parse.urlencode({"query": expression})
        try:
            with urllib.request.urlopen(f"http://{self.prometheus}/api/v1/query?{query}", timeout=10) as answer:
                result: list[dict[str, Any]] = json.load(answer)["data"]["result"]
        except urllib.error.HTTPError as error:
            pytest.fail(f"{expression}: {error.read().decode()}")
        return result


@contextlib.contextmanager
def load(address: str) -> Iterator[None]:
    """Good calls and bad ones, until the block ends. What they answer is not looked at."""
    ended = threading.Event()
    image = read("chelsea.jpg")

    def caller(number: int) -> None:
        with VisionClient(address, timeout_seconds=10) as client:
            while not ended.is_set():
                for picture in (image, b"not a picture") if number == 0 else (image,):
                    with contextlib.suppress(CallFailed):
                        client.classify(picture)
                ended.wait(0.1)

    threads = [threading.Thread(target=caller, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    yield
    ended.set()
    for thread in threads:
        thread.join()


@pytest.fixture(scope="module")
def stack(archives: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("monitoring")
    with contextlib.ExitStack() as running:
        settings = {"HEALTH_POLL_SECONDS": "0.2", "WORKER_THREADS": "1", "GATEWAY_PROCESSES": "2"}
        environment = {f"MOBILEVISION_{name}": value for name, value in settings.items()}
        gateway = running.enter_context(served(archives, folder, MODEL, **environment))
        (scraped,) = yaml.safe_load((MONITORING / "prometheus.yml").read_text())["scrape_configs"]
        scraped["static_configs"][0]["targets"] = [gateway.http]
        prometheus, webhook = running.enter_context(alert_chain(folder, [scraped]))
        running.enter_context(load(gateway.grpc))
        yield Stack(gateway, prometheus, webhook)


def substituted(expression: str) -> str:
    expression = shortened(expression)
    for name, value in VARIABLES.items():
        expression = expression.replace(name, value)
    assert "$" not in expression
    return expression


def empty(stack: Stack, panel: Panel) -> list[str]:
    """Queries of a panel that return nothing, or no number."""
    found = []
    for expression in map(substituted, panel.expressions):
        values = [float(series["value"][1]) for series in stack.query(expression)]
        if all(math.isnan(value) for value in values):
            found.append(expression)
    return found


def test_every_panel_shows_data_under_load(stack: Stack) -> None:
    shown = list(panels())
    with_data = [panel for panel in shown if panel.title not in NO_DATA]
    assert len(with_data) == len(shown) - len(NO_DATA)  # no exception for a panel that is gone
    missing: dict[str, list[str]] = {}

    def complete() -> bool:
        missing.clear()
        missing.update({f"{p.dashboard}: {p.title}": queries for p in with_data if (queries := empty(stack, p))})
        return not missing

    until(complete, lambda: missing)


@pytest.mark.parametrize("file", DASHBOARD_FILES, ids=lambda file: file.stem)
def test_a_dashboard_is_drawn_without_grafana(stack: Stack, file: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    picture = importlib.import_module("deploy.monitoring.picture")  # imports matplotlib
    variables = {name.removeprefix("$"): value for name, value in VARIABLES.items()}
    source = picture.Source(f"http://{stack.prometheus}", time.time(), 20.0, variables)
    figure = picture.draw(json.loads(file.read_text()), source)
    assert len(figure.axes) == len([panel for panel in panels() if panel.dashboard == file.stem])
    figure.savefig(tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000


def test_a_dead_torchserve_is_told_and_its_return_too(stack: Stack) -> None:
    alert = "MobilevisionModelNotReady"
    assert stack.webhook.said("firing", alert) == set()
    stack.gateway.java().kill()
    until(lambda: stack.webhook.said("firing", alert) == {MODEL}, lambda: stack.webhook.heard)
    until(lambda: stack.webhook.said("resolved", alert) == {MODEL}, lambda: stack.webhook.heard)
    told = next(a for message in stack.webhook.heard for a in message["alerts"] if a["labels"]["alertname"] == alert)
    assert told["annotations"]["runbook_url"] == f"{generate.default_runbook()}#{alert.lower()}"
    assert "No replica has a ready worker for" in told["annotations"]["summary"]
