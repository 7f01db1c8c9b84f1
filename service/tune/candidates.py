"""The settings worth trying on a machine, and the text of a settings file.

In: a machine. Out: `Candidate`s, and TOML that `mobilevision serve --config` reads. Nothing is read, written or
started.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from handlers.options import OPENVINO, TORCHSCRIPT
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
    engine: str = AUTO
    dtype: str = AUTO

    def settings(self) -> dict[str, int | str]:
        """The candidate as a mapping from setting to value."""
        return {
            "workers_per_model": self.workers_per_model,
            "worker_threads": self.worker_threads,
            "max_batch": self.max_batch,
            "engine": self.engine,
            "dtype": self.dtype,
        }

    def is_served_by(self, computed_by: str) -> bool:
        """Whether workers that compute with `computed_by`, as `engine/dtype`, do what this candidate asks for."""
        engine, _, dtype = computed_by.partition("/")
        return self.engine in {AUTO, engine} and self.dtype in {AUTO, dtype}


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


def other_engines(
    best: Candidate, computed_by: str, machine: Machine, *, has_openvino: bool, has_bfloat16: bool
) -> Iterator[Candidate]:
    """The best candidate so far, with the other engines and number types that could serve it.

    `computed_by` is what its workers computed with, as `engine/dtype`. `has_openvino`: OpenVINO is installed.
    `has_bfloat16`: the CPU computes in it, and the card allows it. On GPUs: TorchScript in bfloat16.
    """
    dtypes = ("bfloat16",) if machine.gpus else ("float32", *(("bfloat16",) if has_bfloat16 else ()))
    engines = (OPENVINO, TORCHSCRIPT) if has_openvino and not machine.gpus else (TORCHSCRIPT,)
    for engine in engines:
        for dtype in dtypes:
            if f"{engine}/{dtype}" != computed_by:
                yield replace(best, engine=engine, dtype=dtype)


def settings_file(settings: Mapping[str, int | str | list[str]], comments: Iterable[str]) -> str:
    """The settings as TOML, below the `comments`."""
    # Numbers, strings and lists of strings have the same text in JSON and TOML.
    lines = [f"# {comment}" for comment in comments]
    return "\n".join([*lines, *(f"{name} = {json.dumps(value)}" for name, value in settings.items())]) + "\n"
