"""Load profile of one pod: its metrics at rising load, recorded every second, and thresholds for the autoscaler.

In: an archive and loads as shares of the capacity. Out: for each load the number of calls in flight, the age of the
queue and the durations of calls, as `/metrics` reports them every second. The autoscaler's queries read the same
metrics. The thresholds are the calls per second that a pod is planned for (R x u in docs/capacity.md) and the calls in
flight at R. tests/deploy replays the recording through the queries of the manifests.
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
from benchmarks.pairs import add_pair, asked_pair
from benchmarks.plans import OpenPlan
from benchmarks.systems import OURS, Running, Setup, answered_by, running
from benchmarks.target import picture
from benchmarks.trace import Trace, poisson
from handlers.hardware import usable_cores
from model_store.build.archive import read_card

LOADS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2, 1.5, 2.0)
PLANNED_LOAD = 0.7  # share of the capacity, u in docs/capacity.md
TRACE_ARRIVALS = 50_000
WARM_UP_SECONDS = 3.0  # of each load: not recorded, because the queue still fills
IN_FLIGHT = "mobilevision_inflight_requests"
QUEUE_AGE = "mobilevision_queue_age_seconds"
SUM = "mobilevision_request_duration_seconds_sum"
BUCKET = "mobilevision_request_duration_seconds_bucket"
EVERY_SECONDS = 1.0


class Recorder(threading.Thread):
    """Reads the metrics page once a second until `stop`."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self._url = url
        self._end = threading.Event()
        self.pages: list[dict[str, float]] = []

    def run(self) -> None:
        """Read the page; the first time after the warm-up."""
        due_at = time.monotonic() + WARM_UP_SECONDS
        while not self._end.wait(max(0.0, due_at - time.monotonic())):
            self.pages.append(_page(self._url))
            due_at += EVERY_SECONDS

    def stop(self) -> None:
        """Stop reading and wait for the thread."""
        self._end.set()
        self.join()


def _page(url: str) -> dict[str, float]:
    """The metrics that the autoscaler reads: calls in flight, queue age, and buckets by their upper bound."""
    with urllib.request.urlopen(url, timeout=10) as reply:  # noqa: S310 - our own server
        families = list(text_string_to_metric_families(reply.read().decode()))
    found: dict[str, float] = {}
    for sample in (sample for family in families for sample in family.samples):
        if sample.name in {IN_FLIGHT, QUEUE_AGE, SUM}:
            found[sample.name] = found.get(sample.name, 0.0) + sample.value
        elif sample.name == BUCKET:
            edge = f"le={sample.labels['le']}"
            found[edge] = found.get(edge, 0.0) + sample.value
    return found


def recorded(pages: Sequence[Mapping[str, float]]) -> dict[str, str]:
    """The values of each series, one per second, in one line. Counters start at 0 with the first page."""
    names = pages[-1].keys()
    first = {name: 0.0 if name in {IN_FLIGHT, QUEUE_AGE} else pages[0].get(name, 0.0) for name in names}
    return {name: " ".join(f"{page.get(name, 0.0) - first[name]:.5g}" for page in pages) for name in names}


def step(server: Running, trace: Trace, share: float, capacity: float, options: argparse.Namespace) -> results.LoadStep:
    """Run one load and record the metrics. `share` and `capacity` give the rate in calls per second."""
    assert server.metrics_url is not None
    arrivals = trace.at_rate(share * capacity, WARM_UP_SECONDS + options.seconds)
    recorder = Recorder(server.metrics_url)
    recorder.start()
    outcomes = load.open_loop(OpenPlan(server.targets, arrivals, options.deadline_ms / 1000))
    recorder.stop()
    pages = recorder.pages[: round(options.seconds)]  # later pages are from the wait for the last answers
    counts = tally(outcomes.records, sent=outcomes.sent)
    return results.LoadStep(
        load=share,
        offered_per_second=share * capacity,
        **dataclasses.asdict(counts),
        calls_in_flight=statistics.fmean(page[IN_FLIGHT] for page in pages),
        queue_age_seconds=statistics.fmean(page[QUEUE_AGE] for page in pages),
        recorded=recorded(pages),
    )


def main() -> None:
    """Measure, write load_profile.json and print the thresholds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common(parser, peers=False)
    add_pair(parser)
    parser.add_argument("--loads", type=float, nargs="+", default=list(LOADS), help="shares of capacity [0.3 .. 2]")
    parser.add_argument(
        "--planned-load",
        type=float,
        default=PLANNED_LOAD,
        help="share of the capacity that a pod is planned for, u [0.7]",
    )
    parser.add_argument("--deadline-ms", type=float, default=1000.0, help="of every request [1000]")
    parser.add_argument("--seconds", type=float, help="of each load [20; quick: 3]")
    parser.add_argument("--seed", type=int, default=1, help="of the arrivals [1]")
    options = parse(parser)
    options.seconds = options.seconds or (3.0 if options.quick else 20.0)
    console = make_console()
    head = head_of("load_profile", options)
    model = options.models[0]
    trace = poisson(seed=options.seed, count=TRACE_ARRIVALS)
    steps: list[results.LoadStep] = []
    archive = archive_of(options.archives, model)
    setup = Setup(Shape(usable_cores(), 1), pair=asked_pair(options))
    with running(OURS, [archive], setup, picture()) as server:
        pair = answered_by(server.ask(read_card(archive)))
        capacity = load.capacity_per_second(server.targets, clients=CAPACITY_CLIENTS, seconds=options.seconds / 3)
        console.print(f"capacity {capacity:.0f}/s")
        for share in sorted({*options.loads, 1.0}):
            steps.append(step(server, trace, share, capacity, options))
            one = steps[-1]
            console.print(
                f"  load {share:g}: {one.calls_in_flight:.1f} calls in flight, queue age "
                f"{one.queue_age_seconds * 1e3:.0f} ms, p99 {one.p99_ms:.0f} ms; answered {one.answered} of {one.sent}"
            )
    at_capacity = next(one for one in steps if one.load == 1.0)
    result = results.LoadProfileResult(
        head=dataclasses.replace(head, complete=True),
        model=model,
        cores=usable_cores(),
        capacity_per_second=capacity,
        planned_load=options.planned_load,
        deadline_ms=options.deadline_ms,
        steps=steps,
        thresholds={
            "calls_per_second": options.planned_load * capacity,
            "calls_in_flight": at_capacity.calls_in_flight,
        },
        engine=pair.engine,
        dtype=pair.dtype,
    )
    results.write(options.out / "load_profile.json", result)
    console.print(f"thresholds: {result.thresholds}")
    if options.json:
        print((options.out / "load_profile.json").read_text(), end="")


if __name__ == "__main__":
    main()
