"""Description of the machine a benchmark runs on, for every result file. Standard library only; runs only git."""

import datetime
import importlib.metadata
import os
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path

from handlers.hardware import usable_cores

ROOT = Path(__file__).resolve().parents[1]
ABSENT = "absent"
CACHE = ROOT / "build" / "benchmarks"
# CPU features on which the speed of a network depends.
_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8")


@dataclass(frozen=True)
class Machine:
    """The machine and the start time. `load_average` is that of the minute before the benchmark began."""

    started_utc: str
    cores: int
    cpu_model: str
    cpu_flags: tuple[str, ...]
    memory_gib: float
    kernel: str
    python: str
    torch: str
    load_average: float
    git_revision: str
    openvino: str = ABSENT


def describe() -> Machine:
    """Describe this machine now."""
    cpu = _cpu_info()
    return Machine(
        started_utc=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        cores=usable_cores(),
        cpu_model=cpu.get("model name", platform.processor() or "unknown"),
        cpu_flags=tuple(flag for flag in _FLAGS if flag in cpu.get("flags", "").split()),
        memory_gib=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        kernel=platform.release(),
        python=platform.python_version(),
        torch=package_version("torch"),
        load_average=round(os.getloadavg()[0], 2),
        git_revision=revision(ROOT),
        openvino=package_version("openvino"),
    )


def package_version(name: str) -> str:
    """Version of an installed distribution, or `ABSENT`."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ABSENT


def _cpu_info() -> dict[str, str]:
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def revision(checkout: Path) -> str:
    """The commit, with `+changes` where the working tree differs from it; `unknown` outside a checkout."""
    try:
        commit, changes = _git(checkout, "rev-parse", "HEAD"), _git(checkout, "status", "--porcelain")
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return f"{commit}+changes" if changes else commit


def _git(checkout: Path, *words: str) -> str:
    done = subprocess.run(["git", *words], cwd=checkout, capture_output=True, text=True, check=True, timeout=20)
    return done.stdout.strip()
