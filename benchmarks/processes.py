"""A server under measurement: all its processes, their CPU time and memory, paused between turns, ended for sure.

In: a command. Out: a `Group`, found by an environment variable that all its descendants inherit and by descent, so that
daemons that detach themselves (Ray, circus) are counted as well. Linux only: reads /proc. It touches only processes
that it started.
"""

import contextlib
import os
import signal
import subprocess
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

_MARK = "BENCHMARK_GROUP"
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_REST_SECONDS = 0.5  # over which a server must be idle to be done with what was left behind
_IDLE_CPU_SHARE = 0.2  # of one core; daemons are never quite idle
_MOST_REST_SECONDS = 20.0
_TERM_SECONDS = 15.0


class DidNotStart(RuntimeError):
    """A server ended, or did not answer in time; the message ends with its log."""


@dataclass(frozen=True)
class Memory:
    """Memory of one process. Shared pages are split among their users in `pss_mib`, counted in full in `rss_mib`.

    `name` is the program's; of a Python process, that of the module or the file it runs.
    """

    pid: int
    name: str
    pss_mib: float
    rss_mib: float


@dataclass(frozen=True)
class _Stat:
    parent: int
    started_ticks: int
    cpu_ticks: int  # its own, and that of its children that have ended


class Group:
    """A started command and all its descendants. Use as a context manager: leaving ends them all."""

    def __init__(self, command: Sequence[str], *, environment: Mapping[str, str], log: Path, cwd: Path) -> None:
        self._mark = f"{_MARK}={uuid.uuid4().hex}"
        name, _, value = self._mark.partition("=")
        self._seen: set[tuple[int, int]] = set()  # (pid, start time): a number may be another process's later
        self.log = log
        with log.open("wb") as stream:
            self._process = subprocess.Popen(
                command,
                env={**environment, name: value},
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                start_new_session=True,  # Ctrl-C is for the benchmark, which then ends its servers in order
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def check_alive(self) -> None:
        """Raise `DidNotStart` when the command has ended."""
        if (status := self._process.poll()) is not None:
            raise DidNotStart(f"it ended with status {status}\n{self.log_tail()}")

    def log_tail(self, lines: int = 25) -> str:
        """The last lines of what it printed."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def members(self) -> list[int]:
        """Process numbers of the command and its descendants that are alive."""
        stats = _all_stats()
        mark = self._mark.encode()
        found = {
            pid
            for pid, stat in stats.items()
            if pid == self._process.pid or (pid, stat.started_ticks) in self._seen or mark in _environment(pid)
        }
        grown = True
        while grown:
            children = {pid for pid, stat in stats.items() if stat.parent in found} - found
            grown = bool(children)
            found |= children
        self._seen |= {(pid, stats[pid].started_ticks) for pid in found if pid in stats}
        return sorted(found & stats.keys())

    def cpu_seconds(self) -> float:
        """CPU time spent so far by all of them, ended ones included."""
        stats = (_stat(pid) for pid in self.members())
        return sum(stat.cpu_ticks for stat in stats if stat is not None) / _TICKS_PER_SECOND

    def memory(self) -> list[Memory]:
        """Memory of each of them, now."""
        return [memory for pid in self.members() if (memory := _memory(pid)) is not None]

    def pause(self) -> None:
        """Stop all of them, so that an idle server costs the others nothing.

        What a load generator left behind is done with first: work that was paused looks stuck when it goes on.
        """
        end = time.monotonic() + _MOST_REST_SECONDS
        busy = True
        while busy and time.monotonic() < end:
            before = self.cpu_seconds()
            time.sleep(_REST_SECONDS)
            busy = self.cpu_seconds() - before > _IDLE_CPU_SHARE * _REST_SECONDS
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let all of them go on."""
        self._signal(signal.SIGCONT)

    def stop(self) -> None:
        """End all of them: politely, then by force."""
        self.resume()
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_TERM_SECONDS)
        for _ in range(50):
            self._signal(signal.SIGKILL)
            self._process.poll()
            if not self.members():
                break
            time.sleep(0.1)
        self._process.wait()

    def _signal(self, number: signal.Signals) -> None:
        for pid in self.members():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


def _all_stats() -> dict[int, _Stat]:
    pids = (int(name) for name in os.listdir("/proc") if name.isdecimal())  # noqa: PTH208 - names are all it needs
    return {pid: stat for pid in pids if (stat := _stat(pid)) is not None}


def _stat(pid: int) -> _Stat | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # from field 3 of proc(5) on
    if fields[0] == "Z":
        return None
    cpu_ticks = sum(int(fields[index]) for index in (11, 12, 13, 14))
    return _Stat(parent=int(fields[1]), started_ticks=int(fields[19]), cpu_ticks=cpu_ticks)


def _environment(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""


def program(command: Sequence[str]) -> str:
    """What a command line runs: the program's name, for Python that of the module or the file."""
    name, *rest = command
    if Path(name).name.startswith("python"):
        for number, word in enumerate(rest):
            if word == "-c":
                break
            if word == "-m":
                return rest[number + 1]
            if not word.startswith("-"):
                return Path(word).name
    return Path(name).name


def _memory(pid: int) -> Memory | None:
    stat = _stat(pid)
    try:
        resident_pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        command = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return None
    if stat is None:
        return None
    pss_kib = next((int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:")), 0)
    return Memory(
        pid=pid,
        name=program(command),
        pss_mib=round(pss_kib / 1024, 2),
        rss_mib=round(resident_pages * _PAGE_BYTES / 2**20, 2),
    )
