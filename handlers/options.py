"""What an operator may force on a worker, from environment variables, and what is allowed without force.

The only file beside `service/core/settings/` that reads the environment.
"""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from handlers.errors import RuntimeLoadError

DTYPES = ("float32", "bfloat16", "float16")
TORCHSCRIPT, OPENVINO = "torchscript", "openvino"
ENGINES = (TORCHSCRIPT, OPENVINO)
# What the card must say of the answers in bfloat16 for `auto` to choose it: the share of equal answers. With trained
# weights it is 1.0 or close to it; random weights of detectors have scores so close together that it may be lower.
LEAST_AGREEMENT = 0.98


@dataclass(frozen=True)
class RuntimeOptions:
    """What an operator may force.

    Attributes:
        engine: what computes the networks: auto, torchscript or openvino.
        dtype: auto, float32, bfloat16 or float16.
        cuda_graphs: on a GPU, capture one graph per batch size.
        require_gpu: compute on a GPU or not at all.
        threads: of torch and of the engine; None for the cores that this process may really use.
        shm_dir: folder where the gateways of this machine share memory; None where they share none.
        batch_timeout_seconds: longest time of one batch; None for no limit.
        calibration_dir: private folder where workers keep what they measured and compiled, for later workers.

    """

    engine: str = "auto"
    dtype: str = "auto"
    cuda_graphs: bool = True
    require_gpu: bool = False
    threads: int | None = None
    shm_dir: Path | None = None
    batch_timeout_seconds: float | None = None
    calibration_dir: Path | None = None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> "RuntimeOptions":
        """Read MOBILEVISION_ENGINE, _DTYPE, _CUDA_GRAPHS, _REQUIRE_GPU, _WORKER_THREADS, _SHM_DIR,
        _BATCH_TIMEOUT_SECONDS, _CALIBRATION_DIR.

        An empty or missing variable means the default. Raises `RuntimeLoadError` for a value that is not allowed.
        """
        source = os.environ if environment is None else environment
        engine = _choice(source, "MOBILEVISION_ENGINE", ENGINES)
        dtype = _choice(source, "MOBILEVISION_DTYPE", DTYPES)
        cuda_graphs = _flag(source, "MOBILEVISION_CUDA_GRAPHS", default=True)
        require_gpu = _flag(source, "MOBILEVISION_REQUIRE_GPU", default=False)
        threads = source.get("MOBILEVISION_WORKER_THREADS") or None
        if threads is not None and not (threads.isdecimal() and int(threads) >= 1):
            raise RuntimeLoadError(f"MOBILEVISION_WORKER_THREADS is {threads!r}; it takes a whole number from 1")
        shm_dir = source.get("MOBILEVISION_SHM_DIR")
        calibration_dir = source.get("MOBILEVISION_CALIBRATION_DIR")
        return cls(
            engine=engine,
            dtype=dtype,
            cuda_graphs=cuda_graphs,
            require_gpu=require_gpu,
            threads=int(threads) if threads else None,
            shm_dir=Path(shm_dir) if shm_dir else None,
            batch_timeout_seconds=_seconds(source.get("MOBILEVISION_BATCH_TIMEOUT_SECONDS")),
            calibration_dir=Path(calibration_dir) if calibration_dir else None,
        )


def _flag(source: Mapping[str, str], name: str, *, default: bool) -> bool:
    value = source.get(name) or str(default).lower()
    if value not in {"true", "false"}:
        raise RuntimeLoadError(f"{name} is {value!r}; it takes true or false")
    return value == "true"


def _choice(source: Mapping[str, str], name: str, allowed: tuple[str, ...]) -> str:
    value = source.get(name) or "auto"
    if value != "auto" and value not in allowed:
        raise RuntimeLoadError(f"{name} is {value!r}; it takes auto, {', '.join(allowed)}")
    return value


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
