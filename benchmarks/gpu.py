"""Modules and the server on a GPU machine, unattended: `python3 -m benchmarks.gpu --archives DIR [--wheels DIR]`.

It needs torch, numpy, Pillow and archives built elsewhere, and no network. The order is:

1. Smoke test: every archive is loaded and run at every batch size, with and without CUDA graphs.
2. With `--wheels`: the whole server under load, in an environment made from these wheels, with and without graphs.
3. In this process: pictures per second, p99 and device time for each batch size, dtype, with and without graphs, and
   the agreement of the answers with float32.

An error is recorded and the next step follows. The file is written after every step. No step begins after `--budget`
seconds, and a process that hangs ends half a minute later.
"""

import argparse
import dataclasses
import faulthandler
import gc
import logging
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

from benchmarks import gpu_server, results
from benchmarks.figures import percentile
from benchmarks.machine import ROOT, describe
from handlers import runtime
from handlers.contract.frame import Array
from handlers.cuda_graphs import context_works
from handlers.execution import bucket_sizes

BATCHES = (1, 8, 16, 32, 64)
DTYPES = ("float32", "float16", "bfloat16")
AGREEMENT_PICTURES = 64
WARM_UP_RUNS = 5
PROFILED_RUNS = 10
SMOKE_SECONDS = 120.0  # no smoke test begins later
ENVIRONMENT_SECONDS = 90.0  # limit of each command
SERVED_SECONDS, LEAST_SERVED_SECONDS = 200.0, 60.0  # limits of one run; with less time left it does not begin
GRACE_SECONDS = 30.0  # after the budget, for the current step
WITH = {None: "", True: " graphs", False: " no graphs"}


@dataclass
class _Measured:
    """The results so far, written after every step."""

    head: results.Head
    device: str
    path: Path
    smoke: list[results.Smoke] = field(default_factory=list)
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
            smoke=self.smoke,
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
        """Print the step, record its error, and save the results."""
        print(f"[{time.strftime('%H:%M:%S')}] {what}", file=sys.stderr, flush=True)
        try:
            yield
        except Exception as error:  # noqa: BLE001 - unattended: the next steps must follow
            traceback.print_exc()
            self.errors.append(f"{what}: {type(error).__name__}: {str(error)[-800:]}")
        self.save()


def pictures(count: int, height_px: int, width_px: int) -> Array:
    """uint8 (count, height, width, 3): crops of the photographs in docs/pictures, or noise. The same in every run."""
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
    """Seconds of each run of one batch, from numpy to numpy. They include the work of the device."""
    for _ in range(WARM_UP_RUNS):
        runner.run(pixels)
    spent: list[float] = []
    end_at = time.perf_counter() + seconds
    while time.perf_counter() < end_at or not spent:
        began_at = time.perf_counter()
        runner.run(pixels)
        spent.append(time.perf_counter() - began_at)
    return spent


def device_ms(runner: runtime.Runner, pixels: Array) -> float | None:
    """Milliseconds in which the device worked on one batch (kernels and copies), by the profiler. None on a CPU."""
    if runner.device.type != "cuda":
        return None
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(PROFILED_RUNS):
            runner.run(pixels)
    busy_us = sum(float(event.self_device_time_total) for event in profile.key_averages())
    return busy_us / PROFILED_RUNS / 1e3 or None


class _Kept(logging.Handler):
    """Keeps the log messages."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@contextmanager
def unpacked(archive: Path) -> Iterator[Path]:
    """The folder of the unpacked archive. Leaving the context frees the device memory of its modules."""
    with tempfile.TemporaryDirectory() as name:
        with zipfile.ZipFile(archive) as packed:
            packed.extractall(name)
        try:
            yield Path(name)
        finally:
            release()


def release() -> None:
    """Free the device memory of modules that are not used any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def choices(options: argparse.Namespace) -> tuple[bool | None, ...]:
    """With and without CUDA graphs. (None,) on a CPU, which has no graphs."""
    return (None,) if options.device == "cpu" else (True, False)


