"""Load an archive's TorchScript module and run it: device, dtype, threads and warm-up are decided here, once.

In: an unpacked archive (card.json + model.pt). Out: a `Runner` that answers any batch of 1..max_batch without paying
a compilation. Imports numpy and torch only, because it is shipped inside every archive; never imports TorchServe.
The only file beside `service/settings.py` that reads the environment (see `RuntimeOptions.from_environment`).
"""

import hashlib
import json
import logging
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

BUCKETS = (1, 2, 4, 8, 16, 32, 64)
WARMUP_ROUNDS = 3
# On a CPU the compilation comes with the first two calls, whatever their size; the first call at a size not warmed
# stays under 3 times its median (tests/unit/handlers/test_runtime.py), so the large sizes, which would take a minute
# for a 512-pixel segmentation model, are left out.
CPU_WARMUP_BATCHES = (1, 2, 3)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

Array = np.ndarray[Any, np.dtype[Any]]

logger = logging.getLogger(__name__)


class RuntimeLoadError(RuntimeError):
    """The archive cannot be served: it was altered, breaks its own card, or the settings do not fit the machine."""


class BatchError(ValueError):
    """The batch does not fit the card. The gateway built it, so this is a bug or a mismatched archive."""


class ModuleRunError(RuntimeError):
    """The module itself raised on a batch that fits its card."""


@dataclass(frozen=True)
class TensorSpec:
    """One result tensor as the card declares it; `shape` leaves out N."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class ModuleSpec:
    """The part of the model card that running needs (pydantic stays out of the worker)."""

    height_px: int
    width_px: int
    max_batch: int
    outputs: tuple[TensorSpec, ...]
    module_sha256: str

    @classmethod
    def read(cls, path: Path) -> "ModuleSpec":
        """Read card.json. Raises `RuntimeLoadError` naming the file."""
        try:
            card = json.loads(path.read_bytes())
            return cls(
                height_px=int(card["input"]["height"]),
                width_px=int(card["input"]["width"]),
                max_batch=int(card["max_batch"]),
                outputs=tuple(TensorSpec(o["name"], o["dtype"], tuple(o["shape"])) for o in card["outputs"]),
                module_sha256=card["module_sha256"],
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RuntimeLoadError(f"{path} is not a model card this worker can read: {error!r}") from error


@dataclass(frozen=True)
class RuntimeOptions:
    """What an operator may force. `threads` None: the cores this process may really use.

    `shm_dir` is where gateways of this machine share memory, None where they do not.
    """

    dtype: str = "auto"  # auto | float32 | bfloat16 | float16
    threads: int | None = None
    shm_dir: Path | None = None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> "RuntimeOptions":
        """Read MOBILEVISION_DTYPE, _WORKER_THREADS and _SHM_DIR; an unset or empty one means the default."""
        source = os.environ if environment is None else environment
        dtype = source.get("MOBILEVISION_DTYPE") or "auto"
        if dtype != "auto" and dtype not in DTYPES:
            raise RuntimeLoadError(f"MOBILEVISION_DTYPE is {dtype!r}; it takes auto, {', '.join(DTYPES)}")
        threads = source.get("MOBILEVISION_WORKER_THREADS") or None
        if threads is not None and not (threads.isdecimal() and int(threads) >= 1):
            raise RuntimeLoadError(f"MOBILEVISION_WORKER_THREADS is {threads!r}; it takes a whole number from 1")
        shm_dir = source.get("MOBILEVISION_SHM_DIR")
        return cls(dtype=dtype, threads=int(threads) if threads else None, shm_dir=Path(shm_dir) if shm_dir else None)


def cgroup_cores(root: Path = Path("/sys/fs/cgroup")) -> float:
    """CPU limit of this container in cores, cgroup v2 or v1; infinite where there is none."""
    try:
        quota, period = (root / "cpu.max").read_text().split()
        return math.inf if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        pass  # not version 2, or its root group, which has no limit file
    try:
        quota_us = int((root / "cpu" / "cpu.cfs_quota_us").read_text())
        period_us = int((root / "cpu" / "cpu.cfs_period_us").read_text())
        return math.inf if quota_us <= 0 else quota_us / period_us
    except (OSError, ValueError):
        return math.inf


def usable_cores() -> int:
    """Cores this process may really use: its affinity mask, cut by the container's CPU limit; at least 1."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    return max(1, min(allowed, math.floor(cgroup_cores())) if cgroup_cores() != math.inf else allowed)


