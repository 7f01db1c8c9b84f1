import math
import os
from pathlib import Path

import pytest

from handlers import hardware


@pytest.fixture
def own(tmp_path: Path) -> Path:
    return tmp_path / "own"


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_a_limit_of_either_version_counts(tmp_path, own):
    root = tmp_path / "cgroup"
    assert hardware.cgroup_cores(root, own) == math.inf
    assert hardware.cgroup_memory_bytes(root, own) == math.inf
    write(root / "cpu" / "cpu.cfs_quota_us", "150000\n")
    write(root / "cpu" / "cpu.cfs_period_us", "100000\n")
    write(root / "memory" / "memory.limit_in_bytes", "4096\n")
    assert hardware.cgroup_cores(root, own) == 1.5
    assert hardware.cgroup_memory_bytes(root, own) == 4096
    write(root / "cpu.max", "100000 100000\n")
    write(root / "memory.max", "2048\n")
    assert hardware.cgroup_cores(root, own) == 1.0
    assert hardware.cgroup_memory_bytes(root, own) == 2048


def test_no_limit_is_infinite(tmp_path, own):
    write(tmp_path / "cpu.max", "max 100000\n")
    write(tmp_path / "memory.max", "max\n")
    write(tmp_path / "cpu" / "cpu.cfs_quota_us", "-1\n")
    write(tmp_path / "cpu" / "cpu.cfs_period_us", "100000\n")
    assert hardware.cgroup_cores(tmp_path, own) == math.inf
    assert hardware.cgroup_memory_bytes(tmp_path, own) == math.inf


@pytest.mark.parametrize(
    ("groups", "limited"),
    [
        ("0::/system/gateway\n", "system"),
        ("0::/system/gateway\n", "system/gateway"),
        ("3:cpu,cpuacct:/pod/one\n0::/\n", "cpu/pod"),
    ],
)
def test_the_limit_of_a_group_above_ours_counts(tmp_path, own, groups, limited):
    own.write_text(groups)
    root = tmp_path / "cgroup"
    if limited.startswith("cpu/"):
        write(root / limited / "cpu.cfs_quota_us", "300000")
        write(root / limited / "cpu.cfs_period_us", "100000")
    else:
        write(root / limited / "cpu.max", "300000 100000")
    assert hardware.cgroup_cores(root, own) == 3.0


@pytest.mark.parametrize(("limit", "cores"), [(0.5, 1), (1.5, 1), (math.inf, None)])
def test_usable_cores_are_at_least_one_and_at_most_the_affinity(monkeypatch, limit, cores):
    monkeypatch.setattr(hardware, "cgroup_cores", lambda: limit)
    assert hardware.usable_cores() == (cores or len(os.sched_getaffinity(0)))


def test_usable_memory_is_what_the_container_may_have(monkeypatch):
    monkeypatch.setattr(hardware, "cgroup_memory_bytes", lambda: math.inf)
    whole = hardware.usable_memory_bytes()
    assert whole > 2**28
    monkeypatch.setattr(hardware, "cgroup_memory_bytes", lambda: 2.0**27)
    assert hardware.usable_memory_bytes() == 2**27


@pytest.mark.parametrize(
    ("environment", "count"),
    [
        ({}, 2),
        ({"CUDA_VISIBLE_DEVICES": ""}, 0),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, 0),
        ({"CUDA_VISIBLE_DEVICES": "1"}, 1),
        ({"CUDA_VISIBLE_DEVICES": "0,1,2"}, 2),
    ],
)
def test_gpus_are_the_visible_device_files(tmp_path, environment, count):
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm", "null"):
        (tmp_path / name).touch()
    assert hardware.gpu_count(environment, tmp_path) == count


def test_why_torchserve_would_find_no_gpu_names_the_remedy(tmp_path):
    devices, programs = tmp_path / "dev", tmp_path / "bin"
    devices.mkdir()
    programs.mkdir()
    environment = {"PATH": str(programs)}
    assert "nvidia.com/gpu" in hardware.why_no_gpu(environment, devices)
    (devices / "nvidia0").touch()
    assert "CUDA_VISIBLE_DEVICES is '-1'" in hardware.why_no_gpu(environment | {"CUDA_VISIBLE_DEVICES": "-1"}, devices)
    assert "/usr/local/nvidia/bin" in hardware.why_no_gpu(environment, devices)
    (programs / "nvidia-smi").touch(mode=0o755)
    assert hardware.why_no_gpu(environment, devices) is None


@pytest.mark.parametrize(
    ("flags", "has", "fast"),
    [
        ("avx2 avx512f", False, False),
        ("avx512f avx512_bf16", True, False),
        ("amx_tile amx_bf16", True, True),
        (None, False, False),
    ],
)
def test_bfloat16_is_read_from_the_flags_of_the_cpu(tmp_path, flags, has, fast):
    cpuinfo = tmp_path / "cpuinfo"
    if flags is not None:
        cpuinfo.write_text(f"processor : 0\nflags\t\t: fpu {flags}\n")
    assert hardware.cpu_has_bfloat16(cpuinfo) is has
    assert hardware.cpu_has_fast_bfloat16(cpuinfo) is fast


# A Neoverse V1: the kernel writes `Features` where it writes `flags` on x86.
ARM = """\
processor\t: 0
BogoMIPS\t: 2100.00
Features\t: fp asimd evtstrm aes fphp asimdhp i8mm bf16 dgh rng
CPU implementer\t: 0x41
CPU architecture: 8
CPU part\t: 0xd40

"""


def test_a_cpu_without_x86_flags_is_none_that_computes_in_bfloat16(tmp_path):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(ARM + ARM.replace(": 0\n", ": 1\n"))
    assert not hardware.cpu_has_bfloat16(cpuinfo)
    assert not hardware.cpu_has_fast_bfloat16(cpuinfo)
    name = hardware.cpu_name(cpuinfo)
    assert "i8mm" in name  # what was compiled for it is not read on another CPU
    assert name.count("CPU part") == 1
    cpuinfo.write_text(ARM.replace("0xd40", "0xd0c"))
    assert hardware.cpu_name(cpuinfo) != name
    assert hardware.cpu_name(tmp_path / "none")
