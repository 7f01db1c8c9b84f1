"""The result files: frozen dataclasses, written as JSON together with a description of the machine.

`benchmarks.serving_results` has those of `serving.json`. Standard library only, so that `benchmarks.gpu` can write its
file on a machine with few packages. Every file has the version of its schema. A figure that could not be measured is
left out or has an `error` beside it.
"""

import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.figures import Spread
from benchmarks.machine import Machine

SCHEMA_VERSION = 2  # from 2 on, a file names the network engine and the dtype of every system


@dataclass(frozen=True)
class Head:
    """Head of every result file. `complete` is false if the run was cut short; its figures are valid all the same."""

    benchmark: str
    machine: Machine
    options: dict[str, Any]
    complete: bool
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True)
class Participant:
    """One system with its settings, or the `error` because of which it was not measured.

    `engine` and `dtype` are those that computed the network of the first answer, as the answer says. Empty: not told.
    """

    name: str
    model: str
    version: str = ""
    shape: str = ""  # workers x threads
    max_batch: int = 0
    max_wait_ms: int = 0
    start_seconds: float = 0.0
    agrees_with_ours: bool | None = None
    error: str | None = None
    engine: str = ""
    dtype: str = ""


@dataclass(frozen=True)
class LoadPoint:
    """One open-loop run. `goodput_over_capacity`: answers in time per second / capacity of the same system.

    `capacity_per_second` was measured just before and just after. Goodput is divided by the mean of both. `load` is
    the share of the first.
    """

    round: int
    system: str
    model: str
    load: float  # offered / capacity
    capacity_per_second: tuple[float, float]
    offered_per_second: float
    seconds: float
    sent: int
    answered: int
    refused: int
    missed: int
    failed: int
    adds_up: bool
    goodput_per_second: float
    goodput_over_capacity: float
    p50_ms: float
    p99_ms: float
    generator_lag_p99_ms: float
    generator_cpu_share: float  # of one core


@dataclass(frozen=True)
class OverloadResult:
    """`overload.json`. `goodput_over_capacity` is by system and then by load, in rising order."""

    head: Head
    deadline_ms: float
    trace_seed: int
    participants: list[Participant]
    points: list[LoadPoint]
    goodput_over_capacity: dict[str, dict[str, Spread]]


@dataclass(frozen=True)
class ProcessTrend:
    """Memory of one process over the steady part of a soak."""

    pid: int
    name: str
    first_mib: float
    last_mib: float
    peak_mib: float
    slope_mib_per_hour: float
    bound_mib_per_hour: float
    within_bound: bool
    samples: int


@dataclass(frozen=True)
class SoakResult:
    """`soak.json`."""

    head: Head
    model: str
    minutes: float
    offered_per_second: float
    capacity_per_second: float
    sent: int
    answered: int
    refused: int
    missed: int
    failed: int
    adds_up: bool
    p99_ms: float
    processes: list[ProcessTrend]
    within_bound: bool
    processes_that_ended: int
    slots_in_use_at_end: float | None  # None: this server has no shared-memory slots
    slots: dict[str, float]
    engine: str = ""
    dtype: str = ""


@dataclass(frozen=True)
class RollingResult:
    """`rolling.json`. `failed` counts calls that failed for the caller.

    `refused_by_draining` counts calls that an instance refused and the client repeated on another one.
    """

    head: Head
    model: str
    minutes: float
    per_second: float
    replacements: int
    exit_statuses: dict[str, int]  # exit status -> replaced instances
    sent: int
    answered: int
    failed: int
    codes: dict[str, int]
    answered_by_version: dict[str, int]
    refused_by_draining: dict[str, int]  # reason -> calls
    name_lookups: int
    p50_ms: float
    p99_ms: float
    longest_ms: float
    generator_lag_p99_ms: float