def cpu_has_fast_bfloat16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this CPU multiplies bfloat16 in hardware (AMX or AVX512-BF16); emulated it is slower than float32."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return False
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])
    return "amx_bf16" in flags or "avx512_bf16" in flags


def choose_dtype(requested: str, device: torch.device) -> torch.dtype:
    """The dtype to compute in: as requested, or the fastest this device does in hardware."""
    if requested != "auto":
        return DTYPES[requested]
    if device.type == "cuda":
        return torch.float16
    return torch.bfloat16 if cpu_has_fast_bfloat16() else torch.float32


def choose_device(gpu_id: int | None) -> torch.device:
    """TorchServe gives a worker its GPU number, or none; without CUDA in this torch the CPU is used."""
    if gpu_id is not None and torch.cuda.is_available():
        return torch.device("cuda", gpu_id)
    return torch.device("cpu")


def settle_executor() -> None:
    """Keep TorchScript from recompiling for new shapes.

    The default strategy may fuse for two static and ten dynamic sets of shapes, each a compilation when it is first
    met (on GPUs: triton-inference-server/server#3012). Without fusion the profiled graph is compiled on the second
    call and then left alone; on a CPU the two were equally settled, and this one warmed up faster.
    """
    torch.jit.set_fusion_strategy([])


class Runner:
    """A loaded, frozen module. `run` is for one thread; a worker process has one Runner."""

    def __init__(
        self,
        module: torch.jit.ScriptModule,
        spec: ModuleSpec,
        *,
        device: torch.device,
        dtype: torch.dtype,
        pad_to_bucket: bool,
    ) -> None:
        settle_executor()
        self.spec = spec
        self.device = device
        self.dtype_name = str(dtype).removeprefix("torch.")
        self._pad_to_bucket = pad_to_bucket
        moved = module.eval().to(device=device, dtype=dtype)
        # torch's annotations of Module.to leave memory_format out
        moved = moved.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._module = torch.jit.freeze(moved)

    def warm_up(self, batches: tuple[int, ...]) -> float:
        """Run each batch size three times on an empty picture; seconds taken. Raises if outputs break the card."""
        started = time.perf_counter()
        for batch in batches:
            pixels = np.zeros((batch, self.spec.height_px, self.spec.width_px, 3), np.uint8)
            for _ in range(WARMUP_ROUNDS):
                try:
                    self.run(pixels)
                except BatchError as error:
                    raise RuntimeLoadError(f"the module does not do what its card says: {error}") from error
        return time.perf_counter() - started

    def run(self, pixels: Array | Sequence[Array]) -> dict[str, Array]:
        """uint8 [N, H, W, 3] RGB -> the card's outputs, N rows each. Raises `BatchError`, `ModuleRunError`.

        A list of N rows [H, W, 3], which may lie anywhere, is gathered straight into what is fed to the module.
        """
        spec = self.spec
        picture = (spec.height_px, spec.width_px, 3)
        for row in pixels:
            if row.dtype != np.uint8 or row.shape != picture:
                raise BatchError(
                    f"the module takes uint8 [N, {spec.height_px}, {spec.width_px}, 3], not {row.dtype} "
                    f"[N, {', '.join(map(str, row.shape))}]"
                )
        rows = len(pixels)
        if not 1 <= rows <= spec.max_batch:
            raise BatchError(f"the batch has {rows} rows; this archive takes 1 to {spec.max_batch}")
        fed = self._padded(pixels)
        try:
            with torch.inference_mode():
                results = self._module(torch.from_numpy(fed).to(self.device, non_blocking=True))
        except (RuntimeError, torch.jit.Error) as error:
            # TorchScript's message ends with the module's own words; the lines before are its traceback.
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise ModuleRunError(f"the module failed: {lines[-1].strip()}") from error
        tensors = (results,) if isinstance(results, torch.Tensor) else tuple(results)
        if len(tensors) != len(spec.outputs):
            raise BatchError(f"the module returned {len(tensors)} tensors; its card declares {len(spec.outputs)}")
        answer: dict[str, Array] = {}
        for declared, tensor in zip(spec.outputs, tensors, strict=True):
            array = tensor.cpu().numpy()
            if array.dtype.name != declared.dtype or array.shape != (fed.shape[0], *declared.shape):
                raise BatchError(
                    f"output {declared.name!r} is {array.dtype.name} {list(array.shape)}; its card declares "
                    f"{declared.dtype} [N, {', '.join(map(str, declared.shape))}]"
                )
            answer[declared.name] = array[:rows]
        return answer

    def _padded(self, pixels: Array | Sequence[Array]) -> Array:
        rows = len(pixels)
        size = next((b for b in self.buckets if b >= rows), rows) if self._pad_to_bucket else rows
        if size == rows and isinstance(pixels, np.ndarray) and pixels.flags.writeable:
            return np.ascontiguousarray(pixels)
        padded = self._staging(size)
        # torch warns about memory it may not write; TorchServe's buffers are writable, so this copy is rare.
        np.stack(list(pixels), out=padded[:rows])
        padded[rows:] = 0
        return padded

    def _staging(self, size: int) -> Array:
        """An uninitialised batch; on CUDA page-locked, so that the copy to the device needs no second one."""
        shape = (size, self.spec.height_px, self.spec.width_px, 3)
        pinned = self.device.type == "cuda"
        staging: Array = torch.empty(shape, dtype=torch.uint8, pin_memory=pinned).numpy()
        return staging

    @property
    def buckets(self) -> tuple[int, ...]:
        """The batch sizes a padded run uses: powers of two, and max_batch itself."""
        return tuple(sorted({b for b in BUCKETS if b < self.spec.max_batch} | {self.spec.max_batch}))


