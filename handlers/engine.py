"""Which network engine runs an archive, and in which dtype: the fastest pair that agrees with the reference.

In: a verified module file, its device, and what the operator asked for. Out: a module that is ready to run. The
reference is TorchScript in float32; it runs everywhere and is never refused. OpenVINO is tried on CPUs where it is
installed, and must first compute what the reference computes (`handlers.probe`).
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from handlers import openvino_network, probe, torchscript
from handlers.archive import ModuleSpec
from handlers.compiled_cache import CompiledCache
from handlers.errors import EngineUnfit, RuntimeLoadError
from handlers.execution import Module
from handlers.hardware import cpu_has_bfloat16, cpu_has_fast_bfloat16, cpu_name
from handlers.options import LEAST_AGREEMENT, OPENVINO, TORCHSCRIPT, RuntimeOptions

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


def candidates(options: RuntimeOptions, spec: ModuleSpec, device: torch.device) -> Iterator[Pair]:
    """The pairs to try, the fastest first; the last one is TorchScript. Raises `RuntimeLoadError`."""
    half = options.dtype == "auto" and (spec.bfloat16_agreement or 0.0) >= LEAST_AGREEMENT
    if device.type == "cuda":
        if options.engine == OPENVINO:
            raise RuntimeLoadError("MOBILEVISION_ENGINE is openvino, which runs on CPUs, but this worker has a GPU")
        fastest = torch.float32 if spec.bfloat16_agreement is None else torch.float16
        yield Pair(TORCHSCRIPT, fastest if options.dtype == "auto" else _dtype(options))
        return
    there = options.engine != TORCHSCRIPT and openvino_network.installed()
    if options.engine == OPENVINO and not there:
        raise RuntimeLoadError(
            "MOBILEVISION_ENGINE is openvino, but OpenVINO is not installed: pip install 'mobilevision[openvino]'"
        )
    if options.dtype != "auto":
        if there:
            yield Pair(OPENVINO, _dtype(options))
        yield Pair(TORCHSCRIPT, _dtype(options))
        return
    # The order is that of the speeds that `python -m benchmarks.engines` measures.
    if there and half and cpu_has_bfloat16():
        yield Pair(OPENVINO, torch.bfloat16)
    if half and cpu_has_fast_bfloat16() and options.engine != OPENVINO:
        yield Pair(TORCHSCRIPT, torch.bfloat16)
        return
    if there:
        yield Pair(OPENVINO, torch.float32)
    yield Pair(TORCHSCRIPT, torch.float32)


def load(path: Path, spec: ModuleSpec, device: torch.device, options: RuntimeOptions, *, threads: int) -> LoadedModule:
    """Load the module of an archive with the first pair that fits. Raises `RuntimeLoadError`.

    `path` is the verified module file, `threads` the number that the engine may use.
    """
    refused: list[str] = []
    parts: openvino_network.Parts | None = None
    for pair in candidates(options, spec, device):
        if pair.engine == TORCHSCRIPT:
            del parts
            return LoadedModule(torchscript.load(path, device, pair.dtype), pair, tuple(refused))
        try:
            parts = parts or torchscript.parts(path)
            module = _openvino(parts, pair, spec, options, threads)
        except EngineUnfit as error:
            logger.warning("%s is not used: %s", pair, error)
            refused.append(str(pair))
        else:
            return LoadedModule(module, pair, tuple(refused), openvino_network.EACH_SIZE)
    raise RuntimeLoadError("this is a bug: no engine was left to try")


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
