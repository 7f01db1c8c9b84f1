"""Throughput, CPU time and memory against one dimension at a time: `python -m benchmarks.scaling [--help]`.

| dimension | what is measured |
| --- | --- |
| `batch` | decoding and the module in plain processes, at each batch size |
| `picture side px` | our server, pictures of growing size; the size of the model's input does not change |
| `models loaded` | our server with copies of the archive under other names; the clients are spread over them |
| `gateway processes` | our server with one and with more gateway processes |

The in-process limit for one fixed case (a picture of 256 px, batches of 8) is measured before and after each
measurement, and results are multiples of it. It runs the network engine and dtype that a worker of the server chooses.
The server chooses its number of workers and threads.
"""

import argparse
import dataclasses
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import load, results
from benchmarks.figures import spread
from benchmarks.limit import InProcess, LimitFailed, Shape
from benchmarks.options import add_common, archive_of, head_of, make_console, parse
from benchmarks.pairs import UNKNOWN, Pair, add_pair, asked_pair
from benchmarks.plot import plot_scaling
from benchmarks.processes import DidNotStart
from benchmarks.serving import measure
from benchmarks.systems import OURS, Setup, running
from benchmarks.target import picture
from handlers.contract.archive_file import MODULE_ENTRY
from handlers.hardware import usable_cores
from model_store.build import archive as archives

BATCHES = (1, 2, 4, 8, 16, 32)
REFERENCE_BATCH = 8
TURNS = 2  # for each start of a server
SIDES_PX = (128, 256, 512, 1024, 2048)
MODELS = (1, 2, 4)
GATEWAYS = (1, 2)
# 0: the server chooses. These settings override `Setup.shape`.
_CHOSEN = (("WORKERS_PER_MODEL", "0"), ("WORKER_THREADS", "0"))


@dataclass
class _Measured:
    head: results.Head
    model: str
    points: list[results.ScalingPoint] = field(default_factory=list)
    pair: Pair = UNKNOWN  # of the in-process limit

    def result(self, *, complete: bool) -> results.ScalingResult:
        """The median over all turns of each figure at each value."""
        merged = []
        for dimension, value in dict.fromkeys((point.dimension, point.value) for point in self.points):
            turns = [one for one in self.points if (one.dimension, one.value) == (dimension, value)]
            figures = {
                name: spread(known).median
                for name in (
                    "share_of_limit",
                    "cost_over_limit",
                    "per_second",
                    "cpu_ms_per_picture",
                    "p99_ms",
                    "pss_mib",
                )
                if (known := [getattr(one, name) for one in turns if getattr(one, name) is not None])
            }
            merged.append(results.ScalingPoint(dimension, value, **figures))
        head = dataclasses.replace(self.head, complete=complete)
        return results.ScalingResult(head, self.model, merged, self.pair.engine, self.pair.dtype)


class Reference:
    """The in-process limit for the fixed case, measured again after every turn."""

    def __init__(self, processes: InProcess, seconds: float) -> None:
        self._processes = processes
        self._seconds = seconds
        self._last = processes.measure(REFERENCE_BATCH, seconds)

    def beside(self, point: results.ScalingPoint) -> results.ScalingPoint:
        """Add to the point its multiples of the limit, the mean of before and after the measurement."""
        before, self._last = self._last, self._processes.measure(REFERENCE_BATCH, self._seconds)
        speed = (before.per_second + self._last.per_second) / 2
        cost = (before.cpu_ms_per_picture + self._last.cpu_ms_per_picture) / 2
        assert point.per_second is not None
        assert point.cpu_ms_per_picture is not None
        return dataclasses.replace(
            point, share_of_limit=point.per_second / speed, cost_over_limit=point.cpu_ms_per_picture / cost
        )


def copies(archive: Path, count: int, folder: Path) -> list[Path]:
    """Write `count` copies of the archive to `folder`. They are models that differ only in name."""
    card = archives.read_card(archive)
    with zipfile.ZipFile(archive) as packed:
        module = packed.read(MODULE_ENTRY)
    return [
        archives.write(folder, card.model_copy(update={"name": f"{card.name}.copy{number}"}), module)
        for number in range(1, count + 1)
    ]


def by_batch(archive: Path, options: argparse.Namespace, processes: InProcess) -> Iterator[results.ScalingPoint]:
    """Batches of growing size in plain processes."""
    reference = Reference(processes, options.seconds / 2)
    for batch in options.batches:
        for _ in range(TURNS):
            turn = processes.measure(batch, options.seconds)
            yield reference.beside(
                results.ScalingPoint(
                    "batch", batch, per_second=turn.per_second, cpu_ms_per_picture=turn.cpu_ms_per_picture
                )
            )


