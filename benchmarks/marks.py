"""Marks for the autoscaler: what one pod's metrics say at rising load, second by second.

In: an archive, shares of the capacity. Out: for each load the calls in work, the age of the queue and the times of
calls as `/metrics` told them once a second, which is what the autoscaler's queries read; and the marks: the calls per
second a pod is planned for (R x u of docs/capacity.md), and the calls in work at R. tests/deploy replays the recording
through the queries.
"""

import argparse
import dataclasses
import statistics
import threading
import time
import urllib.request
from collections.abc import Mapping, Sequence

from prometheus_client.parser import text_string_to_metric_families

from benchmarks import load, results
from benchmarks.limit import Shape
from benchmarks.options import add_common, archive_of, head_of, make_console, parse
from benchmarks.outcomes import tally
from benchmarks.overload import CAPACITY_CLIENTS
from benchmarks.plans import OpenPlan
from benchmarks.systems import OURS, Running, Setup, running
from benchmarks.target import picture
from benchmarks.trace import Trace, poisson
from handlers.hardware import usable_cores

LOADS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2, 1.5, 2.0)
PLANNED = 0.7  # u
TRACE_ARRIVALS = 50_000
SETTLE_SECONDS = 3.0  # of each load, not recorded: the queue fills
IN_WORK = "mobilevision_inflight_requests"
QUEUE_AGE = "mobilevision_queue_age_seconds"
SUM = "mobilevision_request_duration_seconds_sum"
BUCKET = "mobilevision_request_duration_seconds_bucket"
EVERY_SECONDS = 1.0


class Recorder(threading.Thread):
    """Reads the page once a second until told to end."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self._url = url
        self._end = threading.Event()
        self.pages: list[dict[str, float]] = []

    def run(self) -> None:
        """Read; the first time after the load has settled."""
        due = time.monotonic() + SETTLE_SECONDS
        while not self._end.wait(max(0.0, due - time.monotonic())):
            self.pages.append(_page(self._url))
            due += EVERY_SECONDS

    def stop(self) -> None:
        """Read no more."""
        self._end.set()
        self.join()


def _page(url: str) -> dict[str, float]:
    """What the queries read: calls in work, queue age, and the buckets by their upper edge."""
    with urllib.request.urlopen(url, timeout=10) as reply:  # noqa: S310 - our own server
        families = list(text_string_to_metric_families(reply.read().decode()))
    found: dict[str, float] = {}
    for sample in (sample for family in families for sample in family.samples):
        if sample.name in {IN_WORK, QUEUE_AGE, SUM}:
            found[sample.name] = found.get(sample.name, 0.0) + sample.value
        elif sample.name == BUCKET:
            edge = f"le={sample.labels['le']}"
            found[edge] = found.get(edge, 0.0) + sample.value
    return found


def recorded(pages: Sequence[Mapping[str, float]]) -> dict[str, str]:
    """Each series as its values, once a second, in one line; counters count from the first page on."""
    names = pages[-1].keys()
    first = {name: 0.0 if name in {IN_WORK, QUEUE_AGE} else pages[0].get(name, 0.0) for name in names}
    return {name: " ".join(f"{page.get(name, 0.0) - first[name]:.5g}" for page in pages) for name in names}


def step(server: Running, trace: Trace, share: float, capacity: float, options: argparse.Namespace) -> results.MarkStep:
    """One load."""
    assert server.metrics_url is not None
    arrivals = trace.at_rate(share * capacity, SETTLE_SECONDS + options.seconds)
    recorder = Recorder(server.metrics_url)
    recorder.start()
    outcomes = load.open_loop(OpenPlan(server.targets, arrivals, options.deadline_ms / 1000))
    recorder.stop()
    pages = recorder.pages[: round(options.seconds)]  # then the generator only waits for its last answers
    counts = tally(outcomes.rows, sent=outcomes.sent)
    return results.MarkStep(
        load=share,
        offered_per_second=share * capacity,
        **dataclasses.asdict(counts),
        calls_in_work=statistics.fmean(page[IN_WORK] for page in pages),
        queue_age_seconds=statistics.fmean(page[QUEUE_AGE] for page in pages),
        recorded=recorded(pages),
    )


def main() -> None:
    """Measure, write marks.json, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common(parser, peers=False)
    parser.add_argument("--loads", type=float, nargs="+", default=list(LOADS), help="shares of capacity [0.3 .. 2]")
    parser.add_argument("--planned", type=float, default=PLANNED, help="share that pods are planned for, u [0.7]")
    parser.add_argument("--deadline-ms", type=float, default=1000.0, help="of every request [1000]")
    parser.add_argument("--seconds", type=float, help="of each load [20; quick: 3]")
    parser.add_argument("--seed", type=int, default=1, help="of the arrivals [1]")
    options = parse(parser)
    options.seconds = options.seconds or (3.0 if options.quick else 20.0)
    console = make_console()
    head = head_of("marks", options)
    model = options.models[0]
    trace = poisson(seed=options.seed, count=TRACE_ARRIVALS)
    steps: list[results.MarkStep] = []
    with running(OURS, [archive_of(options.archives, model)], Setup(Shape(usable_cores(), 1)), picture()) as server:
        capacity = load.capacity_per_second(server.targets, clients=CAPACITY_CLIENTS, seconds=options.seconds / 3)
        console.print(f"capacity {capacity:.0f}/s")
        for share in sorted({*options.loads, 1.0}):
            steps.append(step(server, trace, share, capacity, options))
            one = steps[-1]
            console.print(
                f"  load {share:g}: {one.calls_in_work:.1f} calls in work, queue age "
                f"{one.queue_age_seconds * 1e3:.0f} ms, p99 {one.p99_ms:.0f} ms; answered {one.answered} of {one.sent}"
            )
    at_capacity = next(one for one in steps if one.load == 1.0)
    result = results.MarksResult(
        head=dataclasses.replace(head, complete=True),
        model=model,
        cores=usable_cores(),
        capacity_per_second=capacity,
        planned=options.planned,
        deadline_ms=options.deadline_ms,
        steps=steps,
        marks={"calls_per_second": options.planned * capacity, "calls_in_work": at_capacity.calls_in_work},
    )
    results.write(options.out / "marks.json", result)
    console.print(f"marks: {result.marks}")
    if options.json:
        print((options.out / "marks.json").read_text(), end="")


if __name__ == "__main__":
    main()
