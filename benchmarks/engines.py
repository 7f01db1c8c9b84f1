"""Every network engine x dtype x batch size for archives, in one process and by turns, with the agreement beside it.

In: archives. Out: milliseconds per picture of the whole served module (pixels, network, post-processing), as a table
and as JSON. The pairs take turns within each round, because the speed of a machine that other programs use changes
within seconds; the median of the rounds counts, and the ratio to TorchScript in float32 of the same run. One thread by
default: a server runs one worker per core.

    python -m benchmarks.engines --archives model_store/archives --models mobilevit_xxs_classify emo_1m_classify
"""

import argparse
import json
import statistics
import sys
import time
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from handlers import engine, probe, torchscript
from handlers.archive import ModuleSpec, verified_module
from handlers.contract.archive_file import CARD_ENTRY, MODULE_ENTRY
from handlers.engine import LoadedModule, Pair
from handlers.malloc_tuning import tune_malloc
from handlers.options import ENGINES, TORCHSCRIPT, RuntimeOptions

DTYPES = ("float32", "bfloat16")
BATCHES = (1, 2, 4, 8)
_WARM_RUNS = 3
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Point:
    """One pair at one batch size.

    `difference`: of the raw outputs on the probe pictures, in standard deviations of the reference. None: not told,
    because the pair is TorchScript, whose parts do not run alone.
    """

    model: str
    engine: str
    dtype: str
    batch: int
    ms_per_picture: float
    ratio: float  # pictures per second, over those of TorchScript in float32 at the same batch size
    difference: float | None


def unpack(archive: Path, directory: Path) -> Path:
    """The files of an archive that a worker reads, in a folder of their own."""
    folder = directory / archive.stem
    with zipfile.ZipFile(archive) as content:
        for entry in (CARD_ENTRY, MODULE_ENTRY):
            content.extract(entry, folder)
    return folder


def loaded(folder: Path, threads: int, dtypes: Sequence[str]) -> Iterator[tuple[LoadedModule, float | None]]:
    """Each pair that runs this module here, with its difference from the reference; the reference comes first."""
    spec = ModuleSpec.read(folder)
    path = verified_module(folder, spec)
    for name in ENGINES:
        for dtype in dtypes:
            options = RuntimeOptions(engine=name, dtype=dtype, threads=threads)
            found = engine.load(path, spec, _CPU, options, threads=threads)
            if str(found.pair) != f"{name}/{dtype}":
                print(f"{folder.name}: {name}/{dtype} is refused", file=sys.stderr)
            else:
                yield found, None if name == TORCHSCRIPT else _difference(found, path, spec)


def _difference(found: LoadedModule, path: Path, spec: ModuleSpec) -> float:
    parts = torchscript.parts(path)
    pixels = probe.pictures(sum(probe.BATCHES), height_px=spec.height_px, width_px=spec.width_px)
    module: Any = found.module
    with torch.inference_mode():
        raw = parts.network(parts.pixels(pixels))
        return probe.difference(module.raw(pixels), (raw,) if isinstance(raw, torch.Tensor) else raw)


def measure(folder: Path, *, threads: int, dtypes: Sequence[str], batches: Sequence[int], rounds: int) -> list[Point]:
    """All pairs at all batch sizes, by turns."""
    spec = ModuleSpec.read(folder)
    modules = list(loaded(folder, threads, dtypes))
    pixels = probe.pictures(max(batches), height_px=spec.height_px, width_px=spec.width_px)
    points = []
    for batch in batches:
        seconds: dict[Pair, list[float]] = {found.pair: [] for found, _ in modules}
        with torch.inference_mode():
            for turn in range(_WARM_RUNS + rounds):
                for found, _ in modules:
                    started = time.perf_counter()
                    found.module(pixels[:batch])
                    if turn >= _WARM_RUNS:
                        seconds[found.pair].append(time.perf_counter() - started)
        usual = {pair: statistics.median(taken) for pair, taken in seconds.items()}
        reference = usual[modules[0][0].pair]
        points += [
            Point(
                folder.name,
                found.pair.engine,
                found.pair.dtype_name,
                batch,
                1e3 * usual[found.pair] / batch,
                reference / usual[found.pair],
                difference,
            )
            for found, difference in modules
        ]
    return points


def main() -> None:
    """Measure, print a table, and write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archives", type=Path, default=Path("model_store/archives"))
    parser.add_argument("--models", nargs="+", required=True)
    parser.add_argument("--dtypes", nargs="+", default=DTYPES)
    parser.add_argument("--batches", nargs="+", type=int, default=BATCHES)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--out", type=Path, help="file for the points as JSON")
    asked = parser.parse_args()
    dtypes = ("float32", *(dtype for dtype in asked.dtypes if dtype != "float32"))
    torch.set_num_threads(asked.threads)
    tune_malloc()
    points: list[Point] = []
    print(f"{'model':28} {'engine':12} {'dtype':9} batch  ms/picture  ratio  difference")
    with TemporaryDirectory() as directory:
        for model in asked.models:
            folder = unpack(asked.archives / f"{model}.mar", Path(directory))
            for point in measure(
                folder, threads=asked.threads, dtypes=dtypes, batches=asked.batches, rounds=asked.rounds
            ):
                points.append(point)
                told = "-" if point.difference is None else f"{point.difference:.2g}"
                print(
                    f"{point.model:28} {point.engine:12} {point.dtype:9} {point.batch:5}  {point.ms_per_picture:10.2f}"
                    f"  {point.ratio:5.2f}  {told}",
                    flush=True,
                )
    if asked.out:
        asked.out.write_text(json.dumps([asdict(point) for point in points], indent=2) + "\n")


if __name__ == "__main__":
    main()
