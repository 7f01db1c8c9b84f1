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
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from handlers import graphs
from handlers.execution import Array, Bucketed, Direct, Execution, Module, Rows, bucket_sizes
from handlers.hardware import cpu_has_fast_bfloat16, usable_cores
from handlers.heap import settle_heap

WARMUP_ROUNDS = 3
# On a CPU the compilation comes with the first two calls, whatever their size; the first call at a size not warmed
# stays under 3 times its median (tests/unit/handlers/test_runtime.py), so the large sizes, which would take a minute
# for a 512-pixel segmentation model, are left out.
CPU_WARMUP_BATCHES = (1, 2, 3)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

logger = logging.getLogger(__name__)


class RuntimeLoadError(RuntimeError):
    """The archive cannot be served: it was altered, breaks its own card, or the settings do not fit the machine."""


class BatchError(ValueError):
    """The batch does not fit the card. The gateway built it, so this is a bug or a mismatched archive."""


class ModuleRunError(RuntimeError):
    """The module itself raised on a batch that fits its card."""


class DeviceLost(RuntimeError):
    """The GPU does not answer this process any more; only a new process can use it again."""


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

    `shm_dir` is where gateways of this machine share memory, None where they do not. `batch_timeout_seconds` None: a
    batch may take any time.
    """

    dtype: str = "auto"  # auto | float32 | bfloat16 | float16
    threads: int | None = None
    shm_dir: Path | None = None
    batch_timeout_seconds: float | None = None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> "RuntimeOptions":
        """Read MOBILEVISION_DTYPE, _WORKER_THREADS, _SHM_DIR, _BATCH_TIMEOUT_SECONDS; empty means the default."""
        source = os.environ if environment is None else environment
        dtype = source.get("MOBILEVISION_DTYPE") or "auto"
        if dtype != "auto" and dtype not in DTYPES:
            raise RuntimeLoadError(f"MOBILEVISION_DTYPE is {dtype!r}; it takes auto, {', '.join(DTYPES)}")
        threads = source.get("MOBILEVISION_WORKER_THREADS") or None
        if threads is not None and not (threads.isdecimal() and int(threads) >= 1):
            raise RuntimeLoadError(f"MOBILEVISION_WORKER_THREADS is {threads!r}; it takes a whole number from 1")
        shm_dir = source.get("MOBILEVISION_SHM_DIR")
        return cls(
            dtype=dtype,
            threads=int(threads) if threads else None,
            shm_dir=Path(shm_dir) if shm_dir else None,
            batch_timeout_seconds=_seconds(source.get("MOBILEVISION_BATCH_TIMEOUT_SECONDS")),
        )


def _seconds(value: str | None) -> float | None:
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < math.inf:
        raise RuntimeLoadError(f"MOBILEVISION_BATCH_TIMEOUT_SECONDS is {value!r}; it takes seconds above 0")
    return seconds


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
    """A loaded module and the way it is executed. `run` is for one thread; a worker process has one Runner."""

    def __init__(self, spec: ModuleSpec, execution: Execution, *, device: torch.device, dtype: torch.dtype) -> None:
        self.spec = spec
        self.device = device
        self.dtype_name = str(dtype).removeprefix("torch.")
        self._execution = execution

    @property
    def part(self) -> int:
        """Pictures that are run at once; a larger batch is run in parts."""
        return self._execution.part

    def warm_up(self, batches: tuple[int, ...]) -> float:
        """Run each batch size three times on an empty picture, then settle; seconds taken.

        Raises `RuntimeLoadError` if outputs break the card.
        """
        started = time.perf_counter()
        for batch in batches:
            pixels = np.zeros((batch, self.spec.height_px, self.spec.width_px, 3), np.uint8)
            for _ in range(WARMUP_ROUNDS):
                try:
                    self.run(pixels)
                except BatchError as error:
                    raise RuntimeLoadError(f"the module does not do what its card says: {error}") from error
        with torch.inference_mode():
            self._execution.settle()
        return time.perf_counter() - started

    def run(self, rows: Rows) -> dict[str, Array]:
        """uint8 RGB, [N, H, W, 3] or N times [H, W, 3] -> the card's outputs, N rows each, valid until the next run.

        Raises `BatchError`, `ModuleRunError`, and `DeviceLost` after which no other run can succeed.
        """
        self._check(rows)
        try:
            with torch.inference_mode():
                tensors = self._execution.run(rows)
        except (RuntimeError, torch.jit.Error) as error:
            if self.device.type == "cuda" and not graphs.context_works(self.device):
                raise DeviceLost(f"{self.device} does not answer this process any more: {_last_line(error)}") from error
            raise ModuleRunError(f"the module failed: {_last_line(error)}") from error
        spec = self.spec
        if len(tensors) != len(spec.outputs):
            raise BatchError(f"the module returned {len(tensors)} tensors; its card declares {len(spec.outputs)}")
        answer: dict[str, Array] = {}
        for declared, tensor in zip(spec.outputs, tensors, strict=True):
            array: Array = tensor.numpy()
            if array.dtype != declared.dtype or array.shape[1:] != declared.shape or len(array) < len(rows):
                raise BatchError(
                    f"output {declared.name!r} is {array.dtype.name} {list(array.shape)}; its card declares "
                    f"{declared.dtype} [N, {', '.join(map(str, declared.shape))}]"
                )
            answer[declared.name] = array[: len(rows)]
        return answer

    def _check(self, rows: Rows) -> None:
        spec = self.spec
        picture = (spec.height_px, spec.width_px, 3)
        pictures = (rows[0],) if isinstance(rows, np.ndarray) and rows.ndim == 4 and len(rows) else rows
        for row in pictures:
            if row.dtype != np.uint8 or row.shape != picture:
                raise BatchError(
                    f"the module takes uint8 [N, {spec.height_px}, {spec.width_px}, 3]; a row of this batch is "
                    f"{row.dtype} {list(row.shape)}"
                )
        if not 1 <= len(rows) <= spec.max_batch:
            raise BatchError(f"the batch has {len(rows)} rows; this archive takes 1 to {spec.max_batch}")


def _last_line(error: Exception) -> str:
    # TorchScript's message ends with the module's own words; the lines before are its traceback.
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1].strip()


def prepare(module: torch.jit.ScriptModule, device: torch.device, dtype: torch.dtype) -> Module:
    """The module frozen on its device, in its dtype and memory layout."""
    settle_executor()
    moved = module.eval().to(device=device, dtype=dtype)
    # torch's annotations of Module.to leave memory_format out
    moved = moved.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    frozen: Module = torch.jit.freeze(moved)
    return frozen


def choose_execution(module: Module, spec: ModuleSpec, device: torch.device) -> Execution:
    """Graphs per batch size on a GPU, batches as they come on a CPU."""
    if device.type != "cuda":
        return Direct(module, max_batch=spec.max_batch, height_px=spec.height_px, width_px=spec.width_px)
    torch.backends.cudnn.benchmark = True  # the sizes are few and all met in the warm-up
    cuda = graphs.CudaDevice(module, device, height_px=spec.height_px, width_px=spec.width_px)
    with torch.inference_mode():
        return Bucketed(spec.max_batch, graphs.graphed_or_eager(cuda.graphed, cuda.eager))


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
    settle_heap()
    module = torch.jit.load(str(model_path), map_location="cpu")  # type: ignore[no-untyped-call]
    execution = choose_execution(prepare(module, device, dtype), spec, device)
    runner = Runner(spec, execution, device=device, dtype=dtype)
    loaded_seconds = time.perf_counter() - started
    on_cpu = device.type == "cpu"
    batches = tuple(b for b in CPU_WARMUP_BATCHES if b <= spec.max_batch) if on_cpu else bucket_sizes(spec.max_batch)
    warm_seconds = runner.warm_up(batches)
    logger.info(
        "module loaded in %.2f s, batches %s warmed in %.2f s, %s on %s, %d threads, %d pictures at once",
        loaded_seconds,
        ",".join(map(str, batches)),
        warm_seconds,
        runner.dtype_name,
        device,
        threads,
        runner.part,
    )
    return runner
