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
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.limit import unpack
from benchmarks.pairs import REFERENCE, Accuracy, Pair, add_pair, asked_pair, to_try
from handlers import engine, probe, torchscript
from handlers.archive import ModuleSpec, verified_module
from handlers.engine import LoadedModule
from handlers.errors import EngineUnfit, RuntimeLoadError
from handlers.malloc_tuning import tune_malloc
from handlers.options import LEAST_AGREEMENT, TORCHSCRIPT, RuntimeOptions

BATCHES = (1, 2, 4, 8)
_WARM_RUNS = 3
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Point:
    """One pair at one batch size. `difference`: see `pairs.Accuracy`."""

    model: str
    engine: str
    dtype: str
    batch: int
    ms_per_picture: float
    ratio: float  # pictures per second, over those of TorchScript in float32 at the same batch size
    difference: float | None


def loaded(folder: Path, threads: int, pairs: Sequence[Pair]) -> Iterator[tuple[Pair, LoadedModule, float | None]]:
    """Each of the pairs that a worker would load here, in the given order, with its difference from the reference.

    `folder` has the files of the archive. A pair that a worker refuses is left out and named on stderr.
    """
    spec = ModuleSpec.read(folder)
    path = verified_module(folder, spec)
    for pair in pairs:
        options = RuntimeOptions(engine=pair.engine, dtype=pair.dtype, threads=threads)
        try:
            found = engine.load(path, spec, _CPU, options, threads=threads)
        except RuntimeLoadError as error:
            if pair == REFERENCE:
                raise
            print(f"{folder.name}: {pair} is refused: {error}", file=sys.stderr)
            continue
        if str(found.pair) == str(pair):
            yield pair, found, _difference(found, path, spec)
        else:
            print(f"{folder.name}: {pair} is refused; its log is above", file=sys.stderr)


def accuracies(archive: Path, threads: int, pairs: Sequence[Pair]) -> dict[Pair, Accuracy]:
    """The pairs that a worker would load here from a packed archive, with their accuracy."""
    torch.set_num_threads(threads)
    with TemporaryDirectory() as directory:
        folder = unpack(archive, Path(directory) / archive.stem)
        said = ModuleSpec.read(folder).bfloat16_agreement
        return {
            pair: Accuracy(
                difference,
                agreement=said if pair.dtype == "bfloat16" else None,
                admitted=pair.dtype == REFERENCE.dtype
                or (pair.dtype == "bfloat16" and (said or 0.0) >= LEAST_AGREEMENT),
            )
            for pair, _, difference in loaded(folder, threads, pairs)
        }


def _difference(found: LoadedModule, path: Path, spec: ModuleSpec) -> float | None:
    if str(found.pair) == str(REFERENCE):
        return 0.0
    try:
        parts = torchscript.parts(path)
    except EngineUnfit:
        return None
    pixels = probe.pictures(sum(probe.BATCHES), height_px=spec.height_px, width_px=spec.width_px)
    with torch.inference_mode():
        reference = _outputs(parts.network(parts.pixels(pixels)))
        if found.pair.engine != TORCHSCRIPT:
            module: Any = found.module
            return probe.difference(module.raw(pixels), reference)
        # A frozen module has no parts, so that they run unfrozen here. Freezing changes no answer beyond rounding.
        whole: Any = torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]
        whole = whole.eval().to(dtype=found.pair.dtype)
        return probe.difference(_outputs(whole.network(whole.pixels(pixels))), reference)


def _outputs(raw: torch.Tensor | Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
    return (raw,) if isinstance(raw, torch.Tensor) else raw


def measure(folder: Path, *, threads: int, pairs: Sequence[Pair], batches: Sequence[int], rounds: int) -> list[Point]:
    """All pairs at all batch sizes, by turns. `pairs` begin with the reference."""
    spec = ModuleSpec.read(folder)
    modules = list(loaded(folder, threads, pairs))
    pixels = probe.pictures(max(batches), height_px=spec.height_px, width_px=spec.width_px)
    points = []
    for batch in batches:
        seconds: dict[Pair, list[float]] = {pair: [] for pair, _, _ in modules}
        with torch.inference_mode():
            for turn in range(_WARM_RUNS + rounds):
                for pair, found, _ in modules:
                    started = time.perf_counter()
                    found.module(pixels[:batch])
                    if turn >= _WARM_RUNS:
                        seconds[pair].append(time.perf_counter() - started)
        usual = {pair: statistics.median(taken) for pair, taken in seconds.items()}
        reference = usual[REFERENCE]
        points += [
            Point(
                folder.name,
                pair.engine,
                pair.dtype,
                batch,
                1e3 * usual[pair] / batch,
                reference / usual[pair],
                difference,
            )
            for pair, _, difference in modules
        ]
    return points


def main() -> None:
    """Measure, print a table, and write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archives", type=Path, default=Path("model_store/archives"))
    parser.add_argument("--models", nargs="+", required=True)
    add_pair(parser)
    parser.add_argument("--batches", nargs="+", type=int, default=BATCHES)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--out", type=Path, help="file for the points as JSON")
    asked = parser.parse_args()
    pairs = to_try(asked_pair(asked))
    torch.set_num_threads(asked.threads)
    tune_malloc()
    points: list[Point] = []
    print(f"{'model':28} {'engine':12} {'dtype':9} batch  ms/picture  ratio  difference")
    with TemporaryDirectory() as directory:
        for model in asked.models:
            folder = unpack(asked.archives / f"{model}.mar", Path(directory) / model)
            for point in measure(
                folder, threads=asked.threads, pairs=pairs, batches=asked.batches, rounds=asked.rounds
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
