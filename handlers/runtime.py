"""Load an archive's module and warm it: device, engine, dtype, threads and batch sizes are chosen here, once.

In: an unpacked archive (card.json + model.pt). Out: a `Runner` that answers any batch of 1 to `max_batch` pictures
without a compilation. Everything in `handlers` is shipped inside every archive, so it imports numpy and torch only;
this module never imports TorchServe.
"""

import logging
import time
from pathlib import Path

import torch

from handlers import cuda_graphs, engine
from handlers.archive import ModuleSpec, verified_module
from handlers.calibration import KeptCalibration
from handlers.errors import BatchError, DeviceLost, ModuleRunError, RuntimeLoadError
from handlers.execution import Bucketed, Direct, Execution, Module, bucket_sizes
from handlers.hardware import usable_cores
from handlers.malloc_tuning import tune_malloc
from handlers.options import RuntimeOptions
from handlers.runner import Runner

# What a worker's entry needs of this package.
__all__ = ["BatchError", "DeviceLost", "ModuleRunError", "Runner", "RuntimeLoadError", "RuntimeOptions", "load"]

# On a CPU, TorchScript's compilation comes with the first two calls, whatever their size. The first call at a size that
# was not warmed takes less than 3 times the median (tests/unit/handlers/test_runtime.py). So the large sizes, which
# would take a minute for a 512-pixel segmentation model, are left out. Another engine compiles for each number of
# pictures: then all numbers that run at once are warmed when the micro-batch is known.
CPU_WARMUP_BATCHES = (1, 2, 3)

logger = logging.getLogger(__name__)


def choose_device(gpu_id: int | None, *, require_gpu: bool = False) -> torch.device:
    """The device of this worker. TorchServe gives it a GPU number or None; without CUDA in this torch it is the CPU.

    Raises `RuntimeLoadError` instead of choosing the CPU if `require_gpu`.
    """
    if gpu_id is not None and torch.cuda.is_available():
        return torch.device("cuda", gpu_id)
    if not require_gpu:
        return torch.device("cpu")
    if gpu_id is None:
        why = "TorchServe gave this worker none: run nvidia-smi in the container, which TorchServe asks for the GPUs"
    elif torch.version.cuda is None:
        why = f"torch {torch.__version__} is a build for CPUs: use the image torchserve-cuda"
    else:
        why = (
            f"torch {torch.__version__} cannot use it: the driver must support CUDA {torch.version.cuda} (nvidia-smi "
            "prints what it supports)"
        )
    raise RuntimeLoadError(f"a GPU is required (MOBILEVISION_REQUIRE_GPU), but {why}")


def choose_execution(module: Module, spec: ModuleSpec, device: torch.device, *, capture: bool) -> Execution:
    """On a GPU, buckets of batch sizes, each captured as a CUDA graph if `capture`. On a CPU, batches as they come."""
    if device.type != "cuda":
        return Direct(module, max_batch=spec.max_batch, height_px=spec.height_px, width_px=spec.width_px)
    torch.backends.cudnn.benchmark = True  # the sizes are few, and the warm-up runs all of them
    cuda = cuda_graphs.CudaDevice(module, device, height_px=spec.height_px, width_px=spec.width_px)
    with torch.inference_mode():
        make = cuda_graphs.graphed_or_eager(cuda.graphed, cuda.eager) if capture else cuda.eager
        return Bucketed(spec.max_batch, make)


def load(directory: Path, *, gpu_id: int | None, options: RuntimeOptions) -> Runner:
    """Verify and load the archive unpacked in `directory`, and warm it. Raises `RuntimeLoadError`.

    `gpu_id` is the GPU number that TorchServe gave to this worker, None for the CPU.
    """
    started = time.perf_counter()
    spec = ModuleSpec.read(directory)
    path = verified_module(directory, spec)
    device = choose_device(gpu_id, require_gpu=options.require_gpu)
    threads = options.threads or usable_cores()
    torch.set_num_threads(threads)
    tune_malloc()
    loaded = engine.load(path, spec, device, options, threads=threads)
    execution = choose_execution(loaded.module, spec, device, capture=options.cuda_graphs)
    runner = Runner(
        spec,
        execution,
        device=device,
        dtype=loaded.pair.dtype,
        engine=loaded.pair.engine,
        refused=loaded.refused,
    )
    loaded_seconds = time.perf_counter() - started
    on_cpu = device.type == "cpu"
    batches = tuple(b for b in CPU_WARMUP_BATCHES if b <= spec.max_batch) if on_cpu else bucket_sizes(spec.max_batch)
    kept = KeptCalibration(
        options.calibration_dir if on_cpu else None,
        module_sha256=spec.module_sha256,
        pair=str(loaded.pair),
        threads=threads,
    )
    warm_seconds = runner.warm_up(batches, micro_batch=kept.read(spec.max_batch), each_size=loaded.compiles_each_size)
    kept.write(runner.micro_batch)
    logger.info(
        "module loaded in %.2f s, batches %s warmed in %.2f s, %s on %s, %d threads, %d pictures at once",
        loaded_seconds,
        ",".join(map(str, batches)),
        warm_seconds,
        loaded.pair,
        device,
        threads,
        runner.micro_batch,
    )
    return runner
