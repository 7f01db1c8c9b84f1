"""Which network engine runs an archive, and in which dtype: the fastest pair that agrees with the reference.

In: a verified module file, its device, and what the operator asked for. Out: a module that is ready to run. The
reference is TorchScript in float32; it runs everywhere and is never refused. OpenVINO is tried on CPUs where it is
installed, and must first compute what the reference computes (`handlers.probe`).
"""

import dataclasses
import functools
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from handlers import by_turns, openvino_network, probe, torchscript
from handlers.archive import ModuleSpec
from handlers.calibration import Kept, one_of
from handlers.compiled_cache import CompiledCache
from handlers.errors import EngineUnfit, RuntimeLoadError
from handlers.execution import Module
from handlers.hardware import cpu_has_bfloat16, cpu_has_fast_bfloat16, cpu_name
from handlers.options import LEAST_AGREEMENT, OPENVINO, TORCHSCRIPT, RuntimeOptions

_TIMED_BATCH = 4  # pictures: a usual micro-batch
_WARM_RUNS = 2  # TorchScript compiles in the first two

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pair:
    """A network engine and the dtype that it computes in."""

    engine: str
    dtype: torch.dtype

    @property
    def dtype_name(self) -> str:
        """The dtype as settings, replies and bounds name it."""
        return str(self.dtype).removeprefix("torch.")

    def __str__(self) -> str:
        return f"{self.engine}/{self.dtype_name}"


@dataclass(frozen=True)
class LoadedModule:
    """A module that is ready to run.

    Attributes:
        module: the callable; see `execution.Module`.
        pair: the engine and the dtype that it runs in.
        refused: faster pairs that were tried and do not fit, as `engine/dtype`.
        compiles_each_size: whether the first run at each number of pictures takes much longer.

    """

    module: Module
    pair: Pair
    refused: tuple[str, ...] = ()
    compiles_each_size: bool = False


def candidates(options: RuntimeOptions, spec: ModuleSpec, device: torch.device) -> Iterator[tuple[Pair, ...]]:
    """The pairs to try, in groups, the fastest group first; the last one has TorchScript. Raises `RuntimeLoadError`.

    Which pair of a group is the fastest depends on the module.
    """
    half = options.dtype == "auto" and (spec.bfloat16_agreement or 0.0) >= LEAST_AGREEMENT
    if device.type == "cuda":
        if options.engine == OPENVINO:
            raise RuntimeLoadError("MOBILEVISION_ENGINE is openvino, which runs on CPUs, but this worker has a GPU")
        fastest = torch.float32 if spec.bfloat16_agreement is None else torch.float16
        yield (Pair(TORCHSCRIPT, fastest if options.dtype == "auto" else _dtype(options)),)
        return
    there = options.engine != TORCHSCRIPT and openvino_network.installed()
    if options.engine == OPENVINO and not there:
        raise RuntimeLoadError(
            "MOBILEVISION_ENGINE is openvino, but OpenVINO is not installed: pip install 'mobilevision[openvino]'"
        )
    if options.dtype != "auto":
        if there:
            yield (Pair(OPENVINO, _dtype(options)),)
        yield (Pair(TORCHSCRIPT, _dtype(options)),)
        return
    # The order is that of the speeds that `python -m benchmarks.engines` measures.
    in_openvino = (Pair(OPENVINO, torch.bfloat16),) if there and half and cpu_has_bfloat16() else ()
    if half and cpu_has_fast_bfloat16() and options.engine != OPENVINO:
        # With AMX, each of the two is ahead by up to a quarter for some modules.
        yield (*in_openvino, Pair(TORCHSCRIPT, torch.bfloat16))
        return
    if in_openvino:
        yield in_openvino
    if there:
        yield (Pair(OPENVINO, torch.float32),)
    yield (Pair(TORCHSCRIPT, torch.float32),)


def load(path: Path, spec: ModuleSpec, device: torch.device, options: RuntimeOptions, *, threads: int) -> LoadedModule:
    """Load the module of an archive with the fastest pair that fits. Raises `RuntimeLoadError`.

    `path` is the verified module file, `threads` the number that the engine may use. Where a group has several pairs,
    they are timed by turns, and the result is kept for later workers.
    """
    parts = functools.cache(lambda: torchscript.parts(path))
    refused: list[str] = []

    def loaded(pair: Pair) -> LoadedModule | None:
        if pair.engine == TORCHSCRIPT:
            return LoadedModule(torchscript.load(path, device, pair.dtype), pair)
        try:
            module = _openvino(parts(), pair, spec, options, threads)
        except EngineUnfit as error:
            logger.warning("%s is not used: %s", pair, error)
            refused.append(str(pair))
            return None
        return LoadedModule(module, pair, compiles_each_size=openvino_network.EACH_SIZE)

    for group in candidates(options, spec, device):
        kept = Kept(options.calibration_dir, "engine", spec.module_sha256, str(threads))
        known = one_of(kept, [str(pair) for pair in group]) if len(group) > 1 else None
        best: LoadedModule | None = None
        for pair in sorted(group, key=lambda pair: str(pair) != known):
            if best is not None and str(best.pair) == known:
                break
            found = loaded(pair)
            if best is None or found is None:
                best = best or found
            else:
                best = faster(best, found, spec)
                kept.write(str(best.pair))
        if best is not None:
            return dataclasses.replace(best, refused=tuple(refused))
    raise RuntimeLoadError("this is a bug: no engine was left to try")


def faster(
    one: LoadedModule, other: LoadedModule, spec: ModuleSpec, *, clock: Callable[[], float] = time.perf_counter
) -> LoadedModule:
    """The one of two modules that takes less time for a batch, by turns."""
    count = min(_TIMED_BATCH, spec.max_batch)
    pixels = probe.pictures(count, height_px=spec.height_px, width_px=spec.width_px)

    def seconds(module: Module) -> float:
        started_at = clock()
        module(pixels)
        return clock() - started_at

    with torch.inference_mode():
        for _ in range(_WARM_RUNS):
            one.module(pixels)
            other.module(pixels)
        ahead = by_turns.lead(lambda: seconds(one.module) <= seconds(other.module), clock=clock)
    best = one if ahead >= 0 else other
    logger.info("%s is faster than %s here", best.pair, (other if best is one else one).pair)
    return best


def _dtype(options: RuntimeOptions) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, options.dtype)
    return dtype


def _openvino(
    parts: openvino_network.Parts, pair: Pair, spec: ModuleSpec, options: RuntimeOptions, threads: int
) -> openvino_network.OpenVinoModule:
    """The module in OpenVINO, compared with the reference. Raises `EngineUnfit`."""
    key = (spec.module_sha256, openvino_network.version(), cpu_name(), pair.dtype_name, str(threads))
    cache = CompiledCache(options.calibration_dir, key)
    module = openvino_network.load(
        parts,
        dtype=pair.dtype,
        height_px=spec.height_px,
        width_px=spec.width_px,
        threads=threads,
        cache=cache,
    )

    def reference(pixels: torch.Tensor) -> Any:
        raw = parts.network(parts.pixels(pixels))
        return (raw,) if isinstance(raw, torch.Tensor) else raw

    # The optimising executor would compile twice for these calls.
    with torch.inference_mode(), torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
        worst = probe.check(
            module.raw,
            reference,
            task=spec.task,
            dtype=pair.dtype_name,
            height_px=spec.height_px,
            width_px=spec.width_px,
        )
    logger.info(
        "%s %s, and differs from the reference by %.2g of its spread",
        pair,
        "was compiled before" if cache.hit else "was compiled",
        worst,
    )
    return module
