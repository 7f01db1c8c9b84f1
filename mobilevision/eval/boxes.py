"""True and found boxes of one picture: which belong together. For the confusion matrix and for the worst pictures.

The average precision is not computed here, but by pycocotools.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mobilevision.eval.answers import Found

CONFIDENT = 0.25  # boxes with a lower score are not counted here
SAME_PLACE = 0.5  # intersection over union from which two boxes are of one object


@dataclass(frozen=True, slots=True)
class Pairs:
    """Labels of true and found boxes: of those in one place, of the true ones left, and of the found ones left."""

    together: tuple[tuple[int, int], ...]
    missed: tuple[int, ...]
    extra: tuple[int, ...]

    @property
    def wrong(self) -> int:
        """Number of mistakes: a box with a wrong label is one."""
        return len(self.missed) + len(self.extra) + sum(truth != answer for truth, answer in self.together)


def pair(truth: Sequence[Mapping[str, Any]], found: Sequence[Found], label_of: Mapping[int, int]) -> Pairs:
    """Pair boxes by their place alone, best overlap first. `truth`: annotations; `label_of`: category to label.

    Crowds are no objects, and what is found inside them is not counted.
    """
    objects = [row for row in truth if not row["iscrowd"] and row["category_id"] in label_of]
    confident = [box for box in found if box.score >= CONFIDENT]
    here = _corners([(box.x, box.y, box.width, box.height) for box in confident])
    crowds = _corners([row["bbox"] for row in truth if row["iscrowd"]])
    true = _corners([row["bbox"] for row in objects])
    overlaps = _intersections(true, here)
    union = _areas(true)[:, None] + _areas(here)[None, :] - overlaps
    iou = np.divide(overlaps, union, out=np.zeros_like(overlaps), where=union > 0)
    together: dict[int, int] = {}
    taken: set[int] = set()
    rows, columns = np.nonzero(iou >= SAME_PLACE)
    for place in np.argsort(-iou[rows, columns], kind="stable").tolist():
        row, column = int(rows[place]), int(columns[place])
        if row not in together and column not in taken:
            together[row] = column
            taken.add(column)
    inside = _intersections(crowds, here).max(axis=0, initial=0.0) >= SAME_PLACE * np.maximum(_areas(here), 1e-9)
    return Pairs(
        tuple((label_of[objects[row]["category_id"]], confident[column].label) for row, column in together.items()),
        tuple(label_of[row["category_id"]] for index, row in enumerate(objects) if index not in together),
        tuple(box.label for index, box in enumerate(confident) if index not in taken and not inside[index]),
    )


def _corners(boxes: Sequence[Sequence[float]]) -> NDArray[np.float64]:
    """Left, top, right, bottom: float64 (n, 4)."""
    sides = np.array(boxes, np.float64).reshape(-1, 4)
    return np.concatenate([sides[:, :2], sides[:, :2] + sides[:, 2:]], axis=1)


def _areas(corners: NDArray[np.float64]) -> NDArray[np.float64]:
    """Areas (n) of boxes (n, 4)."""
    sides: NDArray[np.float64] = corners[:, 2:] - corners[:, :2]
    return sides[:, 0] * sides[:, 1]


def _intersections(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    """Areas (n, m) that boxes (n, 4) and (m, 4) share."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    sides: NDArray[np.float64] = np.clip(high - low, 0.0, None)
    return sides[..., 0] * sides[..., 1]
