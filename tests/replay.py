"""A cluster that never was: one pod's recorded metrics as those of many, in a real Prometheus.

In: `benchmarks/measured/marks.json`. For a load on the whole cluster and each number of pods, every pod is given the
recording nearest to its share, in blocks of some seconds whose order is drawn for each pod, so that pods differ as much
as one pod does from moment to moment. The numbers of pods follow each other in time, so that one Prometheus holds them
all. Scraped every 15 s, as the PodMonitor says.
"""

import itertools
import json
import random
import shutil
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from serving import ROOT

MARKS = json.loads((ROOT / "benchmarks" / "measured" / "marks.json").read_bytes())
SCRAPE_SECONDS = 15
BLOCK_SECONDS = 5  # calls in work now and a second later have much to do with each other
LOOK_BACK_SECONDS = 150  # filled before anything is asked: the longest range in the queries
ASKED_SECONDS = 600
SECONDS = LOOK_BACK_SECONDS + ASKED_SECONDS
SEGMENT_SECONDS = 1200  # from one number of pods to the next; the series before are stale by then
BEGIN = 1_700_000_000
DURATION = "mobilevision_request_duration_seconds"
IN_WORK = "mobilevision_inflight_requests"
GAUGES = {IN_WORK, "mobilevision_queue_age_seconds"}
LABELS = 'namespace="mobilevision",pod="{pod}"'


def nearest(per_pod: float) -> dict[str, Any]:
    """The recorded step for a load per pod, pictures per second."""
    share = per_pod / MARKS["capacity_per_second"]
    return min(MARKS["steps"], key=lambda step: abs(step["load"] - share))


def series(name: str) -> list[tuple[str, str]]:
    """What a recorded series was scraped as: metrics and labels of their own."""
    if not name.startswith("le="):
        return [(name, "")]
    edge = name.removeprefix("le=")
    return [(f"{DURATION}_bucket", f',le="{edge}"'), *([(f"{DURATION}_count", "")] if edge == "+Inf" else [])]


def played(name: str, recorded: str, seconds: Sequence[int]) -> list[float]:
    """A series as it would be if these seconds of the recording followed each other; counters go on."""
    points = [float(value) for value in recorded.split()]
    if name in GAUGES:
        return [points[second] for second in seconds]
    return list(itertools.accumulate(points[second] - points[second - 1] for second in seconds))


def order(pod: int, count: int, length: int) -> list[int]:
    """Seconds of the recording for one of `count` pods, in blocks, drawn anew for each."""
    dice = random.Random(1000 * count + pod)
    starts = (dice.randrange(1, length - BLOCK_SECONDS + 1) for _ in range(SECONDS // BLOCK_SECONDS + 1))
    return [start + at for start in starts for at in range(BLOCK_SECONDS)][: SECONDS + 1]


def segments(load: float, pods: Sequence[int]) -> Iterator[str]:
    """Lines of OpenMetrics: for each number of pods, a stretch of time."""
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
    """A Prometheus that has all of it."""
    page = folder / "page.txt"
    page.write_text("\n".join(segments(load, pods)) + "\n")
    command = ["promtool", "tsdb", "create-blocks-from", "openmetrics", str(page), str(folder / "data")]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    (folder / "prometheus.yml").write_text("{}\n")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
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
    """What the queries say in that cluster."""

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
        """The value of a query that has one, with so many pods; the time asked for goes round."""
        if (expression, pods) not in self._known:
            begin = BEGIN + self._pods.index(pods) * SEGMENT_SECONDS + LOOK_BACK_SECONDS
            times = {"start": begin, "end": begin + ASKED_SECONDS - SCRAPE_SECONDS, "step": SCRAPE_SECONDS}
            query = urllib.parse.urlencode({"query": expression, **times})
            with urllib.request.urlopen(f"http://{self._address}/api/v1/query_range?{query}", timeout=30) as answer:
                (found,) = json.load(answer)["data"]["result"]
            assert len(found["values"]) == ASKED_SECONDS // SCRAPE_SECONDS
            self._known[expression, pods] = [float(value) for _, value in found["values"]]
        told = self._known[expression, pods]
        return told[int(second // SCRAPE_SECONDS) % len(told)]
