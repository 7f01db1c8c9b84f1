"""What this process may use of its machine or container: cores, memory, GPUs, number types.

Reads /proc, /sys and /dev, and never writes. Never imports torch, so that the gateway can use it too. The limits of all
control groups from our own up to the root count, in cgroup version 2 and 1.
"""

import math
import os
import platform
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
OWN_GROUPS = Path("/proc/self/cgroup")

_GPU_DEVICE = re.compile(r"nvidia\d+")


def usable_cores() -> int:
    """Cores that this process may use: its affinity mask, limited by the container's CPU limit; at least 1."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    limit = cgroup_cores()
    return allowed if limit == math.inf else max(1, min(allowed, math.floor(limit)))


def usable_memory_bytes() -> int:
    """Memory of this machine in bytes, limited by the container's limit."""
    installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return int(min(installed, cgroup_memory_bytes()))


def gpu_count(environment: Mapping[str, str], devices: Path = Path("/dev")) -> int:
    """NVIDIA GPUs that this process may use: its device files, limited by CUDA_VISIBLE_DEVICES of `environment`."""
    present = sum(_GPU_DEVICE.fullmatch(path.name) is not None for path in devices.glob("nvidia*"))
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return present
    named = [name for name in visible.split(",") if name.strip() not in {"", "-1"}]
    return min(present, len(named))


def why_no_gpu(environment: Mapping[str, str], devices: Path = Path("/dev")) -> str | None:
    """Why TorchServe would find no GPU, with the remedy; None if it will find one. `environment` is TorchServe's."""
    if gpu_count(environment, devices) == 0:
        hidden = environment.get("CUDA_VISIBLE_DEVICES")
        if hidden is not None and gpu_count({}, devices):
            return f"CUDA_VISIBLE_DEVICES is {hidden!r}, which hides every GPU; change it or remove it"
        return (
            f"there is no {devices}/nvidia0: give the container a GPU (in Kubernetes the limit nvidia.com/gpu; on k3s "
            "and RKE2 also runtimeClassName: nvidia)"
        )
    if shutil.which("nvidia-smi", path=environment.get("PATH", os.defpath)) is None:
        return (
            "nvidia-smi, by which TorchServe finds the GPUs, is not on PATH: NVIDIA's container runtime provides it "
            "with NVIDIA_DRIVER_CAPABILITIES=compute,utility, and GKE in /usr/local/nvidia/bin"
        )
    return None


def cpu_has_fast_bfloat16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether models run faster in bfloat16 than in float32 on this CPU. Only CPUs with AMX do.

    With AVX512-BF16 alone, products are cheaper, but the operations between them cost more: MobileViT-XXS and EMO-1M
    take 1.2 to 1.5 times as long as in float32.
    """
    return "amx_bf16" in _cpu_flags(cpuinfo)


def cpu_has_bfloat16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether the engines compute bfloat16 in hardware here; emulated bfloat16 is many times slower than float32.

    False on Arm, also where the CPU has it: OpenVINO computes bfloat16 on x86 only (its documentation of the CPU
    device), and TorchScript was not measured there.
    """
    return not {"amx_bf16", "avx512_bf16"}.isdisjoint(_cpu_flags(cpuinfo))


def cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """What code that is compiled for this CPU depends on: its model and its instructions, as the kernel names them."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return platform.machine()
    wanted = ("model name", "cpu family", "model\t", "stepping", "flags", "Features", "CPU part", "CPU implementer")
    first = list(dict.fromkeys(line for line in lines if line.startswith(wanted)))
    return "\n".join((platform.machine(), *first))


def _cpu_flags(cpuinfo: Path) -> list[str]:
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return []
    return next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])


def cgroup_cores(root: Path = CGROUPS, own: Path = OWN_GROUPS) -> float:
    """CPU limit of this container in cores; infinite where it has none."""
    return min(_least(root, own, "cpu", _cores), default=math.inf)


def cgroup_memory_bytes(root: Path = CGROUPS, own: Path = OWN_GROUPS) -> float:
    """Memory limit of this container in bytes; infinite where it has none."""
    return min(_least(root, own, "memory", _memory), default=math.inf)


def _least(root: Path, own: Path, controller: str, limit: Callable[[Path], float]) -> Iterator[float]:
    """The limits of our group and of all groups above it, in both versions."""
    try:
        lines = [line.split(":", 2) for line in own.read_text().splitlines()]
    except OSError:
        lines = []
    # `0::/path` is version 2; version 1 names its controllers, one folder each.
    below = {tuple(filter(None, names.split(","))): path.strip("/") for _, names, path in lines}
    for names, mount in (((), root), ((controller,), root / controller)):
        path = next((path for held, path in below.items() if held == names or set(names) & set(held)), "")
        group = mount / path
        while True:
            # In a container, our own group is mounted as the root, and the path of our group does not exist.
            yield limit(group)
            if group == mount:
                break
            group = group.parent


def _cores(group: Path) -> float:
    try:
        quota, period = (group / "cpu.max").read_text().split()
        return math.inf if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        pass  # not version 2, or its root group, which has no limit file
    try:
        quota_us = int((group / "cpu.cfs_quota_us").read_text())
        period_us = int((group / "cpu.cfs_period_us").read_text())
        return math.inf if quota_us <= 0 else quota_us / period_us
    except (OSError, ValueError):
        return math.inf


def _memory(group: Path) -> float:
    for name in ("memory.max", "memory.limit_in_bytes"):
        try:
            text = (group / name).read_text().strip()
            return math.inf if text == "max" else int(text)
        except (OSError, ValueError):
            continue
    return math.inf