@dataclass(frozen=True)
class LoadStep:
    """One load on one pod. `recorded`: series -> values, one per second; `le=X` is a bucket of call durations."""

    load: float  # offered / capacity
    offered_per_second: float
    sent: int
    answered: int
    refused: int
    missed: int
    failed: int
    p50_ms: float
    p99_ms: float
    generator_lag_p99_ms: float
    calls_in_flight: float  # mean
    queue_age_seconds: float  # mean
    recorded: dict[str, str]


@dataclass(frozen=True)
class LoadProfileResult:
    """`load_profile.json`.

    `thresholds`: the calls per second at `planned_load`, a share of the capacity; the calls in flight at the capacity.
    """

    head: Head
    model: str
    cores: int
    capacity_per_second: float
    planned_load: float
    deadline_ms: float
    steps: list[LoadStep]
    thresholds: dict[str, float]
    engine: str = ""
    dtype: str = ""


@dataclass(frozen=True)
class Start:
    """One start of one system."""

    system: str
    model: str
    seconds_to_first_answer: float
    cpu_seconds_to_first_answer: float
    idle_pss_mib: float
    idle_rss_mib: float
    processes: int


@dataclass(frozen=True)
class ImageSize:
    """Size of a container image, or the reason why it is unknown."""

    image: str
    mib: float | None
    skipped: str | None


@dataclass(frozen=True)
class StartupResult:
    """`startup.json`. `median_seconds` and `idle_pss_mib` are medians by system."""

    head: Head
    participants: list[Participant]
    starts: list[Start]
    median_seconds: dict[str, float]
    idle_pss_mib: dict[str, float]
    images: list[ImageSize]


@dataclass(frozen=True)
class ScalingPoint:
    """Throughput, CPU time and memory at one `value` of the varied `dimension`.

    `share_of_limit`, `cost_over_limit`: throughput and CPU time per picture as multiples of the in-process limit.
    """

    dimension: str
    value: float
    share_of_limit: float | None = None
    cost_over_limit: float | None = None
    per_second: float | None = None
    cpu_ms_per_picture: float | None = None
    p99_ms: float | None = None
    pss_mib: float | None = None


@dataclass(frozen=True)
class ScalingResult:
    """`scaling.json`: medians over all turns. `engine` and `dtype` are those of the in-process limit."""

    head: Head
    model: str
    points: list[ScalingPoint]
    engine: str = ""
    dtype: str = ""


@dataclass(frozen=True)
class GpuPoint:
    """One module at one batch size in one process. `device_ms`: time the device works on a batch; None on a CPU."""

    model: str
    dtype: str
    graphs: bool | None  # with CUDA graphs; None: this runtime has no graphs
    batch: int
    per_second: float
    p50_ms: float
    p99_ms: float
    device_ms: float | None
    peak_memory_mib: float | None


@dataclass(frozen=True)
class Agreement:
    """Agreement of a dtype with float32: share of pictures with the same best label, or share of equal pixels."""

    model: str
    dtype: str
    pictures: int
    same: float
    largest_score_difference: float


@dataclass(frozen=True)
class Smoke:
    """One archive that was loaded and run at every batch size before the measurements."""

    model: str
    dtype: str
    graphs: bool | None
    batches: list[int]
    seconds: float
    peak_memory_mib: float | None
    context_works: bool  # whether the device still answered afterwards


@dataclass(frozen=True)
class GpuResult:
    """`gpu.json`."""

    head: Head
    device: str
    points: list[GpuPoint]
    agreements: list[Agreement]
    served: dict[str, Any]  # with and without graphs: parts of a serving.json; empty without wheels
    errors: list[str]
    graph_speedup: dict[str, float]  # model/dtype/batch -> with / without
    smoke: list[Smoke] = field(default_factory=list)


def write(path: Path, result: Any) -> None:
    """Write a result atomically. NaN and infinity become null, because JSON has no such numbers."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = json.dumps(_plain(dataclasses.asdict(result)), indent=1, allow_nan=False)
    part = path.with_name(path.name + ".part")
    part.write_text(content + "\n")
    part.replace(path)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value
