"""Goodput under overload: `python -m benchmarks.overload [--help]`.

Open loop: Poisson arrivals from one seeded trace, at rates that are shares of a system's capacity. Each request has a
deadline: the deadline of the call over gRPC, the time-out of the client over HTTP. A server with a time-out of its own
gets the same value. Goodput counts the answers that come in time. A server that works on requests whose callers have
given up has less of it. Every request is counted once.

Capacity is the throughput of a closed loop without time-outs. It is measured before and after every load on a second
instance of the same system, because machines drift within minutes. One of the two instances is always paused (SIGSTOP).
The same generator makes both loads. All loads are repeated in several rounds, each with another part of the trace; the
median over the rounds is reported.
"""

import argparse
import contextlib
import dataclasses
import itertools
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks import load, results
from benchmarks.figures import Spread, spread
from benchmarks.limit import Shape
from benchmarks.options import add_common, archive_of, head_of, make_console, parse, participants_of
from benchmarks.outcomes import tally
from benchmarks.pairs import add_pair, asked_pair
from benchmarks.peers.environments import PeerUnavailable
from benchmarks.plans import OpenPlan
from benchmarks.plot import plot_overload
from benchmarks.processes import DidNotStart
from benchmarks.systems import OURS, Running, Setup, answered_by, prepare, running
from benchmarks.target import picture
from benchmarks.trace import Trace, poisson
from handlers.hardware import usable_cores
from model_store.build.archive import read_card

LOADS = (0.5, 0.9, 1.2, 2.0)
CAPACITY_CLIENTS = 16  # two batches of eight; more clients add little throughput
PATIENT_SECONDS = 60.0  # time-out of the instance whose capacity is measured; a shorter one would refuse work
TRACE_ARRIVALS = 200_000
COUNTS = ("sent", "answered", "refused", "missed", "failed")


@dataclass
class _Measured:
    head: results.Head
    deadline_ms: float
    trace_seed: int
    participants: list[results.Participant] = field(default_factory=list)
    points: list[results.LoadPoint] = field(default_factory=list)

    def result(self, *, complete: bool) -> results.OverloadResult:
        rounds: dict[tuple[str, float], list[float]] = {}
        for point in self.points:
            rounds.setdefault((point.system, point.load), []).append(point.goodput_over_capacity)
        by_system: dict[str, dict[str, Spread]] = {}
        for system, share in sorted(rounds, key=lambda key: key[1]):
            by_system.setdefault(system, {})[f"{share:g}"] = spread(rounds[system, share])
        return results.OverloadResult(
            head=dataclasses.replace(self.head, complete=complete),
            deadline_ms=self.deadline_ms,
            trace_seed=self.trace_seed,
            participants=self.participants,
            points=self.points,
            goodput_over_capacity=by_system,
        )


def measure_load(
    server: Running,
    capacity: Callable[[], float],
    before: float,
    trace: Trace,
    *,
    model: str,
    number: int,
    share: float,
    seconds: float,
    deadline_seconds: float,
) -> results.LoadPoint:
    """Offer `share` of the capacity `before` (calls per second) for `seconds`, then measure the capacity again."""
    arrivals = trace.at_rate(share * before, seconds)
    with server.resumed():
        outcomes = load.open_loop(OpenPlan(server.targets, arrivals, deadline_seconds))
    after = capacity()
    counts = tally(outcomes.records, sent=outcomes.sent)
    goodput = counts.answered / seconds
    return results.LoadPoint(
        round=number,
        system=server.name,
        model=model,
        load=share,
        capacity_per_second=(before, after),
        offered_per_second=len(arrivals) / seconds,
        seconds=seconds,
        **dataclasses.asdict(counts),
        adds_up=counts.adds_up(),
        goodput_per_second=goodput,
        goodput_over_capacity=goodput / statistics.mean((before, after)),
        generator_cpu_share=outcomes.cpu_seconds / seconds,
    )


