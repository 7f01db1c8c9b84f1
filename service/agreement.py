"""How far two versions agree on a picture: the outputs of both in, a share of 0 to 1 out.

Compared in the picture's own coordinates, so the versions may differ in input size, crop and resolution. What the share
is of depends on the task (`METRICS`):

    top1     1 where the best class is the same, else 0
    box_f1   2 * pairs / boxes of both; a pair has the same label and an IoU of at least 0.5, each box is in one at most
    miou     mean over the classes present in either class map of (pixels of that class in both / in either)

Never knows which version is right.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from handlers.frame import Array
from model_store.card import Task
from service.work import Geometry

METRICS: Mapping[Task, str] = MappingProxyType({Task.CLASSIFY: "top1", Task.DETECT: "box_f1", Task.SEGMENT: "miou"})
SAME_BOX_IOU = 0.5
LEAST_SCORE = 0.3  # of a box that counts: what callers get who do not say otherwise

_CLASSES = 256


@dataclass(frozen=True, slots=True)
class Seen:
    """What one version made of a picture: its outputs, without the batch dimension, and where its input lay."""

    outputs: Mapping[str, Array]
    geometry: Geometry


def agreement(task: Task, one: Seen, other: Seen) -> float:
    """The share for a task's metric."""
    if task is Task.CLASSIFY:
        return float(one.outputs["labels"][0] == other.outputs["labels"][0])
    if task is Task.DETECT:
        return _box_f1(one, other)
    return _mean_iou(one, other)


def _box_f1(one: Seen, other: Seen) -> float:
    boxes, labels = _boxes(one)
    other_boxes, other_labels = _boxes(other)
    total = len(boxes) + len(other_boxes)
    if not total:
        return 1.0
    if not len(boxes) or not len(other_boxes):
        return 0.0
    iou = _iou(boxes, other_boxes) * (labels[:, None] == other_labels[None, :])  # (A, B), 0 where labels differ
    pairs = 0
    for row in iou:  # the best scores choose first
        best = int(np.argmax(row))
        if row[best] >= SAME_BOX_IOU:
            pairs += 1
            iou[:, best] = 0.0
    return 2 * pairs / total


def _boxes(seen: Seen) -> tuple[Array, Array]:
    """Corners in pixels of the picture, float64 (N, 4), and labels (N), best score first."""
    count = int(seen.outputs["counts"])
    scores = seen.outputs["scores"][:count]
    kept = np.flatnonzero(scores >= np.float32(LEAST_SCORE))
    kept = kept[np.argsort(-scores[kept], kind="stable")]
    place = seen.geometry
    scale = np.array([place.x1 - place.x0, place.y1 - place.y0] * 2)
    shift = np.array([place.x0, place.y0] * 2)
    return seen.outputs["boxes"][kept].astype(np.float64) * scale + shift, seen.outputs["labels"][kept]


def _iou(boxes: Array, others: Array) -> Array:
    """(A, 4) and (B, 4) corners to (A, B); 0 where neither has an area."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    shared = np.prod(np.clip(high - low, 0.0, None), axis=2)
    areas = [np.prod(np.clip(each[:, 2:] - each[:, :2], 0.0, None), axis=1) for each in (boxes, others)]
    either = areas[0][:, None] + areas[1][None, :] - shared
    iou: Array = np.divide(shared, either, out=np.zeros_like(shared), where=either > 0)
    return iou


def _mean_iou(one: Seen, other: Seen) -> float:
    """At the centres of the first map's cells, as far as the second version saw them."""
    classes, others = one.outputs["classes"], other.outputs["classes"]  # uint8 (h, w)
    rows, row_known = _cells(classes.shape[0], one.geometry.y0, one.geometry.y1, others.shape[0], other, down=True)
    columns, column_known = _cells(
        classes.shape[1], one.geometry.x0, one.geometry.x1, others.shape[1], other, down=False
    )
    mine = classes[np.ix_(row_known, column_known)].ravel().astype(np.int64)
    theirs = others[np.ix_(rows, columns)].ravel()
    table = np.bincount(mine * _CLASSES + theirs, minlength=_CLASSES**2).reshape(_CLASSES, _CLASSES)
    both = np.diagonal(table)
    either = table.sum(axis=0) + table.sum(axis=1) - both
    present = either > 0
    return float((both[present] / either[present]).mean()) if present.any() else 1.0


def _cells(count: int, low: float, high: float, cells: int, other: Seen, *, down: bool) -> tuple[Array, Array]:
    """Along one side: cells of the other map under the centres of `count` cells, and which of these those are."""
    centres = low + (np.arange(count) + 0.5) * (high - low) / count  # pixels of the picture
    place = other.geometry
    first, last = (place.y0, place.y1) if down else (place.x0, place.x1)
    found = np.floor((centres - first) * (cells / (last - first))).astype(np.int64)
    known = np.flatnonzero((found >= 0) & (found < cells))
    return found[known], known
