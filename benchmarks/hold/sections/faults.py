"""Faults under load: one table. Honest calls go on at a constant rate while each fault is put into a real server."""

import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import psutil

from benchmarks.hold import faults, toy
from benchmarks.hold.calls import Call, Kind, Load, bad_seconds, counts, wait_for_recovery
from benchmarks.hold.certificates import Authority
from benchmarks.hold.faults import Fault
from benchmarks.hold.injections import credentials_of
from benchmarks.hold.section import Budget, Row, Section
from benchmarks.hold.server import Holdings, HoldServer, Leaks, serving, small_file_system
from benchmarks.hold.stopping import stop_repeatedly
from benchmarks.machine import ROOT

CALLS_PER_SECOND = 40.0
DEADLINE_SECONDS = 2.0
QUIET_SECONDS = 2.0  # a server has recovered when all calls were right for so long
LIMIT_SECONDS = 60.0  # no fault is waited for longer
REST_SECONDS = 20.0  # within which the server must hold again what it held before
SHM_MEGABYTES = 3  # less than the pictures of a burst take
RUN_MEGABYTES = 64
SHORT_STOPS, FULL_STOPS = 4, 50  # SIGTERMs to the process, and as many to its group
COLUMNS = (
    "fault",
    "sent",
    "right",
    "typed errors",
    "cut",
    "lost",
    "wrong",
    "callers noticed",
    "recovered after",
    "leaks",
    "held",
)
_TEXT = """\
A real server with default settings runs a toy model whose answers are exact: sums of integers. An honest client sends
{rate:.0f} calls per second (open loop), each with a deadline of {deadline:.0f} s, before, during and after every
fault. *right*: the answer is the right one, bit by bit. *typed errors*: errors with a reason of ours, and calls that
ended at their deadline. *cut*: the connection ended under a call; that is allowed only where the gateway process
itself is killed. *lost*: any other error, or no end at all. *callers noticed*: seconds from the first to the last call
that did not get its right answer; the bound is {bound:.0f} s. *recovered after*: seconds from the fault (from its end,
for faults that last) to the last such call, and for a hung process until it was ended; the bound is {bound:.0f} s, and
{jvm:.0f} s for a hung JVM, while connected workers serve on. *leaks*: processes missing or left over, descriptors of
the gateway, slots of shared memory, private folders, and workers without a connection, compared with before the fault.
Rows *by test* are proven by the named tests, which are run here."""
# Faults that cannot be put into a real server from outside. Their tests are run as a row.
BY_TEST = (
    ("clock stepped: no wait depends on the wall clock (by test)", "tests/architecture/test_clock.py"),
    (
        "worker breaks the protocol on its connection (by test)",
        "tests/unit/service/transport/test_worker_connections.py",
    ),
)


@dataclass(frozen=True)
class Measured:
    """What was measured of one fault. `recovered_seconds` is None if it took longer than the limit.

    `noticed_seconds`: from the first honest call that was not right to the last one. `causes`: calls that were not
    right, by their reason or status.
    """

    name: str
    by_kind: Counter[Kind]
    recovered_seconds: float | None
    bound_seconds: float
    leaked: Leaks
    cuts_allowed: bool = False
    problem: str = ""
    noticed_seconds: float = 0.0
    causes: Mapping[str, int] = field(default_factory=dict)

    @property
    def held(self) -> bool:
        """Whether nothing was lost, wrong or leaked, and the server recovered in time."""
        cut = 0 if self.cuts_allowed else self.by_kind[Kind.CUT]
        bad = self.by_kind[Kind.LOST] + self.by_kind[Kind.WRONG] + self.by_kind[Kind.NOT_SENT] + cut
        in_time = self.recovered_seconds is not None and self.recovered_seconds <= self.bound_seconds
        in_time = in_time and self.noticed_seconds <= faults.BOUND_SECONDS
        return not bad and in_time and self.leaked.none and not self.problem

    def row(self) -> Row:
        """The line of the table."""
        took = f"> {LIMIT_SECONDS:.0f} s" if self.recovered_seconds is None else f"{self.recovered_seconds:.1f} s"
        kinds = self.by_kind
        numbers = (kinds.total(), kinds[Kind.RIGHT], kinds[Kind.TYPED], kinds[Kind.CUT])
        lost = kinds[Kind.LOST] + kinds[Kind.NOT_SENT]
        name = f"{self.name}{f' ({self.problem})' if self.problem else ''}"
        noticed = f"{self.noticed_seconds:.1f} s"
        cells = (name, *map(str, (*numbers, lost, kinds[Kind.WRONG])), noticed, took, str(self.leaked))
        return Row((*cells, "yes" if self.held else "NO"), self.held)


def measure(fault: Fault, server: HoldServer, before: Holdings, load: Callable[[], Load]) -> Measured:
    """Put a fault into a server under load, and count until it has recovered and holds again what it held `before`."""
    with load() as calls:
        time.sleep(0.5)
        fault_at = time.monotonic()
        injected = fault.inject(server)
        if fault.lasts_seconds:
            time.sleep(fault.lasts_seconds)
            injected.undo()
            fault_at = time.monotonic()
        replaced_seconds = _wait_until_ended(injected.replaces, fault_at)
        recovered = wait_for_recovery(calls, fault_at, quiet_seconds=QUIET_SECONDS, limit_seconds=LIMIT_SECONDS)
        if not fault.lasts_seconds:
            injected.undo()
    by_kind = counts([*calls.calls, *injected.calls])
    leaked = server.leaked_since(before, REST_SECONDS)
    problem = injected.problem or _why([*calls.calls, *injected.calls], fault)
    if replaced_seconds is None:
        problem = "the hung process was not ended"
    elif recovered is not None:
        recovered = max(
            recovered, replaced_seconds
        )  # callers may never have noticed, but a part was missing until then
    name = f"{fault.name}{injected.note}"
    causes = Counter(one.why for one in calls.calls if one.kind is not Kind.RIGHT)
    noticed_seconds = bad_seconds(calls.since(fault_at))
    return Measured(name, by_kind, recovered, fault.bound_seconds, leaked, fault.cuts, problem, noticed_seconds, causes)


