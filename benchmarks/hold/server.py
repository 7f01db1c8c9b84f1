"""A real `mobilevision serve` in folders of its own, and what it holds: processes, descriptors, slots, folders."""

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.hold.toy import NAME
from benchmarks.machine import ROOT
from benchmarks.processes import DidNotStart, Group
from service.core.settings import child_environment

START_SECONDS = 180.0
_GATEWAY_ROLES = ("gateway", "replica")
_CONNECTIONS = re.compile(r"^mobilevision_worker_channels\{[^}]*\} (\S+)$", re.MULTILINE)
_BUSY_SLOTS = re.compile(r'^mobilevision_shm_slots\{[^}]*state="(?:used|quarantined)"[^}]*\} (\S+)$', re.MULTILINE)


@dataclass(frozen=True)
class Holdings:
    """What a server holds at one moment.

    `processes`: count by role. `descriptors`: of the gateway processes. `slots`: of shared memory, in use.
    `folders`: private folders of the server, in its run directory and on its memory file system. `connections`: workers
    that are connected to a gateway process.
    """

    processes: Counter[str]
    descriptors: int
    slots: int
    folders: int
    connections: int = 0


@dataclass(frozen=True)
class Leaks:
    """How much more a server holds than before. `processes` counts missing ones as well.

    `connections`: how many workers are not connected to a gateway process again.
    """

    processes: int
    descriptors: int
    slots: int
    folders: int
    connections: int = 0

    @property
    def none(self) -> bool:
        """Whether nothing leaked."""
        return not (self.processes or self.descriptors or self.slots or self.folders or self.connections)

    def __str__(self) -> str:
        parts = (("processes", self.processes), ("descriptors", self.descriptors), ("slots", self.slots))
        more = (("folders", self.folders), ("workers not connected", self.connections))
        found = [f"{count} {name}" for name, count in (*parts, *more) if count]
        return ", ".join(found) or "0"


def leaks(before: Holdings, after: Holdings) -> Leaks:
    """Compare two moments without load."""
    changed = (before.processes - after.processes) + (after.processes - before.processes)
    return Leaks(
        processes=changed.total(),
        descriptors=max(0, after.descriptors - before.descriptors),
        slots=after.slots,
        folders=max(0, after.folders - before.folders),
        connections=max(0, before.connections - after.connections),
    )


def role_of(command: Sequence[str]) -> str:
    """The role of a process of a server by its command line."""
    line = " ".join(command)
    if "process_guard" in line:
        return "guard"
    if "model_service_worker" in line:
        return "worker"
    if Path(command[0]).name == "java" if command else False:
        return "jvm"
    if "gateway-process" in line:
        return "replica"
    return "gateway" if " serve " in line else "other"


class HoldServer:
    """A started server. `archives`, `shm` and `run` are its folders."""

    def __init__(self, group: Group, folder: Path, archives: Path, shm: Path, run: Path) -> None:
        self.group, self.archives, self.shm, self.run = group, archives, shm, run
        self._ready = folder / "ready.json"
        self.grpc = ""
        self.http = ""

    def wait_until_ready(self) -> None:
        """Wait until the server answers. Raises `DidNotStart`."""
        give_up_at = time.monotonic() + START_SECONDS
        while not self._ready.exists():
            self.group.check_alive()
            if time.monotonic() > give_up_at:
                raise DidNotStart(f"not ready within {START_SECONDS:.0f} s\n{self.group.log_tail()}")
            time.sleep(0.05)
        addresses = json.loads(self._ready.read_text())
        self.grpc, self.http = addresses["grpc"], addresses["http"]

    @property
    def pid(self) -> int:
        """The number of its first process, which leads a process group."""
        return self.group.pid

    def wait(self, limit_seconds: float) -> int:
        """Wait until its first process has ended: its exit status. -1: it did not end in time."""
        return self.group.wait(limit_seconds)

    def everything(self) -> list[psutil.Process]:
        """All its processes that live now."""
        found = []
        for pid in self.group.members():
            with contextlib.suppress(psutil.NoSuchProcess):
                found.append(psutil.Process(pid))
        return found

    def processes(self, role: str) -> list[psutil.Process]:
        """Its living processes of a role, oldest first."""
        found = []
        for pid in self.group.members():
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(pid)
                if process.status() != psutil.STATUS_ZOMBIE and role_of(process.cmdline()) == role:
                    found.append((process.create_time(), pid, process))
        return [process for _, _, process in sorted(found, key=lambda one: one[:2])]

    def page(self) -> str:
        """The metrics page. Raises OSError."""
        with urllib.request.urlopen(f"http://{self.http}/metrics", timeout=10) as reply:
            return str(reply.read().decode())

    def holdings(self) -> Holdings:
        """What the server holds now. Raises OSError."""
        roles: Counter[str] = Counter()
        descriptors = 0
        for pid in self.group.members():
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(pid)
                role = role_of(process.cmdline())
                roles[role] += 1
                if role in _GATEWAY_ROLES:
                    descriptors += process.num_fds()
        page = self.page()
        slots = sum(float(value) for value in _BUSY_SLOTS.findall(page))
        connections = sum(float(value) for value in _CONNECTIONS.findall(page))
        folders = sum(1 for one in (*self.shm.iterdir(), *self.run.iterdir()) if one.is_dir())
        return Holdings(roles, descriptors, int(slots), folders, int(connections))

    def leaked_since(self, before: Holdings, within_seconds: float) -> Leaks:
        """What the server holds more than before, once it is at rest. It may take some time to get there."""
        give_up_at = time.monotonic() + within_seconds
        while True:
            try:
                found = leaks(before, self.holdings())
            except OSError:
                found = None
            if found is not None and (found.none or time.monotonic() > give_up_at):
                return found
            if time.monotonic() > give_up_at + within_seconds:
                return Leaks(before.processes.total(), 0, 0, 0)  # it has no metrics page: it is gone
            time.sleep(0.2)


@contextlib.contextmanager
def small_file_system(folder: Path, megabytes: int) -> Iterator[bool]:
    """A memory file system of a few MiB at a folder. False where this user may not mount one; it is plain then."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    mounted = os.geteuid() == 0 and subprocess.run(command, check=False, capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=False)


@contextlib.contextmanager
def serving(
    archives: Path, *, shm: Path, run: Path, models: Sequence[str] = (NAME,), **settings: str
) -> Iterator[HoldServer]:
    """Run models within the context, with default settings but for these. Raises `DidNotStart`."""
    with tempfile.TemporaryDirectory(prefix="hold-server-") as name:
        folder = Path(name)
        command = [sys.executable, "-m", "service", "serve", *models, "--archives", str(archives)]
        command += ["--grpc-port", "0", "--http-port", "0", "--ready-file", str(folder / "ready.json")]
        variables = {"SHM_DIR": str(shm), "RUN_DIR": str(run), "LOG_LEVEL": "warning", **settings}
        environment = child_environment(**{f"MOBILEVISION_{key}": value for key, value in variables.items()})
        with Group(command, environment=environment, log=folder / "server.log", cwd=ROOT) as group:
            server = HoldServer(group, folder, archives, shm, run)
            server.wait_until_ready()
            yield server
