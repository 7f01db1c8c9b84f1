"""The committed demo checkpoints: where they are, how they are written, and a check of their digests.

In and out: a state dict in float32 under the network's own names. On disk, kernels and matrices are float16,
and the rest (norms, biases: a hundredth of the bytes) is float32. `records.json` beside the files holds the digest of
each file and how it was made. Reading checks the digest.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors.torch import save_file
from torch import Tensor

from model_store import labels, zoo
from model_store.weights import container
from model_store.weights import load as weights
from model_store.weights.errors import CheckpointError

FOLDER = zoo.COMMITTED
SOURCE = "trained by model_store/demo on pictures it draws"
MAX_BYTES = 4_000_000  # of one file


class Record(BaseModel):
    """How one checkpoint was made, and what it scored.

    `digest` is `weights.digest` of the tensors as stored. `starts_from` names the run whose weights this run began
    with; `wall_seconds` does not include that run. `scores` are in 0..1, of this checkpoint as stored, on the first
    `scored_pictures` pictures of the held-out split of seed `scored_seed`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    command: str
    starts_from: str | None
    training_seed: int
    steps: int
    pictures_shown: int
    wall_seconds: float
    machine: str
    torch: str
    scored_seed: int
    scored_pictures: int
    scores: dict[str, float]


def records(folder: Path = FOLDER) -> dict[str, Record]:
    """The record of each checkpoint, by the name of its model."""
    path = folder / "records.json"
    if not path.is_file():
        return {}
    return {name: Record.model_validate(record) for name, record in json.loads(path.read_bytes()).items()}


def read(name: str, folder: Path = FOLDER) -> dict[str, Tensor]:
    """Read a committed checkpoint. Raises `CheckpointError` where it is missing, or is not the recorded one."""
    path = folder / f"{name}.safetensors"
    state = container.read(path).state
    record = records(folder).get(name)
    if record is None or weights.digest(state) != record.digest:
        raise CheckpointError(f"{path}: not the checkpoint that records.json describes; restore it from git")
    return {key: value.float() for key, value in state.items()}


def stored(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict as it is written to disk: kernels and matrices float16, the rest float32, no counters."""
    return {
        name: value.to(torch.float16 if value.dim() > 1 else torch.float32).contiguous()
        for name, value in sorted(state.items())
        if value.is_floating_point()
    }


def write(name: str, state: Mapping[str, Tensor], record: Record, folder: Path = FOLDER) -> Path:
    """Write a checkpoint (as `stored` returns it) and its record, each replaced atomically; the other records stay.

    Raises `ValueError` for a file above `MAX_BYTES`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.safetensors"
    unfinished = path.with_suffix(".part")
    save_file(dict(state), unfinished)
    unfinished.chmod(0o644)  # safetensors leaves it to the owner alone
    if unfinished.stat().st_size > MAX_BYTES:
        unfinished.unlink()
        raise ValueError(f"{name} takes more than {MAX_BYTES} bytes; a demo checkpoint has to fit a repository")
    unfinished.replace(path)
    listed = {key: value.model_dump() for key, value in sorted((records(folder) | {name: record}).items())}
    unfinished = folder / "records.part"
    unfinished.write_text(json.dumps(listed, indent=2) + "\n")
    unfinished.replace(folder / "records.json")
    (folder / "README.md").write_text(readme(records(folder)))
    return path


_README = """# Demo checkpoints

Small MobileViT-XXS models, trained by this project on pictures it draws itself (`model_store/demo`): no download, no
data of others; Apache-2.0 like the code. They know {labels}, and no other labels.
Kernels and matrices are float16, norms and biases float32. Written by `make demo-train`, which draws the same pictures
and takes the same steps; on another processor or torch the sums differ in their last bits, and so the weights in more.

Scores are of the stored weights, loaded as float32 and run by the exported module, on pictures of a split and a seed
that no training uses, as JPEG of 240 to 640 pixels a side. `records.json` has the same in full, with the digests.

| model | steps x pictures | seconds | machine | starts from | held-out pictures (seed) | scores |
|---|---|---|---|---|---|---|
{rows}
"""


def readme(known: Mapping[str, Record]) -> str:
    """Write the page that stands beside the checkpoints."""
    rows = [
        f"| {name} | {record.steps} x {record.pictures_shown // record.steps} | {record.wall_seconds:g} "
        f"| {record.machine} | {record.starts_from or 'nothing'} | {record.scored_pictures} ({record.scored_seed}) "
        f"| {', '.join(f'{metric} {score:.4f}' for metric, score in record.scores.items())} |"
        for name, record in sorted(known.items())
    ]
    return _README.format(labels=", ".join(labels.read("demo_shapes")), rows="\n".join(rows))
