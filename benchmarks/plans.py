"""The values that `load` and the process `client` exchange: a plan of the load, and the outcomes of its requests."""

from dataclasses import dataclass

from benchmarks.outcomes import RequestRecord
from benchmarks.target import Target


@dataclass(frozen=True)
class OpenPlan:
    """Send to `targets` in turn at the given times, in seconds from the start of the run.

    A request ends at the latest `deadline_seconds` after its planned time.
    """

    targets: tuple[Target, ...]
    arrivals_seconds: tuple[float, ...]
    deadline_seconds: float


@dataclass(frozen=True)
class ClosedPlan:
    """`clients` send the next request when the last one is answered. Only requests in the last `seconds` count."""

    targets: tuple[Target, ...]
    clients: int
    warm_up_seconds: float
    seconds: float


@dataclass(frozen=True)
class Outcomes:
    """All requests of a run, and the CPU time of the generator."""

    sent: int
    records: tuple[RequestRecord, ...]
    cpu_seconds: float
