"""The unpacked archive as a worker sees it: what running needs of its card, and its verified module file.

In: the folder that TorchServe unpacked an archive to. Out: a `ModuleSpec` and the path of a module whose bytes are
those of the card. It does not load the module. pydantic stays out of the worker, so the card is read by hand.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from handlers.contract.archive_file import CARD_ENTRY, MODULE_ENTRY
from handlers.errors import RuntimeLoadError


@dataclass(frozen=True)
class TensorSpec:
    """One result tensor as the card declares it; `shape` leaves out N."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class ModuleSpec:
    """The part of the model card that running needs.

    `bfloat16_agreement`: share of answers that bfloat16 does not change. None: not measured, because the module runs in
    float32 only.
    """

    height_px: int
    width_px: int
    max_batch: int
    outputs: tuple[TensorSpec, ...]
    module_sha256: str
    task: str = ""
    bfloat16_agreement: float | None = None

    @classmethod
    def read(cls, directory: Path) -> "ModuleSpec":
        """Read the card of the archive. Raises `RuntimeLoadError` naming the file."""
        path = directory / CARD_ENTRY
        try:
            card = json.loads(path.read_bytes())
            return cls(
                height_px=int(card["input"]["height"]),
                width_px=int(card["input"]["width"]),
                max_batch=int(card["max_batch"]),
                outputs=tuple(TensorSpec(o["name"], o["dtype"], tuple(o["shape"])) for o in card["outputs"]),
                module_sha256=card["module_sha256"],
                task=str(card.get("task", "")),
                bfloat16_agreement=None if card.get("bfloat16") is None else float(card["bfloat16"]["agreement"]),
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise RuntimeLoadError(f"{path} is not a model card this worker can read: {error!r}") from error


def verified_module(directory: Path, spec: ModuleSpec) -> Path:
    """The module file of the archive. Raises `RuntimeLoadError` where its bytes are not those of the card."""
    path = directory / MODULE_ENTRY
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise RuntimeLoadError(f"the archive has no readable {MODULE_ENTRY}: {error}") from error
    if digest != spec.module_sha256:
        raise RuntimeLoadError(
            f"{MODULE_ENTRY} has sha256 {digest}, its card says {spec.module_sha256}: "
            "the archive was altered or damaged; build it again"
        )
    return path
