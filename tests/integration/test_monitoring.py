"""A real Prometheus and Alertmanager over a real `mobilevision serve`: panels show data, an alert comes and goes.

The rules are those of deploy/monitoring with every time made sixty times shorter, and nothing else changed.
"""

import contextlib
import importlib
import json
import math
import re
import shutil
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from fakes import read
from monitoring import DASHBOARD_FILES, MONITORING, RULE_FILES, Panel, panels, shortened
from serving import Served, free_ports, served

from mobilevision.client import CallFailed, VisionClient

ALERTMANAGER = shutil.which("prometheus-alertmanager") or shutil.which("alertmanager")

pytestmark = [
    pytest.mark.integration,
    pytest.mark.exhaustive,  # about a minute
    pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus (Debian: prometheus) is not installed"),
    pytest.mark.skipif(ALERTMANAGER is None, reason="Alertmanager (Debian: prometheus-alertmanager) is not installed"),
]

# Panels that have no data on a machine without these.
NO_DATA = {
    "Pictures per second per core": "Kubernetes (cAdvisor)",
    "Utilisation": "a GPU",
    "Memory used": "a GPU",
    "Pictures per second per GPU": "a GPU",
}
MODEL = "mobilevit_xxs_classify"
SCRAPE = "500ms"
VARIABLES = {"$namespace": ".*", "$model": ".*", "$price_per_hour": "0.10", "$__rate_interval": "8s"}
SECONDS = 120.0


@dataclass
class Webhook:
    """Receives what Alertmanager sends."""

    url: str = ""
    heard: list[dict[str, Any]] = field(default_factory=list)

    def said(self, status: str, alert: str) -> set[str]:
        """Models of which the alert came with that status."""
        told = [one for message in list(self.heard) for one in message["alerts"]]
        return {
            a["labels"].get("model", "") for a in told if (a["status"], a["labels"]["alertname"]) == (status, alert)
        }


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


def until(done: Callable[[], object], what: Callable[[], object], seconds: float = SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, what()
        time.sleep(0.2)


@contextlib.contextmanager
def process(folder: Path, address: str, *command: str) -> Iterator[None]:
    """A program that listens at `address`, ready, until the block ends."""
    log = folder / f"{Path(command[0]).name}.log"
    with log.open("wb") as stream:
        running = subprocess.Popen(
            [*command, f"--web.listen-address={address}"], stdout=stream, stderr=stream, cwd=folder
        )

    def ready() -> bool:
        assert running.poll() is None, log.read_text()
        return answers(f"http://{address}/-/ready")

    try:
        until(ready, log.read_text)
        yield
    finally:
        running.terminate()
        running.wait(30)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@contextlib.contextmanager
def listening() -> Iterator[Webhook]:
    webhook = Webhook()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            webhook.heard.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    webhook.url = f"http://127.0.0.1:{server.server_port}/"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield webhook
    server.shutdown()
    server.server_close()
    thread.join()


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


def short_rules() -> dict[str, str]:
    found = {}
    for file in RULE_FILES:
        text = shortened(file.read_text())
        found[file.name] = re.sub(r"for: (\d+)m", r"for: \1s", text)
    return found


@pytest.fixture(scope="module")
def stack(archives: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("monitoring")
    (folder / "rules").mkdir()
    for name, text in short_rules().items():
        (folder / "rules" / name).write_text(text)
    prometheus, alertmanager = (f"127.0.0.1:{port}" for port in free_ports(2))
    with contextlib.ExitStack() as running:
        gateway = running.enter_context(
            served(archives, folder, MODEL, MOBILEVISION_HEALTH_POLL_SECONDS="0.2", MOBILEVISION_WORKER_THREADS="1")
        )
        webhook = running.enter_context(listening())
        config = yaml.safe_load((MONITORING / "prometheus.yml").read_text())
        config["global"] = {"scrape_interval": SCRAPE, "evaluation_interval": "1s"}
        config["alerting"]["alertmanagers"][0]["static_configs"][0]["targets"] = [alertmanager]
        config["scrape_configs"][0]["static_configs"][0]["targets"] = [gateway.http]
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        routing = {
            "route": {"receiver": "test", "group_wait": "0s", "group_interval": "1s", "group_by": ["..."]},
            "receivers": [{"name": "test", "webhook_configs": [{"url": webhook.url, "send_resolved": True}]}],
        }
        (folder / "alertmanager.yml").write_text(yaml.safe_dump(routing))
        assert ALERTMANAGER is not None
        alone = ("--cluster.listen-address=", f"--storage.path={folder}/alerts")
        running.enter_context(
            process(folder, alertmanager, ALERTMANAGER, f"--config.file={folder}/alertmanager.yml", *alone)
        )
        stored = f"--storage.tsdb.path={folder}/data"
        running.enter_context(
            process(folder, prometheus, "prometheus", f"--config.file={folder}/prometheus.yml", stored)
        )
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
    assert told["annotations"]["runbook_url"] == f"docs/runbook.md#{alert.lower()}"
    assert "No replica answers for" in told["annotations"]["summary"]
