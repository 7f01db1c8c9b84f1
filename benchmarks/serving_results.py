"""`serving.json`: what `benchmarks.serving` measures, as frozen dataclasses. See `benchmarks.results`."""

from dataclasses import dataclass

from benchmarks.figures import Spread
from benchmarks.results import Head, Participant


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
    """The in-process limit in one round, before or after a turn of a system with this number of clients.

    Turns of TorchScript in float32 (the reference) stand before the first and after the last turn of the limit in a
    round, unless it is the limit itself. With one client it is one plain process with one picture at a time; the other
    processes are idle.
    """

    round: int
    clients: int
    model: str
    shape: str
    batch: int
    per_second: float
    cpu_ms_per_picture: float
    engine: str
    dtype: str


@dataclass(frozen=True)
class LimitPair:
    """One pair of engine and dtype in plain processes, with its best set-up.

    `difference`, `agreement`: see `pairs.Accuracy`. `admitted`: a server may run the pair; the fastest of these is the
    limit. `per_second` is that of the search, so it only compares the pairs of one model.
    """

    model: str
    engine: str
    dtype: str
    shape: str
    batch: int
    per_second: float
    difference: float | None
    agreement: float | None
    admitted: bool


@dataclass(frozen=True)
class Tried:
    """One set-up that was tried in the search for the best one of a system or of the limit."""

    system: str
    model: str
    shape: str
    max_batch: int
    max_wait_ms: int
    per_second: float
    engine: str = ""  # of the limit
    dtype: str = ""


@dataclass(frozen=True)
class ServingResult:
    """`serving.json`. Cases are `model/clients`. TorchScript: in float32, in plain processes on the same cores."""

    head: Head
    generator: str
    participants: list[Participant]
    limits: list[LimitPair]  # by model, the fastest first
    tried: list[Tried]
    limit_turns: list[LimitTurn]
    turns: list[Turn]
    ratio_to_limit: dict[str, Spread]  # case -> ours / limit
    ratio_to_torchscript: dict[str, Spread]  # case -> ours / TorchScript
    ratio_to_peer: dict[str, dict[str, Spread]]  # case -> peer -> ours / peer
    peer_ratio_to_limit: dict[str, dict[str, Spread]]  # case -> peer -> peer / limit
    peer_ratio_to_torchscript: dict[str, dict[str, Spread]]  # case -> peer -> peer / TorchScript
    limit_to_torchscript: dict[str, Spread]  # case -> limit / TorchScript
    added_ms: dict[str, dict[str, Spread]]  # model -> system -> mean latency at one client, less the limit's
