"""Scores of the demo models. In: scenes with the served module's outputs for them. Out: metrics in 0..1 by name."""

from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model_store.demo import annotations, dataset
from model_store.demo.dataset import Scene

Answer = tuple[Scene, list[NDArray[Any]]]  # a scene, and the module's outputs for it without the batch dimension


def top_k(answers: Iterator[Answer]) -> dict[str, float]:
    """Scores `top1` and `top5`: share of scenes whose label is the best of the labels [K], or among the best five."""
    ranks = [found[1].tolist().index(scene.label) for scene, found in answers]  # labels, best first
    return {"top1": float(np.mean([rank < 1 for rank in ranks])), "top5": float(np.mean([rank < 5 for rank in ranks]))}


def mean_average_precision(answers: Iterator[Answer]) -> dict[str, float]:
    """COCO's `map`, `map50` and `map75` over all shapes. Answers: boxes [M, 4] in 0..1, scores [M], labels [M], count.

    Needs pycocotools.
    """
    from pycocotools.coco import COCO  # noqa: PLC0415 - needed here only, and a test dependency
    from pycocotools.cocoeval import COCOeval  # noqa: PLC0415

    truth: dict[str, Any] = {"images": [], "annotations": [], "categories": annotations.categories(), "info": {}}
    detections: list[list[float]] = []
    for index, (scene, (boxes, scores, found, count)) in enumerate(answers):
        height, width = scene.classes.shape
        truth["images"].append({"id": index, "width": width, "height": height})
        truth["annotations"] += annotations.of(scene, picture_id=index, first_id=len(truth["annotations"]) + 1)
        for i in range(int(count)):
            x0, y0, x1, y1 = boxes[i] * (width, height, width, height)
            detections.append([index, x0, y0, x1 - x0, y1 - y0, scores[i], found[i] + 1])
    if not detections:
        return {"map": 0.0, "map50": 0.0}
    with redirect_stdout(StringIO()):  # pycocotools talks
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        scorer = COCOeval(coco, coco.loadRes(np.array(detections, np.float64)), "bbox")
        scorer.evaluate()
        scorer.accumulate()
        scorer.summarize()
    return {"map": float(scorer.stats[0]), "map50": float(scorer.stats[1]), "map75": float(scorer.stats[2])}


def mean_iou(answers: Iterator[Answer]) -> dict[str, float]:
    """Mean IoU over the classes with background (`miou`) and `pixel_accuracy`. Answers: class map [H, W], confidence.

    Every pixel of every picture counts once, at the size of the picture.
    """
    classes = len(dataset.LABELS) + 1
    confusion = np.zeros((classes, classes), np.int64)
    for scene, (found, _) in answers:
        height, width = scene.classes.shape
        enlarged = np.asarray(Image.fromarray(found).resize((width, height), Image.Resampling.NEAREST))
        pairs = scene.classes.astype(np.int64) * classes + enlarged
        confusion += np.bincount(pairs.ravel(), minlength=classes**2).reshape(classes, classes)
    hits = np.diagonal(confusion)
    either = confusion.sum(axis=0) + confusion.sum(axis=1) - hits
    seen = either > 0
    return {"miou": float(np.mean(hits[seen] / either[seen])), "pixel_accuracy": float(hits.sum() / confusion.sum())}
