"""Answers and truth in, scores in percent out, by the definitions that the papers use (docs/eval.md).

A failed picture takes part with an empty answer: its label is wrong, its objects are missed, and its pixels have no
class.
"""

import contextlib
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from mobilevision.eval.answers import NOTHING, Boxes, Overlap, Pixels, Top
from mobilevision.eval.dataset import Dataset
from mobilevision.eval.errors import PackageMissing
from mobilevision.eval.labels import unique

MAX_DETECTIONS = 100  # per picture, as COCO scores them
_COCO_METRICS = ("map", "map50", "map75", "map_small", "map_medium", "map_large")  # COCOeval.stats[0..5]


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores in percent. `values` maps a metric, `per_class` a label to its score.

    Metrics: top1, top5; map, map50, map75, map_small, map_medium, map_large; miou, pixel_accuracy. A metric without any
    truth to measure it on is left out. Per class: the share of its pictures that were right, the average precision, or
    the intersection over union. `truth` maps a label to the number of its true pictures, boxes or pixels.
    """

    values: Mapping[str, float]
    per_class: Mapping[str, float] = field(default_factory=dict)
    truth: Mapping[str, int] = field(default_factory=dict)


def top_k(rows: Sequence[tuple[int, Top]], labels: Sequence[str]) -> Scores:
    """Share of pictures whose true label is the first, or among the first five. `rows`: (true label, answer)."""
    counts = {k: sum(truth in answer.labels[:k] for truth, answer in rows) for k in (1, 5)}
    pictures = Counter(truth for truth, _ in rows)
    right = Counter(truth for truth, answer in rows if truth in answer.labels[:1])
    names = unique(labels)
    return Scores(
        {f"top{k}": 100.0 * count / len(rows) for k, count in counts.items()},
        {names[label]: 100.0 * right[label] / count for label, count in sorted(pictures.items())},
        {names[label]: count for label, count in sorted(pictures.items())},
    )


def mean_average_precision(dataset: Dataset, rows: Sequence[tuple[int, Boxes]], labels: Sequence[str]) -> Scores:
    """COCO's average precision over IoU 0.50 to 0.95, at most 100 boxes a picture, by pycocotools.

    `rows`: (COCO image id, answer), not empty. Raises `PackageMissing`.
    """
    require_pycocotools()
    from pycocotools.coco import COCO  # noqa: PLC0415 - an optional package
    from pycocotools.cocoeval import COCOeval  # noqa: PLC0415

    assert dataset.coco is not None  # noqa: S101 - every detection data set has annotations
    assert dataset.categories is not None  # noqa: S101
    categories = dataset.categories
    found = [
        (image_id, box.x, box.y, box.width, box.height, box.score, categories[box.label])
        for image_id, boxes in rows
        for box in boxes.found
        if box.label in categories
    ]
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints
        truth = COCO()
        truth.dataset = {"info": {}, **dataset.coco}
        truth.createIndex()
        # pycocotools cannot read an empty list: a box of no size matches nothing.
        found = found or [(rows[0][0], 0.0, 0.0, 0.0, 0.0, 0.0, next(iter(categories.values())))]
        scorer = COCOeval(truth, truth.loadRes(np.array(found, np.float64)), "bbox")
        scorer.params.imgIds = sorted(image_id for image_id, _ in rows)
        scorer.evaluate()
        scorer.accumulate()
        scorer.summarize()
    names = unique(labels)
    label_of = {category: label for label, category in categories.items()}
    asked = {image_id for image_id, _ in rows}
    boxes = Counter(row["category_id"] for row in dataset.coco["annotations"] if row["image_id"] in asked)
    precision = scorer.eval["precision"]  # (IoU, recall, category, area, boxes); -1 where there is no truth
    per_class = {}
    for index, category in enumerate(scorer.params.catIds):
        known = precision[:, :, index, 0, -1]
        if (known > -1).any():
            per_class[names[label_of[category]]] = 100.0 * float(known[known > -1].mean())
    values = {
        name: 100.0 * float(value) for name, value in zip(_COCO_METRICS, scorer.stats[:6], strict=True) if value >= 0
    }
    return Scores(values, per_class, {names[label_of[number]]: boxes[number] for number in sorted(boxes)})


def require_pycocotools() -> None:
    """Raises `PackageMissing` where pycocotools is not installed."""
    try:
        import pycocotools.mask  # noqa: F401, PLC0415 - an optional package
    except ModuleNotFoundError as error:
        raise PackageMissing("scoring detections needs pycocotools: pip install 'mobilevision[eval]'") from error


def mean_iou(rows: Iterable[Pixels], labels: Sequence[str]) -> Scores:
    """Intersection over union of each class over all pixels of all pictures, and the mean over the classes that occur.

    A pixel that the model did not see is answered with no class. It is part of the union of its true class.
    """
    classes = len(labels)
    confusion = np.zeros((classes, classes + 1), np.int64)  # [truth, answer], last column: no class
    for pixels in rows:
        for overlap in pixels.overlaps:
            confusion[overlap.truth, min(overlap.answer, classes)] += overlap.pixels
    hits = np.diagonal(confusion).astype(np.float64)
    union = confusion.sum(axis=1) + confusion[:, :classes].sum(axis=0) - hits
    occurs = union > 0
    if not occurs.any():
        return Scores({})
    iou = 100.0 * hits[occurs] / union[occurs]
    names = [label for label, present in zip(unique(labels), occurs, strict=True) if present]
    return Scores(
        {"miou": float(iou.mean()), "pixel_accuracy": 100.0 * float(hits.sum() / confusion.sum())},
        dict(zip(names, iou.tolist(), strict=True)),
        dict(zip(names, confusion.sum(axis=1)[occurs].tolist(), strict=True)),
    )


def overlap(truth: NDArray[np.uint8], answer: NDArray[np.uint8] | None, *, classes: int) -> Pixels:
    """Count the pixels of known truth by pair of classes. Both maps are uint8 (height, width); `answer` None: no class.

    Raises ValueError where the sizes differ, or the truth holds a class that the model does not know.
    """
    if answer is None:
        answer = np.full_like(truth, NOTHING)
    if truth.shape != answer.shape:
        raise ValueError(f"the truth is {truth.shape[1]} x {truth.shape[0]}, the answer {answer.shape[::-1]}")
    known = truth != NOTHING
    pairs = np.bincount(truth[known].astype(np.int64) * 256 + answer[known], minlength=256 * 256)
    found = [Overlap(int(pair) // 256, int(pair) % 256, int(pairs[pair])) for pair in np.flatnonzero(pairs)]
    if wrong := sorted({row.truth for row in found if row.truth >= classes}):
        raise ValueError(f"the truth holds class {wrong[0]}, the model knows {classes}")
    return Pixels(tuple(found))
