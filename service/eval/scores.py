"""Answers and truth in, scores in percent out. The definitions are those the papers report; see docs/eval.md.

A failed picture takes part with an empty answer: its label is wrong, its objects are missed, its pixels are of no
class.
"""

import contextlib
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model_store.card import Task
from service.eval.answers import NOTHING, Boxes, Outcome, Overlap, Pixels, Top
from service.eval.datasets import Dataset, Sample
from service.eval.errors import PackageMissing

MAX_DETECTIONS = 100  # per picture, as COCO scores them
Kind = TypeVar("Kind", Top, Boxes, Pixels)
_COCO_METRICS = ("map", "map50", "map75", "map_small", "map_medium", "map_large")  # COCOeval.stats[0..5]


@dataclass(frozen=True, slots=True)
class Scores:
    """`values`: metric to percent; one without any truth to measure it on is left out. `per_class`: label to percent.

    Metrics: top1, top5; map, map50, map75, map_small, map_medium, map_large; miou, pixel_accuracy. Per class: average
    precision, or intersection over union.
    """

    values: Mapping[str, float]
    per_class: Mapping[str, float] = field(default_factory=dict)


def score(dataset: Dataset, outcomes: Sequence[tuple[Sample, Outcome]], labels: Sequence[str]) -> Scores:
    """Score what was answered on some or all samples of a data set; at least one."""
    if dataset.task is Task.CLASSIFY:
        return top_k([(sample.label, _as(outcome, Top)) for sample, outcome in outcomes])
    if dataset.task is Task.DETECT:
        return mean_average_precision(
            dataset, [(sample.image_id, _as(outcome, Boxes)) for sample, outcome in outcomes], labels
        )
    return mean_iou([_as(outcome, Pixels) for _, outcome in outcomes], labels)


def top_k(rows: Sequence[tuple[int, Top]]) -> Scores:
    """Share of pictures whose true label is the first, or among the first five."""
    counts = {k: sum(truth in answer.labels[:k] for truth, answer in rows) for k in (1, 5)}
    return Scores({f"top{k}": 100.0 * count / len(rows) for k, count in counts.items()})


def mean_average_precision(dataset: Dataset, rows: Sequence[tuple[int, Boxes]], labels: Sequence[str]) -> Scores:
    """COCO's average precision over IoU 0.50 to 0.95, all areas, at most 100 boxes a picture, by pycocotools."""
    require_pycocotools()
    from pycocotools.coco import COCO  # noqa: PLC0415 - an optional package
    from pycocotools.cocoeval import COCOeval  # noqa: PLC0415

    assert dataset.coco is not None  # noqa: S101 - every detection data set has them
    assert dataset.categories is not None  # noqa: S101
    categories = dataset.categories
    found = [
        (image_id, box.x, box.y, box.width, box.height, box.score, categories[box.label])
        for image_id, boxes in rows
        for box in boxes.found
        if box.label in categories
    ]
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools talks
        truth = COCO()
        truth.dataset = {"info": {}, **dataset.coco}
        truth.createIndex()
        # A box for nobody, where there is none: pycocotools cannot read an empty list.
        found = found or [(rows[0][0], 0.0, 0.0, 0.0, 0.0, 0.0, next(iter(categories.values())))]
        scorer = COCOeval(truth, truth.loadRes(np.array(found, np.float64)), "bbox")
        scorer.params.imgIds = sorted(image_id for image_id, _ in rows)
        scorer.evaluate()
        scorer.accumulate()
        scorer.summarize()
    label_of = {category: label for label, category in categories.items()}
    precision = scorer.eval["precision"]  # (IoU, recall, category, area, boxes); -1 where there is no truth
    per_class = {}
    for index, category in enumerate(scorer.params.catIds):
        known = precision[:, :, index, 0, -1]
        if (known > -1).any():
            per_class[labels[label_of[category]]] = 100.0 * float(known[known > -1].mean())
    values = {
        name: 100.0 * float(value) for name, value in zip(_COCO_METRICS, scorer.stats[:6], strict=True) if value >= 0
    }
    return Scores(values, per_class)


def require_pycocotools() -> None:
    """Raises `PackageMissing` where it is not installed."""
    try:
        import pycocotools.mask  # noqa: F401, PLC0415 - an optional package
    except ModuleNotFoundError as error:
        raise PackageMissing("scoring detections needs pycocotools: pip install 'mobilevision[eval]'") from error


def mean_iou(rows: Iterable[Pixels], labels: Sequence[str]) -> Scores:
    """Intersection over union of each class over all pixels of all pictures, and the mean over the classes that occur.

    Pixels that the model did not see count for no class: they are part of the union of their true one.
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
    names = [label for label, present in zip(labels, occurs, strict=True) if present]
    return Scores(
        {"miou": float(iou.mean()), "pixel_accuracy": 100.0 * float(hits.sum() / confusion.sum())},
        dict(zip(names, iou.tolist(), strict=True)),
    )


def read_truth(sample: Sample, *, zero_is_ignored: bool) -> NDArray[np.uint8]:
    """The true class of every pixel, uint8 [height, width], `NOTHING` where unknown. Raises OSError or ValueError."""
    assert sample.mask is not None  # noqa: S101 - every sample of a segmentation data set has one
    with Image.open(sample.mask) as image:
        if image.mode not in {"P", "L", "I", "I;16"}:
            raise ValueError(f"{sample.mask.name} is a picture of mode {image.mode}, not a class map")
        values = np.asarray(image)
    truth = values.astype(np.uint8)
    if not np.array_equal(truth, values):
        raise ValueError(f"{sample.mask.name} holds classes above 255")
    return np.where(truth == 0, np.uint8(NOTHING), truth - np.uint8(1)) if zero_is_ignored else truth


def overlap(truth: NDArray[np.uint8], answer: NDArray[np.uint8] | None, *, classes: int) -> Pixels:
    """Count the pixels of known truth by pair of classes; None answers none of them. Raises ValueError."""
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


def _as(outcome: Outcome, kind: type[Kind]) -> Kind:
    assert isinstance(outcome.answer, kind)  # noqa: S101 - the journal's identity holds the task
    return outcome.answer
