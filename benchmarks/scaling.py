"""How cost grows: `python -m benchmarks.scaling [--help]`. Throughput, CPU time and memory against one thing at a time.

| dimension | what is measured |
| --- | --- |
| `batch` | the module with decoding in plain processes, at each batch size |
| `picture side px` | our server, pictures of growing size; the model's input stays what it is |
| `models loaded` | our server with copies of the archive under other names, the same clients spread over all of them |
| `gateway processes` | our server, where it has a setting for it; otherwise skipped |
"""

import argparse
import dataclasses
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from benchmarks import load, results
from benchmarks.figures import spread
from benchmarks.limit import InProcess, LimitFailed, Shape
from benchmarks.options import add_common, archive_of, head_of, parse
from benchmarks.plot import plot_scaling
from benchmarks.processes import DidNotStart
from benchmarks.serving import measure
from benchmarks.systems import OURS, Setup, running
from benchmarks.target import picture
from handlers.hardware import usable_cores
from model_store import archive as archives
from service.settings import Settings

BATCHES = (1, 2, 4, 8, 16, 32)
SIDES_PX = (128, 256, 512, 1024, 2048)
MODELS = (1, 2, 4)
GATEWAYS = (1, 2)
GATEWAY_SETTING = "gateway_processes"


@dataclass
class _Measured:
    head: results.Head
    model: str
    points: list[results.ScalingPoint] = field(default_factory=list)

    def result(self, *, complete: bool) -> results.ScalingResult:
        """The median over rounds of each figure at each value."""
        merged = []
        for dimension, value in dict.fromkeys((point.dimension, point.value) for point in self.points):
            rounds = [one for one in self.points if (one.dimension, one.value) == (dimension, value)]
            figures = {
                name: spread(known).median
                for name in ("per_second", "cpu_ms_per_picture", "p99_ms", "pss_mib")
                if (known := [getattr(one, name) for one in rounds if getattr(one, name) is not None])
            }
            merged.append(results.ScalingPoint(dimension, value, skipped=rounds[0].skipped, **figures))
        return results.ScalingResult(dataclasses.replace(self.head, complete=complete), self.model, merged)


def copies(archive: Path, count: int, folder: Path) -> list[Path]:
    """The archive under `count` names: models that differ in nothing but their name."""
    card = archives.read_card(archive)
    with zipfile.ZipFile(archive) as packed:
        module = packed.read(archives.MODULE_FILE)
    return [
        archives.write(folder, card.model_copy(update={"name": f"{card.name}.copy{number}"}), module)
        for number in range(1, count + 1)
    ]


def by_batch(archive: Path, options: argparse.Namespace) -> list[results.ScalingPoint]:
    """In plain processes."""
    shape = Shape(usable_cores(), 1)
    points = []
    with InProcess(archive, shape, picture()) as processes:
        for batch in options.batches:
            turn = processes.measure(batch, options.seconds)
            points.append(
                results.ScalingPoint(
                    "batch", batch, per_second=turn.per_second, cpu_ms_per_picture=turn.cpu_ms_per_picture
                )
            )
    return points


def _served(
    dimension: str, value: float, served: list[Path], image: bytes, setup: Setup, options: argparse.Namespace
) -> results.ScalingPoint:
    with running(OURS, served, setup, image) as server:
        load.closed_loop(server.targets, clients=options.clients, seconds=options.seconds)  # warm
        turn = measure(server, model=served[0].stem, number=0, clients=options.clients, seconds=options.seconds)
    return results.ScalingPoint(
        dimension,
        value,
        per_second=turn.per_second,
        cpu_ms_per_picture=turn.server_cpu_ms_per_picture,
        p99_ms=turn.p99_ms,
        pss_mib=turn.pss_mib,
    )


def by_side(archive: Path, options: argparse.Namespace) -> list[results.ScalingPoint]:
    """Pictures of growing size."""
    setup = Setup(Shape(usable_cores(), 1))
    return [_served("picture side px", side, [archive], picture(side), setup, options) for side in options.sides]


