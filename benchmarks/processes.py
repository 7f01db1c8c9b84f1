"""The processes of a server under measurement: their CPU time and memory; pause, resume and stop for all of them.

In: a command. Out: a `Group` of the process and its descendants. Descendants are found by their parents and by an
environment variable that they inherit, so daemons that detach themselves (Ray, circus) are found too. Linux only: it
reads /proc. It sends signals only to processes of the group.
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

_GROUP_VARIABLE = "BENCHMARK_GROUP"
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_REST_SECONDS = 0.5  # a server that was idle for this time has finished the work of the last turn
_IDLE_CPU_SHARE = 0.2  # of one core; daemons always use some CPU time
_MOST_REST_SECONDS = 20.0
_TERM_SECONDS = 15.0


class DidNotStart(RuntimeError):
    """A server ended or did not answer in time. The message ends with the last lines of its log."""


@dataclass(frozen=True)
class Memory:
    """Memory of one process. `pss_mib` divides shared pages among the processes that use them, `rss_mib` does not.

    `own_mib` is the part of `pss_mib` that lies in no file. Only that tells growth: the pages of libraries are divided
    anew whenever any program of the machine that has them starts or ends.
    `name` is the name of the program, and for a Python process that of the module or file it runs. `descriptors` and
    `threads` are counts.
    """

    pid: int
    name: str
    pss_mib: float
    rss_mib: float
    own_mib: float = 0.0
    descriptors: int = 0
    threads: int = 0


@dataclass(frozen=True)
class _Stat:
    parent: int
    started_ticks: int
    cpu_ticks: int  # of the process and of its children that have ended


class Group:
    """A started command and all its descendants. Use as a context manager; leaving it ends them all."""

    def __init__(self, command: Sequence[str], *, environment: Mapping[str, str], log: Path, cwd: Path) -> None:
        self._tag = f"{_GROUP_VARIABLE}={uuid.uuid4().hex}"
        name, _, value = self._tag.partition("=")
        self._seen: set[tuple[int, int]] = set()  # (pid, start time), because process numbers are reused
        self.log = log
        with log.open("wb") as stream:
            self._process = subprocess.Popen(
                command,
                env={**environment, name: value},
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                start_new_session=True,  # Ctrl-C goes to the benchmark only, which then ends its servers
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """The number of the command's process, which leads a process group of its own."""
        return self._process.pid

    def wait(self, limit_seconds: float) -> int:
        """Wait until the command has ended: its exit status. -1: it did not end in time."""
        try:
            return self._process.wait(limit_seconds)
        except subprocess.TimeoutExpired:
            return -1

    def check_alive(self) -> None:
        """Raises `DidNotStart` if the command has ended."""
        if (status := self._process.poll()) is not None:
            raise DidNotStart(f"it ended with status {status}\n{self.log_tail()}")

    def log_tail(self, lines: int = 25) -> str:
        """The last lines of its output."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def members(self) -> list[int]:
        """Process numbers of the command and its descendants that are alive."""
        stats = _all_stats()
        tag = self._tag.encode()
        found = {
            pid
            for pid, stat in stats.items()
            if pid == self._process.pid or (pid, stat.started_ticks) in self._seen or tag in _environment(pid)
        }
        grown = True
        while grown:
            children = {pid for pid, stat in stats.items() if stat.parent in found} - found
            grown = bool(children)
            found |= children
        self._seen |= {(pid, stats[pid].started_ticks) for pid in found if pid in stats}
        return sorted(found & stats.keys())

    def cpu_seconds(self) -> float:
        """CPU seconds of all processes so far, ended processes included."""
        stats = (_stat(pid) for pid in self.members())
        return sum(stat.cpu_ticks for stat in stats if stat is not None) / _TICKS_PER_SECOND

    def memory(self) -> list[Memory]:
        """Memory of each process now."""
        return [memory for pid in self.members() if (memory := _memory(pid)) is not None]

    def pause(self) -> None:
        """Stop all processes (SIGSTOP), so that this server uses no CPU time while others are measured.

        It waits first until the server has finished the work of the last turn. Work that is paused midway would look
        like a hung worker after `resume`.
        """
        give_up_at = time.monotonic() + _MOST_REST_SECONDS
        busy = True
        while busy and time.monotonic() < give_up_at:
            before = self.cpu_seconds()
            time.sleep(_REST_SECONDS)
            # On a machine with too much work, a busy server gets little CPU time, but a thread of it waits for a core.
            used = self.cpu_seconds() - before
            busy = used > _IDLE_CPU_SHARE * _REST_SECONDS or any(map(_is_runnable, self.members()))
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let all processes continue (SIGCONT)."""
        self._signal(signal.SIGCONT)

    def stop(self) -> None:
        """End all processes: SIGTERM to the command first, then SIGKILL to all that remain."""
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
    pids = (int(name) for name in os.listdir("/proc") if name.isdecimal())  # noqa: PTH208 - only the names are needed
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


def _is_runnable(pid: int) -> bool:
    """Whether a thread of the process runs or waits for a core."""
    for stat in Path(f"/proc/{pid}/task").glob("*/stat"):
        with contextlib.suppress(OSError):  # the thread has ended
            if stat.read_text().rpartition(")")[2].split()[0] == "R":
                return True
    return False


def _environment(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""


def program(command: Sequence[str]) -> str:
    """Name of the program that a command line runs, and for Python that of the module or file."""
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
        descriptors, threads = (sum(1 for _ in Path(f"/proc/{pid}/{what}").iterdir()) for what in ("fd", "task"))
        command = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return None
    if stat is None:
        return None
    kib = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in rollup.splitlines()[1:])}
    return Memory(
        pid=pid,
        name=program(command),
        pss_mib=round(kib.get("Pss", 0) / 1024, 2),
        own_mib=round((kib.get("Pss_Anon", 0) + kib.get("Pss_Shmem", 0)) / 1024, 2),
        rss_mib=round(resident_pages * _PAGE_BYTES / 2**20, 2),
        descriptors=descriptors,
        threads=threads,
    )
