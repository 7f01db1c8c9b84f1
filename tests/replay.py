"""A simulated cluster: the recorded metrics of one pod serve as those of many pods, in a real Prometheus.

In: `benchmarks/measured/load_profile.json`. For a load on the whole cluster and each number of pods, every pod gets the
recording whose load is nearest to its share. The recording is cut into blocks of some seconds, in a random order for
each pod, so pods differ as one pod differs from moment to moment. The numbers of pods follow one another in time, so
one Prometheus contains them all. The scrape interval is 15 s, as in the PodMonitor.
"""

import itertools
import json
import random
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from serving import ROOT, free_ports

PROFILE = json.loads((ROOT / "benchmarks" / "measured" / "load_profile.json").read_bytes())
SCRAPE_SECONDS = 15
BLOCK_SECONDS = 5  # calls in flight are correlated from one second to the next
LOOK_BACK_SECONDS = 150  # data before the first query: the longest range in the queries
QUERIED_SECONDS = 600
SECONDS = LOOK_BACK_SECONDS + QUERIED_SECONDS
SEGMENT_SECONDS = 1200  # from one number of pods to the next; older series are stale by then
BEGIN = 1_700_000_000
DURATION = "mobilevision_request_duration_seconds"
IN_WORK = "mobilevision_inflight_requests"
GAUGES = {IN_WORK, "mobilevision_queue_age_seconds"}
LABELS = 'namespace="mobilevision",app_kubernetes_io_instance="mobilevision",pod="{pod}"'


def nearest(per_pod: float) -> dict[str, Any]:
    """The recorded step for a load per pod, pictures per second."""
    share = per_pod / PROFILE["capacity_per_second"]
    return min(PROFILE["steps"], key=lambda step: abs(step["load"] - share))


def series(name: str) -> list[tuple[str, str]]:
    """The metrics and labels that a recorded series stands for."""
    if not name.startswith("le="):
        return [(name, "")]
    edge = name.removeprefix("le=")
    return [(f"{DURATION}_bucket", f',le="{edge}"'), *([(f"{DURATION}_count", "")] if edge == "+Inf" else [])]


def played(name: str, recorded: str, seconds: Sequence[int]) -> list[float]:
    """The series made of these seconds of the recording, one after another. Counters keep rising."""
    points = [float(value) for value in recorded.split()]
    if name in GAUGES:
        return [points[second] for second in seconds]
    return list(itertools.accumulate(points[second] - points[second - 1] for second in seconds))


def order(pod: int, count: int, length: int) -> list[int]:
    """Random blocks of seconds of the recording for one of `count` pods."""
    dice = random.Random(1000 * count + pod)
    starts = (dice.randrange(1, length - BLOCK_SECONDS + 1) for _ in range(SECONDS // BLOCK_SECONDS + 1))
    return [start + at for start in starts for at in range(BLOCK_SECONDS)][: SECONDS + 1]


def segments(load: float, pods: Sequence[int]) -> Iterator[str]:
    """Lines of OpenMetrics, with a segment of time for each number of pods."""
    samples: dict[str, list[str]] = {}
    for number, count in enumerate(pods):
        recordings = nearest(load / count)["recorded"]
        length = len(recordings[IN_WORK].split())
        begin = BEGIN + number * SEGMENT_SECONDS
        for pod in range(count):
            seconds = order(pod, count, length)
            for name, recorded in recordings.items():
                values = played(name, recorded, seconds)
                for metric, labels in series(name):
                    lines = samples.setdefault(metric, [])
                    for at in range(0, SECONDS + 1, SCRAPE_SECONDS):
                        lines.append(f"{metric}{{{LABELS.format(pod=pod)}{labels}}} {values[at]:.6g} {begin + at}")
    for metric, lines in samples.items():
        yield f"# TYPE {metric} gauge"
        yield from lines
    yield "# EOF"


@contextmanager
def prometheus(folder: Path, load: float, pods: Sequence[int]) -> Iterator["Replay"]:
    """Run a Prometheus with the series of all segments."""
    page = folder / "page.txt"
    page.write_text("\n".join(segments(load, pods)) + "\n")
    command = ["promtool", "tsdb", "create-blocks-from", "openmetrics", str(page), str(folder / "data")]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    (folder / "prometheus.yml").write_text("{}\n")
    address = f"127.0.0.1:{free_ports(1)[0]}"
    options = [f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    options += ["--storage.tsdb.retention.time=100y", f"--web.listen-address={address}"]
    with (folder / "prometheus.log").open("wb") as log:
        running = subprocess.Popen(["prometheus", *options], stdout=log, stderr=log)
    try:
        replay = Replay(address, list(pods))
        deadline = time.monotonic() + 60
        while not replay.ready():
            assert running.poll() is None, (folder / "prometheus.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield replay
    finally:
        running.terminate()
        running.wait(30)
        shutil.rmtree(folder / "data")


class Replay:
    """Results of queries in the simulated cluster."""

    def __init__(self, address: str, pods: list[int]) -> None:
        self._address = address
        self._pods = pods
        self._known: dict[tuple[str, int], list[float]] = {}

    def ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://{self._address}/-/ready", timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def query(self, expression: str, pods: int, second: float) -> float:
        """The value of a query with one result, for a number of pods. The recording repeats after its end."""
        if (expression, pods) not in self._known:
            begin = BEGIN + self._pods.index(pods) * SEGMENT_SECONDS + LOOK_BACK_SECONDS
            times = {"start": begin, "end": begin + QUERIED_SECONDS - SCRAPE_SECONDS, "step": SCRAPE_SECONDS}
            query = urllib.parse.urlencode({"query": expression, **times})
            with urllib.request.urlopen(f"http://{self._address}/api/v1/query_range?{query}", timeout=30) as answer:
                (found,) = json.load(answer)["data"]["result"]
            assert len(found["values"]) == QUERIED_SECONDS // SCRAPE_SECONDS
            self._known[expression, pods] = [float(value) for _, value in found["values"]]
        values = self._known[expression, pods]
        return values[int(second // SCRAPE_SECONDS) % len(values)]