def by_models(archive: Path, options: argparse.Namespace) -> list[results.ScalingPoint]:
    """More models behind one server, a worker each."""
    with tempfile.TemporaryDirectory() as folder:
        served = copies(archive, max(options.copies), Path(folder))
        setup = Setup(Shape(1, usable_cores()))
        return [_served("models loaded", count, served[:count], picture(), setup, options) for count in options.copies]


def by_gateways(archive: Path, options: argparse.Namespace) -> list[results.ScalingPoint]:
    """More gateway processes, where the settings know them."""
    if GATEWAY_SETTING not in Settings.model_fields:
        why = f"this version has no setting {GATEWAY_SETTING}"
        return [results.ScalingPoint("gateway processes", 1, skipped=why)]
    return [
        _served(
            "gateway processes",
            count,
            [archive],
            picture(),
            Setup(Shape(usable_cores(), 1), settings=((GATEWAY_SETTING.upper(), str(count)),)),
            options,
        )
        for count in GATEWAYS
    ]


DIMENSIONS: dict[str, Callable[[Path, argparse.Namespace], list[results.ScalingPoint]]] = {
    "batch": by_batch,
    "side": by_side,
    "models": by_models,
    "gateways": by_gateways,
}


def main() -> None:
    """Measure, write scaling.json and scaling.png, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common(parser, peers=False)
    parser.add_argument("--dimensions", nargs="+", choices=list(DIMENSIONS), default=list(DIMENSIONS), help="[all]")
    parser.add_argument("--batches", type=int, nargs="+", help="batch sizes [1 to 32; quick: 1 8]")
    parser.add_argument("--sides", type=int, nargs="+", help="picture sides, px [128 to 2048; quick: 256 1024]")
    parser.add_argument("--copies", type=int, nargs="+", help="models loaded [1 2 4; quick: 1 2]")
    parser.add_argument("--clients", type=int, default=32, help="connections [32]")
    parser.add_argument("--seconds", type=float, help="of each measurement [4; quick: 2]")
    parser.add_argument("--rounds", type=int, help="turns of everything [2; quick: 1]")
    options = parse(parser)
    options.batches = options.batches or ([1, 8] if options.quick else list(BATCHES))
    options.sides = options.sides or ([256, 1024] if options.quick else list(SIDES_PX))
    options.copies = options.copies or ([1, 2] if options.quick else list(MODELS))
    options.seconds = options.seconds or (2.0 if options.quick else 4.0)
    options.rounds = options.rounds or (1 if options.quick else 2)
    console = Console(stderr=True)
    archive = archive_of(options.archives, options.models[0])
    head = head_of("scaling", options)
    measured = _Measured(head, archive.stem)
    complete = False
    try:
        for number in range(1, options.rounds + 1):
            for dimension in options.dimensions:
                console.print(f"round {number}: {dimension}")
                points = DIMENSIONS[dimension](archive, options)
                measured.points += points
                for point in points:
                    console.print(f"  {_line(point)}")
        complete = True
    except (KeyboardInterrupt, LimitFailed, DidNotStart, load.LoadFailed) as stopped:
        console.print(f"[yellow]stopped early:[/] {stopped or 'Ctrl-C'}; what was measured so far is kept")
    result = measured.result(complete=complete)
    results.write(options.out / "scaling.json", result)
    plot_scaling(result, options.out / "scaling.png", console)
    for point in result.points:
        console.print(_line(point))
    if options.json:
        print((options.out / "scaling.json").read_text(), end="")


def _line(point: results.ScalingPoint) -> str:
    if point.skipped:
        return f"{point.dimension}: skipped: {point.skipped}"
    memory = "" if point.pss_mib is None else f", {point.pss_mib:.0f} MiB"
    return (
        f"{point.dimension} {point.value:g}: {point.per_second:.0f}/s, "
        f"{point.cpu_ms_per_picture:.2f} CPU ms per picture{memory}"
    )


if __name__ == "__main__":
    main()
