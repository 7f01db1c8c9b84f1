"""What a load generator is told, and what it reports back: the values between `load` and the process `client`."""

from dataclasses import dataclass

from benchmarks.outcomes import Row
from benchmarks.target import Target


@dataclass(frozen=True)
class OpenPlan:
    """Send to `targets` in turn at the given times; give up on each `deadline_seconds` after it was due."""

    targets: tuple[Target, ...]
    arrivals_seconds: tuple[float, ...]
    deadline_seconds: float


@dataclass(frozen=True)
class ClosedPlan:
    """`clients` that each send the next request when the last is answered; only the last `seconds` count."""

    targets: tuple[Target, ...]
    clients: int
    warm_up_seconds: float
    seconds: float


@dataclass(frozen=True)
class Outcomes:
    """What a run came to."""

    sent: int
    rows: tuple[Row, ...]
    cpu_seconds: float
