"""How far two versions agree on one picture: the outputs of both in, a share of 0 to 1 out.

    top1      1 if the best class is the same, else 0
    box_f1    2 * pairs / boxes of both. A pair has the same label and an IoU of at least 0.5. A box is in one pair at
              most.
    mean_iou  mean over the classes that are in either class map of (pixels of the class in both / in either)

Outputs are compared in pixels of the picture. So versions may differ in input size, crop and resolution. These
functions never know which version is right. `service.serving.tasks` says which one belongs to which task.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from handlers.contract.frame import Array
from service.core.types import Geometry

SAME_BOX_IOU = 0.5
LEAST_SCORE = 0.3  # of a box that is compared: the default of `score_threshold` in requests

_CLASSES = 256  # class maps are uint8


@dataclass(frozen=True, slots=True)
class ModelOutput:
    """What one version predicts for a picture.

    `outputs`: tensors by output name, without the batch dimension. `geometry`: where the model input lies in the
    picture.
    """

    outputs: Mapping[str, Array]
    geometry: Geometry


def top1(one: ModelOutput, other: ModelOutput) -> float:
    """Compare `labels` int32 [K], best first: 1 if the best labels are equal, else 0."""
    return float(one.outputs["labels"][0] == other.outputs["labels"][0])


def box_f1(one: ModelOutput, other: ModelOutput) -> float:
    """Compare `boxes` float32 [M, 4] in 0..1 of the model input, with `scores` [M], `labels` [M] and `counts` [].

    1 if neither version has a box.
    """
    boxes, labels = _boxes(one)
    other_boxes, other_labels = _boxes(other)
    total = len(boxes) + len(other_boxes)
    if not total:
        return 1.0
    if not len(boxes) or not len(other_boxes):
        return 0.0
    iou = _iou(boxes, other_boxes) * (labels[:, None] == other_labels[None, :])  # (A, B), 0 where labels differ
    pairs = 0
    for row in iou:  # (B,) of one box; boxes with better scores choose first
        best = int(np.argmax(row))
        if row[best] >= SAME_BOX_IOU:
            pairs += 1
            iou[:, best] = 0.0
    return 2 * pairs / total


def _boxes(output: ModelOutput) -> tuple[Array, Array]:
    """Corners in pixels of the picture, float64 (N, 4), and labels (N,), best score first."""
    count = int(output.outputs["counts"])
    scores = output.outputs["scores"][:count]
    kept = np.flatnonzero(scores >= np.float32(LEAST_SCORE))
    kept = kept[np.argsort(-scores[kept], kind="stable")]
    place = output.geometry
    scale = np.array([place.x1 - place.x0, place.y1 - place.y0] * 2)
    shift = np.array([place.x0, place.y0] * 2)
    return output.outputs["boxes"][kept].astype(np.float64) * scale + shift, output.outputs["labels"][kept]


def _iou(boxes: Array, others: Array) -> Array:
    """IoU of each pair of boxes: corners (A, 4) and (B, 4) -> (A, B). 0 if neither box has an area."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    shared = np.prod(np.clip(high - low, 0.0, None), axis=2)
    areas = [np.prod(np.clip(each[:, 2:] - each[:, :2], 0.0, None), axis=1) for each in (boxes, others)]
    either = areas[0][:, None] + areas[1][None, :] - shared
    iou: Array = np.divide(shared, either, out=np.zeros_like(shared), where=either > 0)
    return iou


def mean_iou(one: ModelOutput, other: ModelOutput) -> float:
    """Compare `classes` uint8 [h, w] at the centres of the first map's cells, as far as the second map covers them.

    1 if the maps cover no common part of the picture.
    """
    classes, others = one.outputs["classes"], other.outputs["classes"]  # uint8 (h, w)
    rows, row_known = _cells(classes.shape[0], one.geometry.y0, one.geometry.y1, others.shape[0], other, down=True)
    columns, column_known = _cells(
        classes.shape[1], one.geometry.x0, one.geometry.x1, others.shape[1], other, down=False
    )
    first = classes[np.ix_(row_known, column_known)].ravel().astype(np.int64)
    second = others[np.ix_(rows, columns)].ravel()
    table = np.bincount(first * _CLASSES + second, minlength=_CLASSES**2).reshape(_CLASSES, _CLASSES)
    both = np.diagonal(table)
    either = table.sum(axis=0) + table.sum(axis=1) - both
    present = either > 0
    return float((both[present] / either[present]).mean()) if present.any() else 1.0


def _cells(count: int, low: float, high: float, cells: int, other: ModelOutput, *, down: bool) -> tuple[Array, Array]:
    """Along one side of the picture: the cells of `other` under the centres of `count` cells from `low` to `high` px.

    Two index arrays of the same length: cells of the other map, and the cells above them. Centres that the other map
    does not cover are left out.
    """
    centres = low + (np.arange(count) + 0.5) * (high - low) / count  # pixels of the picture
    place = other.geometry
    first, last = (place.y0, place.y1) if down else (place.x0, place.x1)
    found = np.floor((centres - first) * (cells / (last - first))).astype(np.int64)
    known = np.flatnonzero((found >= 0) & (found < cells))
    return found[known], known
