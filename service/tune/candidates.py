"""The settings worth trying on a machine, and the settings file they are written to.

In: a machine. Out: `Candidate`s, and text that `mobilevision serve --config` reads. Pure.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from service.allocation import WORKER_BYTES, Machine

MAX_BATCHES = (1, 4, 16)
QUICK_MAX_BATCHES = (8,)
AUTO = "auto"


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to serve the model; the names are those of the settings."""

    workers_per_model: int
    worker_threads: int
    max_batch: int
    dtype: str = AUTO

    def settings(self) -> dict[str, int | str]:
        """Setting -> value."""
        return {
            "workers_per_model": self.workers_per_model,
            "worker_threads": self.worker_threads,
            "max_batch": self.max_batch,
            "dtype": self.dtype,
        }


def shapes(machine: Machine) -> tuple[tuple[int, int], ...]:
    """Workers x threads that use the whole machine: most workers first, one worker last."""
    if machine.gpus:
        counts = {machine.gpus * each for each in (1, 2, 3)}
    else:
        room = max(1, machine.memory_bytes // WORKER_BYTES)
        counts = {max(1, min(machine.cores // share, room)) for share in (1, 2, 4, machine.cores)}
    return tuple((workers, max(1, machine.cores // workers)) for workers in sorted(counts, reverse=True))


def first(machine: Machine, *, card_max_batch: int, quick: bool) -> tuple[Candidate, ...]:
    """What is tried on every machine: each shape at each batch limit the archive takes."""
    batches = sorted({min(batch, card_max_batch) for batch in (QUICK_MAX_BATCHES if quick else MAX_BATCHES)})
    return tuple(Candidate(*shape, max_batch=batch) for shape in shapes(machine) for batch in batches)


def other_dtypes(best: Candidate, machine: Machine, *, has_bfloat16: bool, fast_bfloat16: bool) -> Iterator[Candidate]:
    """The best so far in the number types that `auto` did not choose and this hardware computes.

    `has_bfloat16`, `fast_bfloat16`: of the CPU, see `handlers.hardware`.
    """
    if machine.gpus:
        yield replace(best, dtype="bfloat16")
    elif has_bfloat16:
        yield replace(best, dtype="float32" if fast_bfloat16 else "bfloat16")


def settings_file(settings: Mapping[str, int | str | list[str]], comments: Iterable[str]) -> str:
    """TOML with comments on top."""
    # JSON's numbers, strings and lists of strings are TOML's.
    lines = [f"# {comment}" for comment in comments]
    return "\n".join([*lines, *(f"{name} = {json.dumps(value)}" for name, value in settings.items())]) + "\n"
