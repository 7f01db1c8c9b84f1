"""Pictures of the dashboards with example data: a real server, a real Prometheus, and a load that rises and falls.

In: built demo models, `prometheus` on the path, matplotlib. Out: `dashboard_NAME.png` for each dashboard, drawn by
`picture`. The load calls three models. It rises above the capacity of the machine, so that refusals appear, and falls
again. One call in twenty contains no valid picture.
"""

import argparse
import contextlib
import json
import random
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import yaml

from deploy.monitoring.picture import HERE, Source, draw
from mobilevision.client import CallFailed, VisionClient
from service.app.local_server import serving

ROOT = HERE.parents[1]
MODELS = ("demo_classify", "demo_detect", "demo_segment")
LOADS_PER_SECOND = (10, 25, 50, 150, 25, 10)  # one after another, each for the same time
CALL_SECONDS = 0.5
CALLERS = 128
SCRAPE_SECONDS = 1
DPI = 60


@contextlib.contextmanager
def prometheus(folder: Path, target: str) -> Iterator[str]:
    """Run a Prometheus that scrapes `target` and evaluates our rules. Yields its address."""
    config = yaml.safe_load((HERE / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": f"{SCRAPE_SECONDS}s", "evaluation_interval": f"{SCRAPE_SECONDS}s"}
    config["rule_files"] = [str(HERE / "rules" / "*.yaml")]
    del config["alerting"]
    config["scrape_configs"][0]["static_configs"][0]["targets"] = [target]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    command = ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    with (folder / "prometheus.log").open("wb") as log:
        running = subprocess.Popen([*command, f"--web.listen-address={address}"], stdout=log, stderr=log)
    try:
        while not _answers(f"http://{address}/-/ready"):
            if running.poll() is not None:
                raise SystemExit((folder / "prometheus.log").read_text())
            time.sleep(0.1)
        yield f"http://{address}"
    finally:
        running.terminate()
        running.wait()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:  # noqa: S310 - our own Prometheus
            return bool(answer.status == 200)
    except OSError:
        return False


def load(address: str, seconds: float) -> None:
    """Send the whole load within `seconds`. The answers are ignored."""
    dice = random.Random(1)  # noqa: S311 - a load, not a secret
    pictures = [file.read_bytes() for file in sorted((ROOT / "docs" / "pictures").glob("*.jpg"))]
    with VisionClient(address, timeout_seconds=CALL_SECONDS) as client, ThreadPoolExecutor(CALLERS) as pool:
        calls = (client.classify, client.classify, client.detect, client.segment)

        def one() -> None:
            image = b"no picture" if dice.random() < 0.05 else dice.choice(pictures)
            with contextlib.suppress(CallFailed):
                dice.choice(calls)(image)

        due_at = time.monotonic()
        for per_second in LOADS_PER_SECOND:
            end_at = due_at + seconds / len(LOADS_PER_SECOND)
            while due_at < end_at:
                time.sleep(max(0.0, due_at - time.monotonic()))
                pool.submit(one)
                due_at += dice.expovariate(per_second)


def main() -> None:
    """Run the load, then draw every dashboard."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=4.0)
    parser.add_argument("--archives", type=Path, default=ROOT / "model_store" / "archives")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "pictures")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tour-") as temporary, contextlib.ExitStack() as running:
        folder = Path(temporary)
        server = running.enter_context(serving(MODELS, archives=given.archives, log=folder / "serve.log"))
        address = running.enter_context(prometheus(folder, server.http))
        load(server.grpc, given.minutes * 60)
        variables = {
            **dict.fromkeys(("cluster", "namespace", "pod", "model"), ".*"),
            "price_per_hour": "0.10",
            "__rate_interval": "15s",
        }
        source = Source(address, time.time(), given.minutes * 60, variables)
        for file in sorted((HERE / "dashboards").glob("*.json")):
            figure = draw(json.loads(file.read_text()), source)
            figure.savefig(given.out / f"dashboard_{file.stem}.png", dpi=DPI, pil_kwargs={"optimize": True})


if __name__ == "__main__":
    main()
