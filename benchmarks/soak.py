"""Memory under long load: `python -m benchmarks.soak [--minutes 10] [--help]`. Exit status 1 if a check fails.

Open loop at 0.9 of the capacity, which is measured first. The load comes in slices of half a minute, so the results so
far survive Ctrl-C. The memory (without the pages of files) of every process of our server is sampled. Checks: the
least-squares slope of the memory over the last four fifths stays within bounds, every request has an outcome, no
process ends, and every shared-memory slot is free at the end.
"""

import argparse
import dataclasses
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.console import Console

from benchmarks import load, results
from benchmarks.figures import slope
from benchmarks.limit import Shape
from benchmarks.options import add_common, archive_of, head_of, make_console, parse
from benchmarks.outcomes import RequestRecord, tally
from benchmarks.overload import CAPACITY_CLIENTS
from benchmarks.pairs import UNKNOWN, Pair, add_pair, asked_pair
from benchmarks.plans import OpenPlan
from benchmarks.plot import plot_soak
from benchmarks.processes import Group
from benchmarks.systems import OURS, Running, Setup, answered_by, running
from benchmarks.target import picture
from benchmarks.trace import poisson
from handlers.hardware import usable_cores
from model_store.build.archive import read_card

SLOTS_METRIC = "mobilevision_shm_slots"
FREE_STATE = "free"
SLICE_SECONDS = 30.0
STEADY_FROM = 0.2  # share of the time that is left out: caches fill and the JVM compiles
NOISE_MIB = 4.0  # growth that an allocator causes without a leak; the bound of a short run
RELEASE_SECONDS = 2.0  # for the last answers to release their slots


@dataclass(frozen=True)
class Sample:
    """All processes at one time, by (process number, name): `Memory.own_mib`, descriptors, threads."""

    seconds: float
    mib: dict[tuple[int, str], float]
    descriptors: dict[tuple[int, str], int] = field(default_factory=dict)
    threads: dict[tuple[int, str], int] = field(default_factory=dict)


def trend(
    process: tuple[int, str], samples: Sequence[Sample], *, bound_mib_per_hour: float
) -> results.ProcessTrend | None:
    """Growth of one process over the steady part. None for a process that did not live through all of it."""
    end = samples[-1].seconds
    steady = [one for one in samples if one.seconds >= end * STEADY_FROM]
    if any(process not in one.mib for one in steady):
        return None
    values = [one.mib[process] for one in steady]
    hours = [one.seconds / 3600 for one in steady]
    per_hour = slope(hours, values)
    grown_mib = per_hour * (hours[-1] - hours[0])
    allowed_mib = max(NOISE_MIB, bound_mib_per_hour * (hours[-1] - hours[0]))
    pid, name = process
    return results.ProcessTrend(
        pid=pid,
        name=name,
        first_mib=values[0],
        last_mib=values[-1],
        peak_mib=max(values),
        slope_mib_per_hour=per_hour,
        bound_mib_per_hour=bound_mib_per_hour,
        within_bound=grown_mib <= allowed_mib,
        samples=len(values),
    )


class Sampler:
    """Samples memory, descriptors and threads of a group in a thread. A context manager; leaving it ends the thread."""

    def __init__(self, group: Group, every_seconds: float) -> None:
        self._group, self._every_seconds = group, every_seconds
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._began_at = time.monotonic()
        self.samples: list[Sample] = []

    def __enter__(self) -> "Sampler":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            memory = {(one.pid, one.name): one for one in self._group.memory()}
            self.samples.append(
                Sample(
                    time.monotonic() - self._began_at,
                    mib={key: one.own_mib for key, one in memory.items()},
                    descriptors={key: one.descriptors for key, one in memory.items()},
                    threads={key: one.threads for key, one in memory.items()},
                )
            )
            if self._end.wait(self._every_seconds):
                return


@dataclass
class _Soaked:
    capacity: float = 0.0
    offered: float = 0.0
    sent: int = 0
    records: list[RequestRecord] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    slots: dict[str, float] = field(default_factory=dict)
    pair: Pair = UNKNOWN  # what computed the first answer
    complete: bool = False


def soak(server: Running, options: argparse.Namespace, soaked: _Soaked, console: Console) -> None:
    """Measure the capacity, then load at a share of it. Each slice adds its results to `soaked`."""
    soaked.capacity = load.capacity_per_second(server.targets, clients=CAPACITY_CLIENTS, seconds=options.warm_up)
    soaked.offered = options.load * soaked.capacity
    seconds = options.minutes * 60
    console.print(f"capacity {soaked.capacity:.0f}/s; {options.minutes:g} minutes at {soaked.offered:.0f}/s")
    arrivals = poisson(seed=options.seed, count=round(soaked.offered * seconds * 1.1) + 1000).at_rate(
        soaked.offered, seconds
    )
    with Sampler(server.group, options.every) as sampler:
        soaked.samples = sampler.samples
        begin = 0.0
        while begin < seconds:
            piece = tuple(at - begin for at in arrivals if begin <= at < begin + SLICE_SECONDS)
            if piece:
                outcomes = load.open_loop(OpenPlan(server.targets, piece, options.deadline_ms / 1000))
                soaked.sent += outcomes.sent
                soaked.records += outcomes.records
            begin += SLICE_SECONDS
            console.print(
                f"  {min(begin, seconds) / 60:.1f} min: {soaked.sent} sent, "
                f"{sum(sampler.samples[-1].mib.values()) if sampler.samples else 0:.0f} MiB in all"
            )
    soaked.complete = True


