"""One table: for each task what is asked, which part of the reply is kept, and how the answers are scored.

In: a client, pictures, replies. Out: answers and scores. A new task needs one more `Measure` here.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mobilevision.client import VisionClient
from mobilevision.eval import boxes, confusion, masks, scores
from mobilevision.eval.answers import NOTHING, Answer, Boxes, Found, Outcome, Pixels, Top
from mobilevision.eval.confusion import Confusion
from mobilevision.eval.dataset import Dataset, Sample
from mobilevision.eval.scores import Scores
from mobilevision.results import Result
from mobilevision.tasks import Task
from service.pb.mobilevision.v1 import vision_pb2

TOP = 5  # labels asked for, as top-5 needs them
Truth = NDArray[np.uint8] | None  # the class map of a picture, (height, width); None where the task needs none
Kind = TypeVar("Kind", Top, Boxes, Pixels)


@dataclass(frozen=True, slots=True)
class Measure:
    """How one task is evaluated.

    `require` raises `PackageMissing` where scoring needs a package that is not installed. `ask` calls the server:
    client, model, encoded picture. `read_truth` reads what `missed` and `answer` compare with; it raises OSError or
    ValueError. `empty` is the answer where there is no truth. `missed` is the answer of a failed picture: truth, number
    of classes. `answer` takes a result, the truth and the number of classes; it raises ValueError where their sizes
    differ. `score` takes the data set, its pictures with their outcomes (at least one), and the labels of the model;
    `confuse` the same. `wrongness` is 0 for an answer without a mistake, and larger the worse the answer is.
    """

    require: Callable[[], None]
    ask: Callable[[VisionClient, str, bytes], Result[Any]]
    read_truth: Callable[[Dataset, Sample], Truth]
    empty: Answer
    missed: Callable[[Truth, int], Answer]
    answer: Callable[[Result[Any], Truth, int], Answer]
    score: Callable[[Dataset, Sequence[tuple[Sample, Outcome]], Sequence[str]], Scores]
    confuse: Callable[[Dataset, Sequence[tuple[Sample, Outcome]], Sequence[str]], Confusion]
    wrongness: Callable[[Dataset, Sample, Answer], float]


def _nothing_required() -> None:
    pass


def _no_truth(dataset: Dataset, sample: Sample) -> Truth:
    return None


def _ask_labels(client: VisionClient, model: str, image: bytes) -> Result[Any]:
    return client.classify(image, model=model, top_k=TOP)


def _labels(result: Result[Any], truth: Truth, classes: int) -> Answer:
    found = result.reply.labels
    return Top(tuple(label.id for label in found), tuple(label.score for label in found))


def _score_labels(dataset: Dataset, outcomes: Sequence[tuple[Sample, Outcome]], labels: Sequence[str]) -> Scores:
    return scores.top_k(_tops(outcomes), labels)


def _confuse_labels(dataset: Dataset, outcomes: Sequence[tuple[Sample, Outcome]], labels: Sequence[str]) -> Confusion:
    return confusion.of_labels(_tops(outcomes))


def _tops(outcomes: Sequence[tuple[Sample, Outcome]]) -> list[tuple[int, Top]]:
    return [(sample.label, _as(outcome, Top)) for sample, outcome in outcomes]


def _wrong_labels(dataset: Dataset, sample: Sample, answer: Answer) -> float:
    """How much more the model believes in its answer than in the truth."""
    assert isinstance(answer, Top)  # noqa: S101
    if sample.label in answer.labels[:1] or not answer.labels:
        return 0.0
    score_of = dict(zip(answer.labels, answer.scores, strict=True))
    return 1.0 + answer.scores[0] - score_of.get(sample.label, 0.0)


def _ask_boxes(client: VisionClient, model: str, image: bytes) -> Result[Any]:
    # Threshold 0: the average precision includes boxes with low scores.
    return client.detect(image, model=model, score_threshold=0.0, max_detections=scores.MAX_DETECTIONS)


def _boxes(result: Result[Any], truth: Truth, classes: int) -> Answer:
    return Boxes(
        tuple(
            Found(
                label=found.label.id,
                score=found.label.score,
                x=found.box.x_min,
                y=found.box.y_min,
                width=found.box.x_max - found.box.x_min,
                height=found.box.y_max - found.box.y_min,
            )
            for found in result.reply.detections
        )
    )


def _score_boxes(dataset: Dataset, outcomes: Sequence[tuple[Sample, Outcome]], labels: Sequence[str]) -> Scores:
    rows = [(sample.image_id, _as(outcome, Boxes)) for sample, outcome in outcomes]
    return scores.mean_average_precision(dataset, rows, labels)


def _confuse_boxes(dataset: Dataset, outcomes: Sequence[tuple[Sample, Outcome]], labels: Sequence[str]) -> Confusion:
    return confusion.of_boxes(_paired(dataset, sample, outcome.answer) for sample, outcome in outcomes)


def _wrong_boxes(dataset: Dataset, sample: Sample, answer: Answer) -> float:
    """The share of mistakes among all boxes; of equal shares more mistakes are worse."""
    pairs = _paired(dataset, sample, answer)
    boxes_in_all = len(pairs.together) + len(pairs.missed) + len(pairs.extra)
    return pairs.wrong / boxes_in_all + 1e-6 * pairs.wrong if pairs.wrong else 0.0


def _paired(dataset: Dataset, sample: Sample, answer: Answer) -> boxes.Pairs:
    assert isinstance(answer, Boxes)  # noqa: S101
    assert dataset.categories is not None  # noqa: S101 - every detection data set has them
    label_of = {category: label for label, category in dataset.categories.items()}
    return boxes.pair(dataset.boxes_of(sample), answer.found, label_of)


def _ask_mask(client: VisionClient, model: str, image: bytes) -> Result[Any]:
    return client.segment(image, model=model, mask_encoding=vision_pb2.MASK_ENCODING_PNG)


def _true_mask(dataset: Dataset, sample: Sample) -> Truth:
    assert dataset.mask_values is not None  # noqa: S101 - every segmentation data set has them
    return masks.read_truth(sample, dataset.mask_values)


def _missed_pixels(truth: Truth, classes: int) -> Answer:
    return scores.overlap(_present(truth), None, classes=classes)


def _pixels(result: Result[Any], truth: Truth, classes: int) -> Answer:
    with Image.open(io.BytesIO(result.reply.mask_png)) as mask:
        return scores.overlap(_present(truth), np.asarray(mask), classes=classes)


def _score_pixels(dataset: Dataset, outcomes: Sequence[tuple[Sample, Outcome]], labels: Sequence[str]) -> Scores:
    return scores.mean_iou([_as(outcome, Pixels) for _, outcome in outcomes], labels)


def _confuse_pixels(dataset: Dataset, outcomes: Sequence[tuple[Sample, Outcome]], labels: Sequence[str]) -> Confusion:
    return confusion.of_pixels((_as(outcome, Pixels) for _, outcome in outcomes), len(labels))


def _wrong_pixels(dataset: Dataset, sample: Sample, answer: Answer) -> float:
    """What the mean intersection over union of the picture's own classes lacks to 1."""
    assert isinstance(answer, Pixels)  # noqa: S101
    classes = [str(label) for label in range(NOTHING)]
    iou = scores.mean_iou([answer], classes).values.get("miou", 100.0)
    return 1.0 - iou / 100.0


