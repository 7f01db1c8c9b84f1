"""A real Prometheus with our rules, a real Alertmanager, and a webhook that hears what Alertmanager sends.

The rules are those of deploy/monitoring with every time made sixty times shorter, and nothing else changed.
"""

import contextlib
import json
import re
import shutil
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml
from monitoring import MONITORING, RULE_FILES, shortened
from serving import free_ports

ALERTMANAGER = shutil.which("prometheus-alertmanager") or shutil.which("alertmanager")
SCRAPE = "500ms"
SECONDS = 120.0


@dataclass
class Webhook:
    """Receives what Alertmanager sends."""

    url: str = ""
    heard: list[dict[str, Any]] = field(default_factory=list)

    def said(self, status: str, alert: str, label: str = "model") -> set[str]:
        """Values of the label of the alert, where it came with that status."""
        told = [one for message in list(self.heard) for one in message["alerts"]]
        return {a["labels"].get(label, "") for a in told if (a["status"], a["labels"]["alertname"]) == (status, alert)}


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


def short_rules() -> dict[str, str]:
    found = {}
    for file in RULE_FILES:
        text = shortened(file.read_text())
        found[file.name] = re.sub(r"for: (\d+)m", r"for: \1s", text)
    return found


@contextlib.contextmanager
def alert_chain(folder: Path, scrape_configs: Sequence[dict[str, Any]]) -> Iterator[tuple[str, Webhook]]:
    """Run everything. Yields the address of Prometheus, and the webhook."""
    (folder / "rules").mkdir()
    for name, text in short_rules().items():
        (folder / "rules" / name).write_text(text)
    prometheus, alertmanager = (f"127.0.0.1:{port}" for port in free_ports(2))
    with contextlib.ExitStack() as running:
        webhook = running.enter_context(listening())
        config = yaml.safe_load((MONITORING / "prometheus.yml").read_text())
        config["global"] = {"scrape_interval": SCRAPE, "evaluation_interval": "1s"}
        config["alerting"]["alertmanagers"][0]["static_configs"][0]["targets"] = [alertmanager]
        config["scrape_configs"] = list(scrape_configs)
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
        yield prometheus, webhook