def _wait_until_ended(process: psutil.Process | None, since_at: float) -> float | None:
    """Seconds until a hung process has ended; 0 without one. None: it lives after the limit, and may run on now."""
    if process is None:
        return 0.0
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() - since_at > LIMIT_SECONDS:
            process.resume()
            return None
        time.sleep(0.05)
    return time.monotonic() - since_at


def _why(calls: Iterable[Call], fault: Fault) -> str:
    """The most frequent cause of calls that may not happen; empty if there is none."""
    allowed = {Kind.RIGHT, Kind.TYPED} | ({Kind.CUT} if fault.cuts else set())
    found = Counter(f"{one.kind}: {one.why}" for one in calls if one.kind not in allowed)
    return found.most_common(1)[0][0] if found else ""


def _causes(causes: Mapping[str, int]) -> str:
    text = ", ".join(f"{count} {cause}" for cause, count in sorted(causes.items()))
    return f" ({text})" if text else ""


def run(budget: Budget) -> Section:
    """Measure every fault, one after another, and SIGTERM under full load."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="hold-") as name:
        folder = Path(name)
        rows += _one_gateway(folder, budget)
        rows += _two_gateways(folder, budget)
        rows += _stops(folder, budget)
    with ThreadPoolExecutor(len(BY_TEST)) as pool:
        rows += pool.map(lambda one: _by_test(one[0], one[1], budget), BY_TEST)
    text = _TEXT.format(
        rate=CALLS_PER_SECOND, deadline=DEADLINE_SECONDS, bound=faults.BOUND_SECONDS, jvm=faults.HUNG_JVM_SECONDS
    )
    return Section("faults", "Faults under load", text, COLUMNS, tuple(rows))


def _one_gateway(folder: Path, budget: Budget) -> list[Row]:
    archives = toy.build_versions(folder / "one")
    with (
        small_file_system(folder / "shm", SHM_MEGABYTES) as shm_is_small,
        small_file_system(folder / "run", RUN_MEGABYTES) as run_is_small,
        serving(
            archives, shm=folder / "shm", run=folder / "run", WORKERS_PER_MODEL="2", GATEWAY_PROCESSES="1"
        ) as server,
    ):
        return _measured(faults.of_one_gateway(small_file_systems=shm_is_small and run_is_small), server, None, budget)


def _two_gateways(folder: Path, budget: Budget) -> list[Row]:
    archives = toy.build_versions(folder / "two")
    for one in ("shm2", "run2", "tls"):
        (folder / one).mkdir()
    authority = Authority(folder / "tls")
    certificate, key = folder / "tls" / "server.pem", folder / "tls" / "server.key"
    for path, content in zip((certificate, key), authority.sign(1), strict=True):
        path.write_bytes(content)
    settings = {"WORKERS_PER_MODEL": "1", "GATEWAY_PROCESSES": "2"}
    with serving(archives, shm=folder / "shm2", run=folder / "run2", **settings) as server:
        rows = _measured(faults.of_two_gateways(), server, None, budget)
    settings |= {"TLS_CERTIFICATE": str(certificate), "TLS_KEY": str(key)}
    with serving(archives, shm=folder / "shm2", run=folder / "run2", **settings) as server:
        renewal = faults.renew_certificate(authority, certificate, key)
        return rows + _measured((renewal,), server, credentials_of(authority), budget)


def _measured(
    chosen: Iterable[Fault], server: HoldServer, credentials: grpc.ChannelCredentials | None, budget: Budget
) -> list[Row]:
    questions = toy.questions(64)

    def load() -> Load:
        return Load(
            server.grpc,
            questions,
            per_second=CALLS_PER_SECOND,
            deadline_seconds=DEADLINE_SECONDS,
            credentials=credentials,
        )

    with load():
        time.sleep(2.0)  # connections, threads and shared memory that the first calls make
    time.sleep(1.0)
    before = server.holdings()
    rows = []
    for fault in chosen:
        budget.progress(fault.name)
        measured = measure(fault, server, before, load)
        rows.append(measured.row())
        budget.progress(f"{fault.name}: {' | '.join(rows[-1].cells[1:])}{_causes(measured.causes)}")
    return rows


def _stops(folder: Path, budget: Budget) -> list[Row]:
    times = FULL_STOPS if budget.full else SHORT_STOPS
    return [one.row() for one in stop_repeatedly(folder, times, budget.progress)]


def _by_test(name: str, path: str, budget: Budget) -> Row:
    budget.progress(name)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", path]
    done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True)
    passed = done.returncode == 0
    dashes = ("–",) * (len(COLUMNS) - 3)
    return Row((f"{name}: `{path}`", *dashes, "–", "yes" if passed else "NO"), passed)