MEASURES: Mapping[Task, Measure] = {
    Task.CLASSIFY: Measure(
        require=_nothing_required,
        ask=_ask_labels,
        read_truth=_no_truth,
        empty=Top(),
        missed=lambda truth, classes: Top(),
        answer=_labels,
        score=_score_labels,
        confuse=_confuse_labels,
        wrongness=_wrong_labels,
    ),
    Task.DETECT: Measure(
        require=scores.require_pycocotools,
        ask=_ask_boxes,
        read_truth=_no_truth,
        empty=Boxes(),
        missed=lambda truth, classes: Boxes(),
        answer=_boxes,
        score=_score_boxes,
        confuse=_confuse_boxes,
        wrongness=_wrong_boxes,
    ),
    Task.SEGMENT: Measure(
        require=_nothing_required,
        ask=_ask_mask,
        read_truth=_true_mask,
        empty=Pixels(),
        missed=_missed_pixels,
        answer=_pixels,
        score=_score_pixels,
        confuse=_confuse_pixels,
        wrongness=_wrong_pixels,
    ),
}


def _present(truth: Truth) -> NDArray[np.uint8]:
    assert truth is not None  # noqa: S101 - `_true_mask` returned it
    return truth


def _as(outcome: Outcome, kind: type[Kind]) -> Kind:
    assert isinstance(outcome.answer, kind)  # noqa: S101 - a journal is of one task, see its identity
    return outcome.answer