def load(folder: Path, dtype: str, graphs: bool | None, options: argparse.Namespace) -> runtime.Runner:
    """Load the module of an unpacked archive."""
    runtime_options = runtime.RuntimeOptions(dtype=dtype, cuda_graphs=graphs is True)
    return runtime.load(folder, gpu_id=0 if options.device == "cuda" else None, options=runtime_options)


def smoke_test(folder: Path, name: str, graphs: bool | None, options: argparse.Namespace, measured: _Measured) -> None:
    """Load one archive and run a batch of every size.

    Raises `RuntimeError` if a batch size could not be captured as a graph or the device does not answer any more.
    """
    began_at, on_gpu, kept = time.monotonic(), options.device == "cuda", _Kept()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    log = logging.getLogger(context_works.__module__)
    log.addHandler(kept)
    try:
        runner = load(folder, "float16" if on_gpu else "float32", graphs, options)
    finally:
        log.removeHandler(kept)
    spec, sizes = runner.spec, bucket_sizes(runner.spec.max_batch)
    for size in sizes:
        runner.run(pictures(size, spec.height_px, spec.width_px))
    works = context_works(runner.device)
    peak = torch.cuda.max_memory_allocated() / 2**20 if on_gpu else None
    seconds = time.monotonic() - began_at
    measured.smoke.append(results.Smoke(name, runner.dtype_name, graphs, list(sizes), seconds, peak, works))
    if kept.messages or not works:
        raise RuntimeError("; ".join(kept.messages) or "the device does not answer this process any more")


def measure_module(
    folder: Path, name: str, dtype: str, graphs: bool | None, options: argparse.Namespace, measured: _Measured
) -> dict[str, Array] | None:
    """Measure all batch sizes of one archive in one dtype. Returns the answers for the agreement check."""
    runner = load(folder, dtype, graphs, options)
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
        outputs = runner.run(asked[start : start + 16][: spec.max_batch])
        answers.append({key: array.copy() for key, array in outputs.items()})
    return {key: np.concatenate([one[key] for one in answers]) for key in answers[0]}


def agreement(name: str, dtype: str, reference: dict[str, Array], other: dict[str, Array]) -> results.Agreement:
    """Agreement of `other` with `reference`: share with the same best label, or share of equal pixels (masks)."""
    if "classes" in reference:
        same = float(np.mean(reference["classes"] == other["classes"]))
    else:
        same = float(np.mean(reference["labels"][:, 0] == other["labels"][:, 0]))
    difference = np.abs(reference["scores"] - other["scores"]).max() if "scores" in reference else 0.0
    return results.Agreement(name, dtype, len(next(iter(reference.values()))), same, float(difference))


def run_smoke(archives: list[Path], options: argparse.Namespace, measured: _Measured, deadline_at: float) -> None:
    """Smoke test of every archive with graphs, then of every archive without."""
    for graphs in choices(options):
        for archive in archives:
            if time.monotonic() >= deadline_at:
                measured.errors.append(f"smoke test of {archive.stem}{WITH[graphs]}: no time left")
                continue
            with measured.step(f"smoke test of {archive.stem}{WITH[graphs]}"), unpacked(archive) as folder:
                smoke_test(folder, archive.stem, graphs, options, measured)


def run_served(archive: Path, options: argparse.Namespace, measured: _Measured, end_at: float) -> None:
    """Measure the whole server with one archive, with and without graphs."""
    python: Path | None = None
    if end_at - time.monotonic() < LEAST_SERVED_SECONDS:
        measured.errors.append("server: no time left")
        return
    with measured.step("environment of the server"):
        # Absolute paths, because the processes of the server have other working folders.
        python = gpu_server.make_environment((options.out / "venv").resolve(), options.wheels, ENVIRONMENT_SECONDS)
        archive = gpu_server.make_catalog(archive, (options.out / "archives").resolve())
    for graphs in choices(options) if python else ():
        label, seconds = f"server{WITH[graphs]}", min(SERVED_SECONDS, end_at - time.monotonic())
        if seconds < LEAST_SERVED_SECONDS:
            measured.errors.append(f"{label}: no time left")
            continue
        with measured.step(label):
            out = (options.out / label.replace(" ", "_")).resolve()
            on_gpu = options.device == "cuda"
            parts, wrong = gpu_server.serve(python, archive, out, graphs=graphs, gpu=on_gpu, seconds=seconds)
            measured.served[label] = parts
            measured.errors += [f"{label}: {one}" for one in wrong]


