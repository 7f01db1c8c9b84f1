"""One fuzzing process: `python -m benchmarks.hold.fuzz.child TARGET FOLDER SEED SECONDS FIRST`.

It tries the seeds from number FIRST on, then mutations until SECONDS have passed. With atheris (a build of it exists
for Linux on x86) the mutations are guided by the coverage of our code and of Pillow's Python code; without it they are
drawn. It writes `journal`, `crashes/` and `result.json` into FOLDER.
"""

import contextlib
import hashlib
import importlib
import json
import random
import resource
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.hold.fuzz import targets
from benchmarks.hold.fuzz.journal import Journal
from benchmarks.hold.fuzz.mutation import mutated
from benchmarks.hold.fuzz.target import MIB, Target

_SLACK_BYTES = 512 * MIB  # of address space: interpreter, corpus, threads


SEEDS_SHARE = 0.7  # of the time, at most; the rest is for mutations


def atheris_module() -> Any | None:
    """The atheris package, or None where it is not installed."""
    try:
        return importlib.import_module("atheris")
    except ImportError:
        return None


class Trier:
    """Tries inputs, one after another, and keeps what must not happen."""

    def __init__(self, target: Target, run: Callable[[bytes], None], folder: Path, journal: Journal) -> None:
        self._run = run
        self._expected = target.expected()
        self._folder = folder
        self._journal = journal
        self.refused = 0
        self.crashes: list[str] = []
        self.slowest: tuple[float, bytes] = (0.0, b"")

    def try_(self, content: bytes) -> None:
        """Try one input."""
        self._journal.begin(content)
        try:
            self._run(content)
        except self._expected:
            self.refused += 1
        except Exception as error:  # noqa: BLE001 - this is what is looked for
            self._keep(content, error)
        took = self._journal.end()
        if took > self.slowest[0]:
            self.slowest = (took, content)

    def _keep(self, content: bytes, error: Exception) -> None:
        last = traceback.extract_tb(error.__traceback__)[-1]
        kind = f"{type(error).__name__} at {Path(last.filename).name}:{last.lineno}: {str(error)[:200]}"
        name = hashlib.sha256(f"{type(error).__name__}{last.filename}{last.lineno}".encode()).hexdigest()[:12]
        crashes = self._folder / "crashes"
        crashes.mkdir(exist_ok=True)
        if not (crashes / name).exists():
            (crashes / name).write_bytes(content)
            (crashes / f"{name}.txt").write_text("".join(traceback.format_exception(error)))
            self.crashes.append(f"{kind} ({name})")


def _memory(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    return 0


def main() -> None:
    """Fuzz until the time is over, write the result, exit."""
    name, folder, seed, seconds, first = sys.argv[1], Path(sys.argv[2]), *map(float, sys.argv[3:6])
    target = targets.TARGETS[name]
    atheris = atheris_module()
    with atheris.instrument_imports(include=list(target.instrumented)) if atheris else contextlib.nullcontext():
        run = target.prepare()
    seeds = list(target.seeds())
    journal = Journal(folder / "journal", target.longest_bytes, create=False)
    trier = Trier(target, run, folder, journal)
    for content in seeds[:3]:  # what is allocated once is not counted
        with contextlib.suppress(Exception):
            run(content)
    before = _memory("VmRSS")
    limit = _memory("VmSize") + target.memory_bytes + _SLACK_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten

    began_at = time.monotonic()  # imports and the making of seeds do not count: they depend on the machine
    ends_at = began_at + seconds

    def write_result() -> None:
        result = {
            "refused": trier.refused,
            "crashes": trier.crashes,
            "slowest_seconds": trier.slowest[0],
            "grown_bytes": max(_memory("VmHWM") - before, 0),
            "guided": atheris is not None,
        }
        (folder / "slowest").write_bytes(trier.slowest[1])
        (folder / "result.json").write_text(json.dumps(result))

    for content in seeds[int(first) :]:
        if time.monotonic() > began_at + SEEDS_SHARE * seconds:
            break
        trier.try_(content)
    write_result()
    small = [content for content in seeds if len(content) <= target.longest_bytes] or [b""]
    if atheris:
        _guided(atheris, target, trier, small, folder, seed=int(seed), ends_at=ends_at, done=write_result)
    else:
        draw = random.Random(int(seed))  # noqa: S311 - not a secret
        while time.monotonic() < ends_at:
            trier.try_(mutated(draw.choice(small), draw.choice(small), draw, target.longest_bytes))
    write_result()


def _guided(
    atheris: Any,
    target: Target,
    trier: Trier,
    small: list[bytes],
    folder: Path,
    *,
    seed: int,
    ends_at: float,
    done: Callable[[], None],
) -> None:
    corpus = folder / "corpus"
    corpus.mkdir(exist_ok=True)
    for content in small:
        (corpus / hashlib.sha256(content).hexdigest()[:16]).write_bytes(content)

    def mutate(content: bytes, longest: int, number: int) -> bytes:
        draw = random.Random(number)  # noqa: S311 - not a secret
        if draw.random() < 0.5:
            return bytes(atheris.Mutate(content, longest))
        return mutated(content, draw.choice(small), draw, longest)

    written_at = time.monotonic()

    def one(content: bytes) -> None:
        nonlocal written_at
        trier.try_(content)
        if time.monotonic() - written_at > 1:  # libFuzzer ends the process itself
            done()
            written_at = time.monotonic()

    seconds = max(int(ends_at - time.monotonic()), 1)
    options = [f"-seed={seed + 1}", f"-max_total_time={seconds}", f"-max_len={target.longest_bytes}"]
    options += ["-rss_limit_mb=0", "-timeout=1000000", "-print_final_stats=1", f"-artifact_prefix={folder}/"]
    atheris.Setup(["fuzz", *options, str(corpus)], one, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
