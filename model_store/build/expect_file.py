"""One's own answer to one picture, as a file: scores, boxes or a class map in, an `Expected` out.

| task | file |
|---|---|
| classify | JSON or `.npy`: one number per label, in class order; or JSON `{label: number}`. Logits or probabilities |
| detect | JSON `{"boxes": [[x0, y0, x1, y1]], "scores": [], "labels": []}`, in pixels of the upright picture |
| segment | PNG (palette or grey) or `.npy` with the class of each pixel; or `.npy` [K, h, w] with logits |

A label is its name or its number. Whatever is wrong with a file is an `ExportError` of one line.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from handlers.contract.card import Card, Task
from model_store.build.errors import ExportError

MAX_BYTES = 2**28
PROBABILITIES_SUM = 1e-3  # how far probabilities may sum to another number than 1


@dataclass(frozen=True)
class Boxes:
    """Boxes float64 [D, 4] in pixels of the upright picture, scores float64 [D], labels int64 [D]."""

    boxes: NDArray[np.float64]
    scores: NDArray[np.float64]
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class Expected:
    """One's own answer: one of the four. `scores` are [K], `logits` [K, h, w], `class_map` [H, W]."""

    scores: NDArray[np.float64] | None = None
    boxes: Boxes | None = None
    class_map: NDArray[np.int64] | None = None
    logits: NDArray[np.float64] | None = None

    @property
    def are_probabilities(self) -> bool:
        """Whether the scores are probabilities, not logits."""
        if self.scores is None or len(self.scores) == 1:
            return False
        return bool(self.scores.min() >= 0) and abs(float(self.scores.sum()) - 1) <= PROBABILITIES_SUM


def read(path: Path, card: Card) -> Expected:
    """Read the answer for a model. Raises `ExportError`."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ExportError(f"{path}: over {MAX_BYTES // 2**20} MiB; is it an answer to one picture?")
        content = _content(path)
        if card.task is Task.CLASSIFY:
            expected = Expected(scores=_scores(content, card))
        elif card.task is Task.DETECT:
            expected = Expected(boxes=_boxes(content, card))
        else:
            expected = _map(content, card)
    except (OSError, ValueError, TypeError, KeyError) as error:
        reason = f"has no {error}" if isinstance(error, KeyError) else str(error).partition("\n")[0]
        raise ExportError(f"{path}: not an answer of a model that can {card.task}: {reason}") from error
    return expected


def _content(path: Path) -> Any:
    if path.suffix == ".npy":
        return np.load(path, allow_pickle=False)
    if path.suffix == ".json":
        return json.loads(path.read_text(encoding="utf-8-sig"))
    with Image.open(path) as image:
        return np.asarray(image if image.mode in {"P", "L", "I", "I;16"} else image.convert("L"))


def _scores(content: Any, card: Card) -> NDArray[np.float64]:
    if isinstance(content, dict):
        for key in ("logits", "probabilities", "scores"):
            if key in content and key not in card.labels:
                return _scores(content[key], card)
        missing = [name for name in card.labels if name not in content]
        if missing:
            raise ValueError(f"it has no number for the label {missing[0]!r}")
        content = [content[name] for name in card.labels]
    scores = np.asarray(content, dtype=np.float64)
    scores = scores.reshape(-1) if scores.ndim == 2 and len(scores) == 1 else scores  # a batch of one
    if scores.shape != (len(card.labels),):
        raise ValueError(f"it has numbers of shape {list(scores.shape)}, and the model has {len(card.labels)} labels")
    return _finite(scores)


def _boxes(content: Any, card: Card) -> Boxes:
    if isinstance(content, list):  # one object per box
        content = {
            "boxes": [each["box"] for each in content],
            "scores": [each["score"] for each in content],
            "labels": [each["label"] for each in content],
        }
    boxes = _finite(np.asarray(content["boxes"], dtype=np.float64))
    scores = _finite(np.asarray(content["scores"], dtype=np.float64))
    labels = np.asarray([_label(each, card) for each in content["labels"]], dtype=np.int64)
    if not len(boxes):
        raise ValueError("it has no boxes, so it proves nothing; take a picture with some")
    if boxes.shape != (len(labels), 4) or scores.shape != (len(labels),):
        raise ValueError("needs boxes [x0, y0, x1, y1], and one score and one label for each")
    return Boxes(boxes, scores, labels)


def _label(label: object, card: Card) -> int:
    if isinstance(label, str) and label in card.labels:
        return card.labels.index(label)
    if isinstance(label, int) and 0 <= label < len(card.labels):
        return label
    raise ValueError(f"{label!r} is no label of the model, nor the number of one (0 to {len(card.labels) - 1})")


def _map(content: Any, card: Card) -> Expected:
    values = np.asarray(content)
    if values.ndim == 4 and len(values) == 1:  # a batch of one
        values = values[0]
    if values.ndim == 3 and len(values) == len(card.labels):
        return Expected(logits=_finite(values.astype(np.float64)))
    if values.ndim != 2:
        raise ValueError(f"needs a class map [height, width] or logits [{len(card.labels)}, h, w]")
    return Expected(class_map=values.astype(np.int64))


def _finite(values: NDArray[np.float64]) -> NDArray[np.float64]:
    if not np.isfinite(values).all():
        raise ValueError("it holds NaN or infinity")
    return values
