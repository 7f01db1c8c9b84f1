"""The settings worth trying on a machine, and the text of a settings file.

In: a machine. Out: `Candidate`s, and TOML that `mobilevision serve --config` reads. Nothing is read, written or
started.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from service.core.allocation import WORKER_BYTES, Machine

MAX_BATCHES = (1, 4, 16)
QUICK_MAX_BATCHES = (8,)
AUTO = "auto"


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to serve the model. The fields are named as the settings are."""

    workers_per_model: int
    worker_threads: int
    max_batch: int
    dtype: str = AUTO

    def settings(self) -> dict[str, int | str]:
        """The candidate as a mapping from setting to value."""
        return {
            "workers_per_model": self.workers_per_model,
            "worker_threads": self.worker_threads,
            "max_batch": self.max_batch,
            "dtype": self.dtype,
        }


def shapes(machine: Machine) -> tuple[tuple[int, int], ...]:
    """Pairs (workers, threads per worker) that use the whole machine: most workers first, one worker last."""
    if machine.gpus:
        counts = {machine.gpus * each for each in (1, 2, 3)}
    else:
        room = max(1, machine.memory_bytes // WORKER_BYTES)
        counts = {max(1, min(machine.cores // share, room)) for share in (1, 2, 4, machine.cores)}
    return tuple((workers, max(1, machine.cores // workers)) for workers in sorted(counts, reverse=True))


def first(machine: Machine, *, card_max_batch: int, quick: bool) -> tuple[Candidate, ...]:
    """The candidates for every machine: each shape with each batch size, up to `card_max_batch`."""
    batches = sorted({min(batch, card_max_batch) for batch in (QUICK_MAX_BATCHES if quick else MAX_BATCHES)})
    return tuple(Candidate(*shape, max_batch=batch) for shape in shapes(machine) for batch in batches)


def other_dtypes(best: Candidate, machine: Machine, *, has_bfloat16: bool, fast_bfloat16: bool) -> Iterator[Candidate]:
    """The best candidate so far, with the number types that the hardware has and that `auto` did not choose.

    `has_bfloat16` and `fast_bfloat16` are about the CPU, see `handlers.hardware`.
    """
    if machine.gpus:
        yield replace(best, dtype="bfloat16")
    elif has_bfloat16:
        yield replace(best, dtype="float32" if fast_bfloat16 else "bfloat16")


def settings_file(settings: Mapping[str, int | str | list[str]], comments: Iterable[str]) -> str:
    """The settings as TOML, below the `comments`."""
    # Numbers, strings and lists of strings have the same text in JSON and TOML.
    lines = [f"# {comment}" for comment in comments]
    return "\n".join([*lines, *(f"{name} = {json.dumps(value)}" for name, value in settings.items())]) + "\n"