def run_archive(archive: Path, options: argparse.Namespace, measured: _Measured, deadline_at: float) -> None:
    """Measure one archive in every dtype, with and without graphs. float32 comes first, as the reference."""
    reference: dict[str, Array] | None = None
    with unpacked(archive) as folder:
        for dtype in options.dtypes:
            for graphs in choices(options):
                if time.monotonic() >= deadline_at:
                    measured.errors.append(f"{archive.stem} {dtype}{WITH[graphs]}: no time left")
                    continue
                with measured.step(f"{archive.stem} {dtype}{WITH[graphs]}"):
                    answers = measure_module(folder, archive.stem, dtype, graphs, options, measured)
                    if reference is None and dtype == "float32":
                        reference = answers
                    elif reference is not None and answers is not None:
                        label = dtype + ("+graphs" if graphs else "")
                        measured.agreements.append(agreement(archive.stem, label, reference, answers))
                release()


def main() -> None:
    """Measure, write gpu.json and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--archives", type=Path, default=ROOT / "model_store" / "archives", help="folder with .mar files"
    )
    parser.add_argument("--models", nargs="*", help="names [every archive in the folder]")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="[cuda]")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES), help="[all]")
    parser.add_argument("--batches", type=int, nargs="+", default=list(BATCHES), help="[1 8 16 32 64]")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement [2]")
    parser.add_argument("--pictures", type=int, default=AGREEMENT_PICTURES, help="of the agreement check [64]")
    parser.add_argument("--budget", type=float, default=450.0, help="no step begins after this many seconds [450]")
    parser.add_argument("--wheels", type=Path, nargs="+", help="folders of wheels: measure the server as well")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "benchmarks" / "results", help="for gpu.json")
    options = parser.parse_args()
    began_at = time.monotonic()
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("torch finds no CUDA device; use --device cpu to try this program without one")
    device = torch.cuda.get_device_name(0) if options.device == "cuda" else "cpu"
    chosen = {key: str(value) for key, value in vars(options).items() if key != "out"}
    head = results.Head("gpu", describe(), chosen, complete=False)
    measured = _Measured(head, device, options.out / "gpu.json")
    archives = sorted(options.archives.glob("*.mar"))
    if options.models:  # in the given order; the server is measured with the first
        archives = [options.archives / f"{name}.mar" for name in options.models]
    if not archives:
        raise SystemExit(f"no archives in {options.archives}; build archives elsewhere and copy them here")
    end_at = began_at + options.budget
    complete = False
    # Ends the process if a call to the device never returns. By file descriptor, because sys.stderr may be no file.
    faulthandler.dump_traceback_later(options.budget + GRACE_SECONDS, exit=True, file=2)
    try:
        run_smoke(archives, options, measured, min(began_at + SMOKE_SECONDS, end_at))
        if options.wheels:
            run_served(archives[0], options, measured, end_at)
        for archive in archives:
            with measured.step(archive.stem):
                run_archive(archive, options, measured, end_at)
        complete = not measured.errors
    except KeyboardInterrupt:
        print("stopped early; the results so far are kept", file=sys.stderr)
    finally:
        faulthandler.cancel_dump_traceback_later()
    result = measured.save(complete=complete)
    for point in result.points:
        on_device = "" if point.device_ms is None else f", {point.device_ms:.2f} ms on the device"
        print(
            f"{point.model} {point.dtype}{WITH[point.graphs]} batch {point.batch}: {point.per_second:.0f}/s, "
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