def _served(
    dimension: str,
    value: float,
    served: list[Path],
    image: bytes,
    options: argparse.Namespace,
    processes: InProcess,
    settings: tuple[tuple[str, str], ...] = (),
) -> Iterator[results.ScalingPoint]:
    setup = Setup(Shape(usable_cores(), 1), pair=asked_pair(options), settings=_CHOSEN + settings)
    with running(OURS, served, setup, image) as server:
        load.closed_loop(server.targets, clients=options.clients, seconds=options.seconds)  # warm
        server.group.pause()
        reference = Reference(processes, options.seconds / 2)
        for _ in range(TURNS):
            with server.resumed():
                turn = measure(server, model=served[0].stem, number=0, clients=options.clients, seconds=options.seconds)
            yield reference.beside(
                results.ScalingPoint(
                    dimension,
                    value,
                    per_second=turn.per_second,
                    cpu_ms_per_picture=turn.server_cpu_ms_per_picture,
                    p99_ms=turn.p99_ms,
                    pss_mib=turn.pss_mib,
                )
            )


def by_side(archive: Path, options: argparse.Namespace, processes: InProcess) -> Iterator[results.ScalingPoint]:
    """Pictures of growing size."""
    for side in options.sides:
        yield from _served("picture side px", side, [archive], picture(side), options, processes)


def by_models(archive: Path, options: argparse.Namespace, processes: InProcess) -> Iterator[results.ScalingPoint]:
    """More models on one server; they share the cores."""
    with tempfile.TemporaryDirectory() as folder:
        served = copies(archive, max(options.copies), Path(folder))
        for count in options.copies:
            yield from _served("models loaded", count, served[:count], picture(), options, processes)


def by_gateways(archive: Path, options: argparse.Namespace, processes: InProcess) -> Iterator[results.ScalingPoint]:
    """More gateway processes."""
    for count in GATEWAYS:
        settings = (("GATEWAY_PROCESSES", str(count)),)
        yield from _served("gateway processes", count, [archive], picture(), options, processes, settings)


DIMENSIONS: dict[str, Callable[[Path, argparse.Namespace, InProcess], Iterator[results.ScalingPoint]]] = {
    "batch": by_batch,
    "side": by_side,
    "models": by_models,
    "gateways": by_gateways,
}


def main() -> None:
    """Measure, write scaling.json and scaling.png, and print a line for each point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common(parser, peers=False)
    add_pair(parser)
    parser.add_argument("--dimensions", nargs="+", choices=list(DIMENSIONS), default=list(DIMENSIONS), help="[all]")
    parser.add_argument("--batches", type=int, nargs="+", help="batch sizes [1 to 32; quick: 1 8]")
    parser.add_argument("--sides", type=int, nargs="+", help="picture sides, px [128 to 2048; quick: 256 1024]")
    parser.add_argument("--copies", type=int, nargs="+", help="models loaded [1 2 4; quick: 1 2]")
    parser.add_argument("--clients", type=int, default=32, help="connections [32]")
    parser.add_argument("--seconds", type=float, help="of each measurement [4; quick: 2]")
    parser.add_argument("--rounds", type=int, help="repeats of all measurements [2; quick: 1]")
    options = parse(parser)
    options.batches = options.batches or ([1, 8] if options.quick else list(BATCHES))
    options.sides = options.sides or ([256, 1024] if options.quick else list(SIDES_PX))
    options.copies = options.copies or ([1, 2] if options.quick else list(MODELS))
    options.seconds = options.seconds or (2.0 if options.quick else 4.0)
    options.rounds = options.rounds or (1 if options.quick else 2)
    console = make_console()
    archive = archive_of(options.archives, options.models[0])
    head = head_of("scaling", options)
    measured = _Measured(head, archive.stem)
    complete = False
    try:
        asked = asked_pair(options)
        with InProcess(archive, Shape(usable_cores(), 1), picture(), pairs=[asked]) as processes:
            measured.pair = processes.loaded[asked]
            console.print(f"in process: {measured.pair}")
            for number in range(1, options.rounds + 1):
                for dimension in options.dimensions:
                    console.print(f"round {number}: {dimension}")
                    for point in DIMENSIONS[dimension](archive, options, processes):
                        measured.points.append(point)
                        console.print(f"  {_line(point)}")
        complete = True
    except (KeyboardInterrupt, LimitFailed, DidNotStart, load.LoadFailed) as stopped:
        console.print(f"[yellow]stopped early:[/] {stopped or 'Ctrl-C'}; the results so far are kept")
    result = measured.result(complete=complete)
    results.write(options.out / "scaling.json", result)
    plot_scaling(result, options.out / "scaling.png", console)
    for point in result.points:
        console.print(_line(point))
    if options.json:
        print((options.out / "scaling.json").read_text(), end="")


def _line(point: results.ScalingPoint) -> str:
    memory = "" if point.pss_mib is None else f", {point.pss_mib:.0f} MiB"
    return (
        f"{point.dimension} {point.value:g}: {point.share_of_limit:.2f} of the limit, "
        f"{point.cost_over_limit:.2f} times its CPU time per picture{memory}"
    )


if __name__ == "__main__":
    main()