def load(directory: Path, *, gpu_id: int | None, options: RuntimeOptions) -> Runner:
    """Verify and load the archive unpacked in `directory`, and warm it. Raises `RuntimeLoadError`."""
    started = time.perf_counter()
    spec = ModuleSpec.read(directory / "card.json")
    model_path = directory / "model.pt"
    try:
        digest = hashlib.sha256(model_path.read_bytes()).hexdigest()
    except OSError as error:
        raise RuntimeLoadError(f"the archive has no readable model.pt: {error}") from error
    if digest != spec.module_sha256:
        raise RuntimeLoadError(
            f"model.pt has sha256 {digest}, its card says {spec.module_sha256}: the archive was altered or damaged; "
            "build it again"
        )
    device = choose_device(gpu_id)
    dtype = choose_dtype(options.dtype, device)
    threads = options.threads or usable_cores()
    torch.set_num_threads(threads)
    module = torch.jit.load(str(model_path), map_location="cpu")  # type: ignore[no-untyped-call]
    on_gpu = device.type == "cuda"
    runner = Runner(module, spec, device=device, dtype=dtype, pad_to_bucket=on_gpu)
    loaded_seconds = time.perf_counter() - started
    batches = runner.buckets if on_gpu else tuple(b for b in CPU_WARMUP_BATCHES if b <= spec.max_batch)
    warm_seconds = runner.warm_up(batches)
    logger.info(
        "module loaded in %.2f s, batches %s warmed in %.2f s, %s on %s, %d threads",
        loaded_seconds,
        ",".join(map(str, batches)),
        warm_seconds,
        runner.dtype_name,
        device,
        threads,
    )
    return runner
