"""The worst pictures of an evaluation, drawn into a folder: the truth on the left, the model's answer on the right.

The answers of a run are kept without masks, so the worst pictures are sent to the server once more.
"""

import io
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from mobilevision.client import CallFailed, VisionClient
from mobilevision.drawing import Reply, annotate
from mobilevision.eval.answers import NOTHING, Outcome
from mobilevision.eval.boxes import CONFIDENT
from mobilevision.eval.dataset import Dataset, Sample
from mobilevision.eval.errors import OutputFailed
from mobilevision.eval.masks import read_truth
from mobilevision.eval.measures import MEASURES
from mobilevision.eval.run import Model
from mobilevision.tasks import Task
from service.pb.mobilevision.v1 import vision_pb2

_GAP_PX = 8
_LONGEST_NAME = 80


@dataclass(frozen=True, slots=True)
class Worst:
    """One picture by its key, how wrong its answer is, and the drawing. `why_not` says why there is none."""

    key: str
    wrongness: float
    drawing: Path | None = None
    why_not: str = ""


def ranked(dataset: Dataset, pairs: Sequence[tuple[Sample, Outcome]], count: int) -> list[tuple[Sample, float]]:
    """The `count` worst pictures that were answered, worst first. Right answers are never among them."""
    measure = MEASURES[dataset.task]
    rows = [(sample, measure.wrongness(dataset, sample, o.answer)) for sample, o in pairs if not o.reason]
    wrong = [row for row in rows if row[1] > 0]
    return sorted(wrong, key=lambda row: (-row[1], row[0].key))[:count]


def draw(
    client: VisionClient, model: Model, dataset: Dataset, rows: Iterable[tuple[Sample, float]], folder: Path
) -> Iterator[Worst]:
    """Draw pictures into `folder` as 001-<name>.png and so on, and yield one `Worst` each. Raises `OutputFailed`."""
    measure = MEASURES[dataset.task]
    for place, (sample, wrongness) in enumerate(rows, 1):
        try:
            image = sample.image.read_bytes()
            truth = _TRUTHS[dataset.task](model, dataset, sample)
            reply = _without_doubtful(measure.ask(client, model.name, image).reply)
            drawing = _beside(annotate(image, truth), annotate(image, reply))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, CallFailed) as error:
            yield Worst(sample.key, wrongness, why_not=str(error))
            continue
        path = folder / f"{place:03}-{re.sub(r'[^A-Za-z0-9._-]+', '_', sample.key)[-_LONGEST_NAME:]}.png"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            drawing.save(path, "PNG")
        except OSError as error:
            raise OutputFailed(f"cannot write {path}: {error.strerror or error}; name another folder") from error
        yield Worst(sample.key, wrongness, path)


def _without_doubtful(reply: Reply) -> Reply:
    """The reply without boxes of low scores. The average precision needs them, a drawing does not."""
    if isinstance(reply, vision_pb2.DetectResponse):
        kept = [found for found in reply.detections if found.label.score >= CONFIDENT]
        return vision_pb2.DetectResponse(model=reply.model, picture=reply.picture, detections=kept)
    return reply


def _beside(left: Image.Image, right: Image.Image) -> Image.Image:
    canvas = Image.new("RGB", (left.width + _GAP_PX + right.width, max(left.height, right.height)), "white")
    canvas.paste(left, (0, 0))
    canvas.paste(right, (left.width + _GAP_PX, 0))
    return canvas


_USED = vision_pb2.ModelUsed(name="truth")


def _label(model: Model, label: int) -> vision_pb2.Label:
    return vision_pb2.Label(id=label, name=model.labels[label], score=1.0)


def _true_label(model: Model, dataset: Dataset, sample: Sample) -> Reply:
    return vision_pb2.ClassifyResponse(model=_USED, labels=[_label(model, sample.label)])


def _true_boxes(model: Model, dataset: Dataset, sample: Sample) -> Reply:
    label_of = {category: label for label, category in (dataset.categories or {}).items()}
    found = []
    for row in dataset.boxes_of(sample):
        x, y, width, height = row["bbox"]
        box = vision_pb2.Box(x_min=x, y_min=y, x_max=x + width, y_max=y + height)
        found.append(vision_pb2.Detection(label=_label(model, label_of[row["category_id"]]), box=box))
    return vision_pb2.DetectResponse(model=_USED, detections=found)


def _true_mask(model: Model, dataset: Dataset, sample: Sample) -> Reply:
    assert dataset.mask_values is not None  # noqa: S101 - every segmentation data set has them
    truth = read_truth(sample, dataset.mask_values)
    counts = np.bincount(truth.ravel(), minlength=NOTHING + 1)[: len(model.labels)]
    encoded = io.BytesIO()
    Image.fromarray(truth).save(encoded, "PNG")
    classes = [
        vision_pb2.SegmentedClass(id=label, name=model.labels[label], area_fraction=counts[label] / truth.size)
        for label in np.argsort(-counts, kind="stable").tolist()
        if counts[label]
    ]
    return vision_pb2.SegmentResponse(model=_USED, classes=classes, mask_png=encoded.getvalue())


_TRUTHS: Mapping[Task, Callable[[Model, Dataset, Sample], Reply]] = {
    Task.CLASSIFY: _true_label,
    Task.DETECT: _true_boxes,
    Task.SEGMENT: _true_mask,
}
