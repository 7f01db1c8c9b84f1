"""The result files: plain frozen records, written as JSON with the machine beside the figures, readable again.

Standard library only, so that `benchmarks.gpu` can write its file on a machine that has little else. Every file says
which schema it has; a figure that could not be measured is left out or comes with an `error`, never guessed.
"""

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.figures import Spread
from benchmarks.machine import Machine

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Head:
    """What every result file begins with. `complete` is false where the run was cut short; its figures are real."""

    benchmark: str
    machine: Machine
    options: dict[str, Any]
    complete: bool
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True)
class Participant:
    """One system as it took part, or why it did not."""

    name: str
    model: str
    version: str = ""
    shape: str = ""  # workers x threads
    max_batch: int = 0
    max_wait_ms: int = 0
    start_seconds: float = 0.0
    agrees_with_ours: bool | None = None
    error: str | None = None


@dataclass(frozen=True)
class Turn:
    """One closed-loop measurement of one system in one round.

    `limit_per_second`: the in-process limit, mean of just before and just after, see `LimitTurn`.
    """

    round: int
    system: str
    model: str
    clients: int
    answered: int
    failed: int
    per_second: float
    p50_ms: float
    p99_ms: float
    server_cpu_ms_per_picture: float
    client_cpu_ms_per_picture: float
    pss_mib: float
    rss_mib: float
    limit_per_second: float | None = None


@dataclass(frozen=True)
class LimitTurn:
    """The in-process limit in one round, before or after the turns of the systems with so many clients.

    With one client it is one plain process, a picture at a time, the others idle.
    """

    round: int
    clients: int
    model: str
    shape: str
    batch: int
    per_second: float
    cpu_ms_per_picture: float


@dataclass(frozen=True)
class Tried:
    """One candidate of the search for a system's best set-up, or for the limit's."""

    system: str
    model: str
    shape: str
    max_batch: int
    max_wait_ms: int
    per_second: float


@dataclass(frozen=True)
class ServingResult:
    """`serving.json`. Cases are `model/clients`."""

    head: Head
    generator: str
    participants: list[Participant]
    tried: list[Tried]
    limit_turns: list[LimitTurn]
    turns: list[Turn]
    ratio_to_limit: dict[str, Spread]  # case -> ours / limit
    ratio_to_peer: dict[str, dict[str, Spread]]  # case -> peer -> ours / peer
    peer_ratio_to_limit: dict[str, dict[str, Spread]]  # case -> peer -> peer / limit
    added_ms: dict[str, dict[str, Spread]]  # model -> system -> mean latency at one client, less the limit's


@dataclass(frozen=True)
class LoadPoint:
    """One open-loop run. `goodput_over_capacity`: answered in time per second, by the system's own capacity.

    That is the mean of `capacity_per_second`, measured just before and just after; the load is by the former.
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
    """`overload.json`. `goodput_over_capacity`: system -> load, rising."""

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


@dataclass(frozen=True)
class RollingResult:
    """`rolling.json`. Failures are what callers saw; `refused_by_draining` is what the client asked another for."""

    head: Head
    model: str
    minutes: float
    per_second: float
    replacements: int
    exit_statuses: dict[str, int]  # of the instances that were replaced
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
class MarkStep:
    """One load on one pod. `recorded`: series -> values, once a second; `le=X` is a bucket of call times."""

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
    calls_in_work: float  # mean
    queue_age_seconds: float  # mean
    recorded: dict[str, str]


@dataclass(frozen=True)
class MarksResult:
    """`marks.json`. `marks`: calls per second at the share `planned` of the capacity, calls in work at the capacity."""

    head: Head
    model: str
    cores: int
    capacity_per_second: float
    planned: float
    deadline_ms: float
    steps: list[MarkStep]
    marks: dict[str, float]


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
    """Size of a container image, or why it is not known."""

    image: str
    mib: float | None
    skipped: str | None


@dataclass(frozen=True)
class StartupResult:
    """`startup.json`. `median_seconds` and `idle_pss_mib` are by system."""

    head: Head
    participants: list[Participant]
    starts: list[Start]
    median_seconds: dict[str, float]
    idle_pss_mib: dict[str, float]
    images: list[ImageSize]


@dataclass(frozen=True)
class ScalingPoint:
    """Throughput, CPU time and memory at one value of what is varied.

    `share_of_limit`, `cost_over_limit`: throughput and CPU time per picture as multiples of the in-process limit's.
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
    """`scaling.json`: medians over all turns."""

    head: Head
    model: str
    points: list[ScalingPoint]


@dataclass(frozen=True)
class GpuPoint:
    """One module at one batch size in one process. `device_ms`: the device busy with a batch; none on a CPU."""

    model: str
    dtype: str
    graphs: bool | None  # None: this runtime has no such choice
    batch: int
    per_second: float
    p50_ms: float
    p99_ms: float
    device_ms: float | None
    peak_memory_mib: float | None


@dataclass(frozen=True)
class Agreement:
    """How a dtype's answers compare with float32's: share of pictures with the same best label, or of equal pixels."""

    model: str
    dtype: str
    pictures: int
    same: float
    largest_score_difference: float


@dataclass(frozen=True)
class GpuResult:
    """`gpu.json`."""

    head: Head
    device: str
    points: list[GpuPoint]
    agreements: list[Agreement]
    served: dict[str, Any]  # parts of a serving.json; empty without wheels
    errors: list[str]
    graph_speedup: dict[str, float]  # model/dtype/batch -> with / without


def write(path: Path, result: Any) -> None:
    """Write a result atomically. NaN and infinities, which JSON lacks, become null."""
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