def run_system(
    name: str, archive: Path, trace: Trace, options: argparse.Namespace, measured: _Measured, console: Console
) -> None:
    """Run all loads on one system, each between two measurements of its capacity."""
    deadline_seconds = options.deadline_ms / 1000
    setup = Setup(
        shape=Shape(usable_cores(), 1),
        max_batch=options.max_batch,
        timeout_seconds=deadline_seconds,
        pair=asked_pair(options),
    )
    patient_setup = dataclasses.replace(setup, timeout_seconds=PATIENT_SECONDS)
    try:
        console.print(f"setting up {name}")
        prepare(name)
        with (
            _paused(running(name, [archive], patient_setup, picture())) as patient,
            _paused(running(name, [archive], setup, picture())) as server,
        ):
            with server.resumed():
                pair = answered_by(server.ask(read_card(archive)))
            measured.participants.append(
                results.Participant(
                    name=name,
                    model=archive.stem,
                    version=server.version,
                    shape=str(setup.shape),
                    max_batch=setup.max_batch,
                    max_wait_ms=0 if name == OURS else setup.max_wait_ms,
                    start_seconds=server.start_seconds,
                    engine=pair.engine,
                    dtype=pair.dtype,
                )
            )

            def capacity() -> float:
                with patient.resumed():
                    return load.capacity_per_second(
                        patient.targets, clients=CAPACITY_CLIENTS, seconds=options.seconds / 2
                    )

            last = capacity()
            for number, share in itertools.product(range(1, options.rounds + 1), sorted(options.loads)):
                point = measure_load(
                    server,
                    capacity,
                    last,
                    trace.part(number, options.rounds),
                    model=archive.stem,
                    number=number,
                    share=share,
                    seconds=options.seconds,
                    deadline_seconds=deadline_seconds,
                )
                measured.points.append(point)
                _, last = point.capacity_per_second
                console.print(
                    f"  round {number}, load {share:g}: goodput {point.goodput_over_capacity:.2f} of capacity "
                    f"({point.capacity_per_second[0]:.0f}/s before, {last:.0f}/s after); sent {point.sent}, "
                    f"refused {point.refused}, missed {point.missed}, failed {point.failed}"
                )
    except (PeerUnavailable, DidNotStart, load.LoadFailed, OSError) as error:
        console.print(f"[red]{name} is not measured:[/] {escape(str(error))}")
        measured.participants.append(results.Participant(name=name, model=archive.stem, error=str(error)))


@contextlib.contextmanager
def _paused(starting: contextlib.AbstractContextManager[Running]) -> Iterator[Running]:
    with starting as server:
        server.group.pause()
        yield server


def show(result: results.OverloadResult, console: Console) -> None:
    """Print a table of all loads: medians over the rounds, sums of the counts, and the highest p99 of all rounds."""
    table = Table(title=f"deadline {result.deadline_ms:.0f} ms; goodput by each system's own capacity")
    for column in (
        "system",
        "load",
        "goodput",
        "least",
        "most",
        "sent",
        "in time",
        "refused",
        "missed",
        "failed",
        "p99 ms",
    ):
        table.add_column(column, justify="right")
    for system, by_load in result.goodput_over_capacity.items():
        for share, goodput in by_load.items():
            points = [one for one in result.points if (one.system, f"{one.load:g}") == (system, share)]
            counts = [sum(getattr(one, name) for one in points) for name in COUNTS]
            table.add_row(
                system,
                share,
                *(f"{figure:.2f}" for figure in (goodput.median, goodput.low, goodput.high)),
                *map(str, counts),
                f"{max(one.p99_ms for one in points):.0f}",
            )
    console.print(table)


def main() -> None:
    """Measure, write overload.json, overload.png and the trace, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common(parser)
    add_pair(parser)
    parser.add_argument("--loads", type=float, nargs="+", default=list(LOADS), help="shares of capacity [0.5 .. 2]")
    parser.add_argument("--deadline-ms", type=float, default=200.0, help="of every request [200]")
    parser.add_argument("--seconds", type=float, help="of each measurement [8; quick: 3]")
    parser.add_argument("--rounds", type=int, help="repeats of every load [3; quick: 1]")
    parser.add_argument("--max-batch", type=int, default=8, help="largest batch of every system [8]")
    parser.add_argument("--seed", type=int, default=1, help="of the arrivals [1]")
    parser.add_argument("--trace", type=Path, help="file with arrivals to replay")
    options = parse(parser)
    options.seconds = options.seconds or (3.0 if options.quick else 8.0)
    options.rounds = options.rounds or (1 if options.quick else 3)
    trace = Trace.read(options.trace) if options.trace else poisson(seed=options.seed, count=TRACE_ARRIVALS)
    trace.write(options.out / "trace.json")
    console = make_console()
    head = head_of("overload", options)
    measured = _Measured(head, options.deadline_ms, trace.seed)
    complete = False
    try:
        for name in participants_of(options.peers):
            run_system(name, archive_of(options.archives, options.models[0]), trace, options, measured, console)
        complete = True
    except KeyboardInterrupt:
        console.print("[yellow]stopped early:[/] the results so far are kept")
    result = measured.result(complete=complete)
    results.write(options.out / "overload.json", result)
    plot_overload(result, options.out / "overload.png", console)
    show(result, console)
    if options.json:
        print((options.out / "overload.json").read_text(), end="")


if __name__ == "__main__":
    main()
