"""Scores on held-out pictures, measured in this process: what a training run prints, and what its tests check.

In: an entry and a network with its weights in place. Out: scores in 0..1. Pictures are drawn from the held-out split,
decoded from their JPEG, squashed as the gateway does it, answered by the very module that is exported, and the answers
mapped back to each picture's own pixels. `mobilevision eval` measures the same through a running service.
"""

from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from io import StringIO
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from model_store import assemble, zoo
from model_store.card import Task
from model_store.demo import annotations, dataset
from model_store.demo.dataset import Kind, Scene
from model_store.demo.pool import squash
from model_store.export import Served, served

_BATCH = 8


def kind_of(task: Task) -> Kind:
    """Pictures that a task is scored on."""
    return "single" if task is Task.CLASSIFY else "scene"


def measure(
    entry: zoo.Entry,
    network: assemble.Network,
    *,
    pictures: int,
    seed: int,
    advance: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Score a network on the first `pictures` held-out pictures.

    Returns:
        top1 and top5 (classify), map and map50 (detect; needs pycocotools), miou and pixel_accuracy (segment).

    """
    module = served(entry, network)
    scored = {Task.CLASSIFY: _top_k, Task.DETECT: _mean_average_precision, Task.SEGMENT: _mean_iou}
    return scored[entry.task](_answers(entry, module, pictures, seed, advance))


Answer = tuple[Scene, list[NDArray[Any]]]  # a scene, and the module's outputs for it without the batch dimension


def _answers(
    entry: zoo.Entry, module: Served, pictures: int, seed: int, advance: Callable[[], None]
) -> Iterator[Answer]:
    kind = kind_of(entry.task)
    for start in range(0, pictures, _BATCH):
        indices = range(start, min(start + _BATCH, pictures))
        scenes = [dataset.draw(seed=seed, split="held_out", index=index, kind=kind) for index in indices]
        pixels = torch.from_numpy(np.stack([squash(scene.picture(), entry.input.width) for scene in scenes]))
        with torch.inference_mode():
            outputs = [output.numpy() for output in module(pixels)]
        for position, scene in enumerate(scenes):
            yield scene, [output[position] for output in outputs]
            advance()


def _top_k(answers: Iterator[Answer]) -> dict[str, float]:
    ranks = [found[1].tolist().index(scene.label) for scene, found in answers]  # labels, best first
    return {"top1": float(np.mean([rank < 1 for rank in ranks])), "top5": float(np.mean([rank < 5 for rank in ranks]))}


def _mean_average_precision(answers: Iterator[Answer]) -> dict[str, float]:
    """COCO's mAP over all shapes, boxes in pixels of the pictures."""
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


def _mean_iou(answers: Iterator[Answer]) -> dict[str, float]:
    """Over the classes with background, every pixel of every picture at its own size counted once."""
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
