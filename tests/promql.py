"""PromQL on given samples, in a real Prometheus: series in, results of queries out.

Samples are stored as blocks, so no time passes. They are `STEP_SECONDS` apart, as the PodMonitor scrapes. The first is
at `BEGIN`.
"""

import json
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from fakes import toy_card
from serving import free_ports

from service.core.types import RequestRecord
from service.frontends.http.supervisor_probes import SUPERVISOR
from service.observability.merge_metrics import LABEL
from service.observability.metrics import Metrics

STEP_SECONDS = 15
BEGIN = 1_700_000_000
STEPS = 25  # six minutes
LAST = STEPS - 1
CARD = toy_card()
TARGET = 'namespace="mobilevision",job="mobilevision",app_kubernetes_io_instance="mobilevision"'

needs_prometheus = pytest.mark.skipif(
    shutil.which("promtool") is None or shutil.which("prometheus") is None,
    reason="prometheus (Debian package: prometheus) is not installed",
)

Series = dict[str, list[float]]  # metric{labels} -> one value per step
Result = list[tuple[dict[str, str], float]]


def scrape(processes: Sequence[Metrics]) -> Iterator[tuple[str, float]]:
    """The samples of the metrics page of one pod. Several processes have a supervisor, and a label that names each."""
    if len(processes) == 1:
        named = {"": processes[0]}
    else:
        named = {SUPERVISOR: Metrics()} | {str(number): metrics for number, metrics in enumerate(processes)}
    for process, metrics in named.items():
        extra = {LABEL: process} if process else {}
        for family in metrics.registry.collect():
            for sample in family.samples:
                labels = ",".join(f"{key}={json.dumps(value)}" for key, value in (sample.labels | extra).items())
                yield f"{sample.name}{{{labels}}}", sample.value


def nothing(metrics: Metrics) -> None:
    """For `fleet`: calls leave no other trace."""


def fleet(
    pods: int,
    processes: int,
    calls_per_step: int,
    seconds: float,
    *,
    method: str = "Classify",
    start: Callable[[Metrics], None] = nothing,
    each: Callable[[Metrics], None] = nothing,
) -> Series:
    """The series of pods, each with so many calls per scrape, which take `seconds` and are spread over its processes.

    `start` is called for each process, and `each` with the process of each call.
    """
    series: Series = {}
    for pod in range(pods):
        running = [Metrics() for _ in range(processes)]
        for metrics in running:
            metrics.add_model(CARD, queue_length=lambda: 0.0, queue_age=lambda: 0.0)
            metrics.requests.watch_inflight(lambda: 0.0)
            start(metrics)
        labels = f'{TARGET},pod="pod-{pod}",instance="10.0.0.{pod}"'
        for step in range(STEPS):
            for call in range(calls_per_step):
                metrics = running[call % processes]
                record = RequestRecord("", method, CARD.name)
                metrics.observe_request(record, code="OK", reason=None, duration_seconds=seconds)
                each(metrics)
            for name, value in scrape(running):
                full = f"{name[:-1]}{'' if name.endswith('{}') else ','}{labels}}}"
                assert len(series.setdefault(full, [])) == step, f"{full} is not on every page"
                series[full].append(value)
    return series


def openmetrics(series: Mapping[str, Sequence[float]]) -> Iterator[str]:
    """The lines of a page in OpenMetrics, grouped by metric, with times."""
    by_metric: dict[str, list[str]] = {}
    for name, values in series.items():
        lines = by_metric.setdefault(name.partition("{")[0], [])
        lines += [f"{name} {value} {BEGIN + at * STEP_SECONDS}" for at, value in enumerate(values)]
    for metric, lines in by_metric.items():
        yield f"# TYPE {metric} gauge"
        yield from lines
    yield "# EOF"


class Store:
    """A running Prometheus with stored samples."""

    def __init__(self, address: str) -> None:
        self.address = address

    def time(self, step: float) -> float:
        """The Unix time of a step."""
        return BEGIN + step * STEP_SECONDS

    def query(self, expression: str, *, step: float) -> Result:
        """The result of an instant query at a step."""
        query = urllib.parse.urlencode({"query": expression, "time": self.time(step)})
        with urllib.request.urlopen(f"http://{self.address}/api/v1/query?{query}", timeout=30) as answer:
            found = json.load(answer)["data"]["result"]
        return [(one["metric"], float(one["value"][1])) for one in found]

    def ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://{self.address}/-/ready", timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False


@contextmanager
def stored(folder: Path, lines: Iterable[str]) -> Iterator[Store]:
    """Run a Prometheus with the samples of OpenMetrics lines."""
    page = folder / "page.txt"
    page.write_text("\n".join(lines) + "\n")
    command = ["promtool", "tsdb", "create-blocks-from", "openmetrics", str(page), str(folder / "data")]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    (folder / "prometheus.yml").write_text("{}\n")
    store = Store(f"127.0.0.1:{free_ports(1)[0]}")
    options = [f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    options += ["--storage.tsdb.retention.time=100y", f"--web.listen-address={store.address}"]
    with (folder / "prometheus.log").open("wb") as log:
        running = subprocess.Popen(["prometheus", *options], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 60
        while not store.ready():
            assert running.poll() is None, (folder / "prometheus.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield store
    finally:
        running.terminate()
        running.wait(30)
        shutil.rmtree(folder / "data")
