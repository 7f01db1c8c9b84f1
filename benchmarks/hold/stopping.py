"""SIGTERM under full load, again and again: no call may be lost, and nothing may be left behind."""

import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from benchmarks.hold import toy
from benchmarks.hold.calls import Kind, Load, counts
from benchmarks.hold.section import Row
from benchmarks.hold.server import HoldServer, serving

CALLERS = 32  # none of them pauses: two full batches
LOAD_SECONDS = 1.5
BOUND_SECONDS = 10.0  # until the server has ended
LEFT_SECONDS = 5.0  # for processes that end with the server


@dataclass(frozen=True)
class Stop:
    """One SIGTERM: the calls by kind, seconds until the server had ended, its exit status, what was left.

    `why`: the most frequent cause of calls that were lost.
    """

    by_kind: Counter[Kind]
    seconds: float
    status: int
    processes_left: int
    folders_left: int
    why: str = ""


@dataclass
class Stops:
    """All stops of one kind."""

    name: str
    asked: int
    done: list[Stop] = field(default_factory=list)

    def row(self) -> Row:
        """The line of the table. `typed errors` has the calls that found no open port as well: nothing was sent."""
        kinds: Counter[Kind] = sum((one.by_kind for one in self.done), Counter())
        slowest = max((one.seconds for one in self.done), default=0.0)
        processes = sum(one.processes_left for one in self.done)
        folders = sum(one.folders_left for one in self.done)
        whole = sum(one.status == 0 and not one.by_kind[Kind.CUT] and not one.by_kind[Kind.LOST] for one in self.done)
        held = (
            whole == self.asked
            and not kinds[Kind.WRONG]
            and kinds[Kind.RIGHT] > 0
            and slowest <= BOUND_SECONDS
            and not processes
            and not folders
        )
        leaks = ", ".join(f"{n} {what}" for n, what in ((processes, "processes"), (folders, "folders")) if n) or "0"
        typed = kinds[Kind.TYPED] + kinds[Kind.NOT_SENT]
        numbers = (kinds.total(), kinds[Kind.RIGHT], typed, kinds[Kind.CUT], kinds[Kind.LOST], kinds[Kind.WRONG])
        why = next((f" ({one.why})" for one in self.done if one.why), "")
        cells = (
            f"{self.name}: {whole} of {self.asked} lost nothing{why}",
            *map(str, numbers),
            "–",
            f"{slowest:.1f} s",
            leaks,
        )
        return Row((*cells, "yes" if held else "NO"), held)


def to_process(server: HoldServer) -> None:
    """SIGTERM to the server's first process alone, as Kubernetes and systemd do."""
    os.kill(server.pid, signal.SIGTERM)


def to_group(server: HoldServer) -> None:
    """SIGTERM to the whole process group, as a shell does."""
    os.killpg(server.pid, signal.SIGTERM)


def stop_once(folder: Path, archives: Path, send: Callable[[HoldServer], None]) -> Stop:
    """Start a server, load it fully, stop it, and count."""
    shm, run = folder / "shm", folder / "run"
    for one in (shm, run):
        one.mkdir(parents=True, exist_ok=True)
    with serving(archives, shm=shm, run=run, WORKERS_PER_MODEL="1") as server:  # so that it starts soon
        processes = server.everything()
        with Load(server.grpc, toy.questions(64), per_second=0, deadline_seconds=10.0, callers=CALLERS) as load:
            time.sleep(LOAD_SECONDS)
            began_at = time.monotonic()
            send(server)
            status = server.wait(60.0)
            seconds = time.monotonic() - began_at
        _, left = psutil.wait_procs(processes, timeout=LEFT_SECONDS)
        folders_left = sum(1 for one in (*shm.iterdir(), *run.iterdir()) if one.is_dir())
        lost = Counter(one.why for one in load.calls if one.kind in (Kind.CUT, Kind.LOST))
        why = lost.most_common(1)[0][0] if lost else ""
        return Stop(counts(load.calls), seconds, status, len(left), folders_left, why)


def stop_repeatedly(folder: Path, times: int, progress: Callable[[str], None]) -> Iterable[Stops]:
    """Both kinds of stops, side by side, so that the short form stays short."""
    archives = folder / "stops"
    toy.build(archives)
    kinds = (
        (Stops("SIGTERM to the process", times), to_process),
        (Stops("SIGTERM to the process group", times), to_group),
    )

    def repeat(stops: Stops, send: Callable[[HoldServer], None]) -> Stops:
        for number in range(times):
            stops.done.append(stop_once(folder / stops.name, archives, send))
            progress(f"{stops.name}: {number + 1} of {times}")
        return stops

    with ThreadPoolExecutor(len(kinds)) as pool:
        return list(pool.map(lambda one: repeat(*one), kinds))