def read_slots(server: Running) -> dict[str, float]:
    """Shared-memory slots by state. Empty if this server does not have the metric."""
    return {dict(labels).get("state", "?"): value for labels, value in server.metric(SLOTS_METRIC).items()}


def result_of(soaked: _Soaked, head: results.Head, model: str, options: argparse.Namespace) -> results.SoakResult:
    """The content of the result file."""
    counts = tally(soaked.records, sent=soaked.sent)
    seen = sorted({process for sample in soaked.samples for process in sample.mib})
    bound = options.bound_mib_per_hour
    trends = [one for process in seen if (one := trend(process, soaked.samples, bound_mib_per_hour=bound)) is not None]
    last = soaked.samples[-1].mib if soaked.samples else {}
    in_use = sum(value for state, value in soaked.slots.items() if state != FREE_STATE) if soaked.slots else None
    return results.SoakResult(
        head=dataclasses.replace(head, complete=soaked.complete),
        model=model,
        minutes=soaked.samples[-1].seconds / 60 if soaked.samples else 0.0,
        offered_per_second=soaked.offered,
        capacity_per_second=soaked.capacity,
        sent=counts.sent,
        answered=counts.answered,
        refused=counts.refused,
        missed=counts.missed,
        failed=counts.failed,
        adds_up=counts.adds_up(),
        p99_ms=counts.p99_ms,
        processes=trends,
        within_bound=all(one.within_bound for one in trends),
        processes_that_ended=sum(process not in last for process in seen),
        slots_in_use_at_end=in_use,
        slots=soaked.slots,
        engine=soaked.pair.engine,
        dtype=soaked.pair.dtype,
    )


def passed(result: results.SoakResult) -> bool:
    """Whether all checks passed."""
    return (
        result.head.complete
        and result.within_bound
        and result.adds_up
        and result.failed == 0
        and result.processes_that_ended == 0
        and not result.slots_in_use_at_end
    )


def main() -> None:
    """Measure, write soak.json and soak.png, and print a line for each process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common(parser, peers=False)
    add_pair(parser)
    parser.add_argument("--minutes", type=float, help="of load [10; quick: 1]")
    parser.add_argument("--load", type=float, default=0.9, help="share of the capacity [0.9]")
    parser.add_argument("--deadline-ms", type=float, default=5000.0, help="of every request [5000]")
    parser.add_argument("--every", type=float, default=2.0, help="seconds between samples of memory [2]")
    parser.add_argument("--bound-mib-per-hour", type=float, default=30.0, help="growth allowed to a process [30]")
    parser.add_argument(
        "--warm-up", type=float, help="seconds of warm-up, and of the measurement of the capacity [10; quick: 3]"
    )
    parser.add_argument("--seed", type=int, default=1, help="of the arrivals [1]")
    options = parse(parser)
    options.minutes = options.minutes or (1.0 if options.quick else 10.0)
    options.warm_up = options.warm_up or (3.0 if options.quick else 10.0)
    console = make_console()
    model = options.models[0]
    head = head_of("soak", options)
    soaked = _Soaked()
    archive = archive_of(options.archives, model)
    setup = Setup(Shape(usable_cores(), 1), pair=asked_pair(options))
    with running(OURS, [archive], setup, picture()) as server:
        try:
            soaked.pair = answered_by(server.ask(read_card(archive)))
            soak(server, options, soaked, console)
        except (KeyboardInterrupt, load.LoadFailed) as stopped:
            console.print(f"[yellow]stopped early:[/] {stopped or 'Ctrl-C'}; the results so far are kept")
        time.sleep(RELEASE_SECONDS)
        soaked.slots = read_slots(server)
    result = result_of(soaked, head, model, options)
    results.write(options.out / "soak.json", result)
    samples = [(one.seconds, {f"{name} {pid}": mib for (pid, name), mib in one.mib.items()}) for one in soaked.samples]
    plot_soak(samples, result.head, options.out / "soak.png", console)
    for one in result.processes:
        note = "" if one.within_bound else "  [red]over its bound[/]"
        console.print(
            f"{one.name} {one.pid}: {one.first_mib:.1f} to {one.last_mib:.1f} MiB, "
            f"{one.slope_mib_per_hour:+.1f} MiB/h{note}"
        )
    console.print(f"{result.sent} sent, {result.failed} failed, slots in use at the end: {result.slots_in_use_at_end}")
    if options.json:
        print((options.out / "soak.json").read_text(), end="")
    sys.exit(0 if passed(result) else 1)


if __name__ == "__main__":
    main()
