"""Runs a target in processes that may die, and counts: inputs, crashes, hangs, the slowest input, memory.

A process that dies or hangs is counted, its input is kept under build/fuzz, and another process goes on.
"""

import hashlib
import json
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.hold.fuzz.journal import Journal
from benchmarks.hold.fuzz.target import Target

FOLDER = Path("build/fuzz")
_POLL_SECONDS = 0.2
_START_SECONDS = 120.0  # imports, seeds
_MOST_DEATHS = 20  # of processes, then the target is given up
_COVERAGE = re.compile(rb"cov: (\d+)")


@dataclass(slots=True)
class Outcome:
    """What came of one target. `crashes` and `hangs` say what happened, each with the name of the kept input."""

    inputs: int = 0
    refused: int = 0
    crashes: list[str] = field(default_factory=list)
    hangs: list[str] = field(default_factory=list)
    slowest_seconds: float = 0.0
    grown_bytes: int = 0
    coverage: int | None = None  # edges of Python code; None: mutation without coverage

    def held(self, target: Target) -> bool:
        """Whether nothing crashed or hung, and the memory stayed within the budget."""
        return self.inputs > 0 and not self.crashes and not self.hangs and self.grown_bytes <= target.memory_bytes


def fuzz(target: Target, seconds: float, seed: int = 0, folder: Path = FOLDER) -> Outcome:
    """Fuzz for about `seconds`. What crashes is kept in `folder`/NAME/crashes."""
    place = folder / target.name
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    outcome = Outcome()
    ends_at = time.monotonic() + seconds
    deaths = 0
    while (left := ends_at - time.monotonic()) > 0 and deaths < _MOST_DEATHS:
        if not _one_process(target, place, outcome, seed + deaths, left):
            break
        deaths += 1
    return outcome


def _one_process(target: Target, place: Path, outcome: Outcome, seed: int, seconds: float) -> bool:
    """Run one process. Returns whether it died or hung over an input, so that another one goes on."""
    journal = Journal(place / "journal", target.longest_bytes, create=True)
    (place / "result.json").unlink(missing_ok=True)
    arguments = [
        target.name,
        str(place),
        str(seed),
        str(seconds),
        str(outcome.inputs if outcome.inputs < 10_000 else 0),
    ]
    hung = False
    with (place / "log").open("ab") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.hold.fuzz.child", *arguments], stdout=log, stderr=subprocess.STDOUT
        )
        try:
            give_up_at = time.monotonic() + seconds + _START_SECONDS
            while child.poll() is None:
                time.sleep(_POLL_SECONDS)
                _, began_at, _, _ = journal.read()
                hung = bool(began_at) and time.monotonic() - began_at > target.hang_seconds
                if hung or time.monotonic() > give_up_at:
                    break
        finally:
            child.kill()
            code = child.wait()
    inputs, began_at, slowest, content = journal.read()
    outcome.inputs += inputs
    outcome.slowest_seconds = max(outcome.slowest_seconds, slowest)
    if (place / "result.json").exists():
        result = json.loads((place / "result.json").read_text())
        outcome.refused += result["refused"]
        outcome.crashes += result["crashes"]
        outcome.grown_bytes = max(outcome.grown_bytes, result["grown_bytes"])
    found = _COVERAGE.findall((place / "log").read_bytes())
    if found:
        outcome.coverage = max(outcome.coverage or 0, *map(int, found))
    if hung:
        outcome.hangs.append(f"over {target.hang_seconds} s ({_kept(place, content)})")
    elif began_at and code:
        outcome.crashes.append(f"the process ended with code {code} ({_kept(place, content)})")
    elif code:
        outcome.crashes.append(f"the process ended with code {code} between inputs; see {place / 'log'}")
    return inputs > 0 and (hung or bool(code))


def _kept(place: Path, content: bytes) -> str:
    (place / "crashes").mkdir(exist_ok=True)
    name = hashlib.sha256(content).hexdigest()[:12]
    (place / "crashes" / name).write_bytes(content)
    return name
