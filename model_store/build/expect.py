"""Compare a model that was just built with one's own answer to one picture, before anything is written.

In: the card, the module, an answer (`expect_file`), and the function by which the gateway reads pictures. Out: a line
that states the difference, or an `ExportError` of one line. The picture is decoded and preprocessed as the gateway does
it, and goes through the module of the archive. Where the answers differ, `expect_variants` changes the preprocessing in
the ways in which people most often get it wrong, and the message names the change that makes them agree.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from handlers.contract.card import Card, InputSize, Preprocess, Task
from model_store.build import expect_variants, torchscript
from model_store.build.errors import ExportError
from model_store.build.expect_file import Boxes, Expected, read
from model_store.networks.boxes import box_iou
from model_store.networks.pixels import Pixels
from model_store.networks.tasks.segment import class_map

Region = tuple[float, float, float, float]
# (encoded picture, size, how) -> uint8 [H, W, 3] RGB, and where it lies in the upright picture: x0, y0, x1, y1 in
# pixels of the picture
ReadPicture = Callable[[bytes, InputSize, Preprocess], tuple[NDArray[Any], Region]]

LOGITS = 0.01  # largest difference of a logit, as a share of the standard deviation of the expected ones
PROBABILITIES = 0.002  # largest difference of a probability
BOXES = 0.05  # largest difference of a score, and of an overlap from 1
PIXELS = 0.01  # share of pixels of another class
_VOID = 255  # in class maps: a pixel without a class


@dataclass(frozen=True)
class Expectation:
    """Files with one's own answer and with its picture."""

    answer: Path
    picture: Path


@dataclass(frozen=True)
class _Measure:
    """What is compared, in words, and the largest difference that counts as agreement."""

    words: str
    limit: float


_MEASURES = {
    "logits": _Measure("largest difference of a logit, as a share of their standard deviation", LOGITS),
    "probabilities": _Measure("largest difference of a probability", PROBABILITIES),
    "boxes": _Measure("largest difference of a score or of an overlap from 1", BOXES),
    "pixels": _Measure("share of pixels of another class", PIXELS),
}


def check(card: Card, module_bytes: bytes, expectation: Expectation, read_picture: ReadPicture) -> str:
    """Compare, and return the result in one line. Raises `ExportError`."""
    expected = read(expectation.answer, card)
    try:
        picture = expectation.picture.read_bytes()
    except OSError as error:
        raise ExportError(f"{expectation.picture}: {error.strerror or error}") from error
    module = torchscript.load(module_bytes)
    measure = _MEASURES[_kind(expected)]
    distance = partial(_distance, module, expected, picture, read_picture)
    try:
        found = distance(card)
    except Exception as error:  # the gateway's errors, which this room does not know
        raise ExportError(f"{expectation.picture}: {error}") from error
    phrase = f"{measure.words}: {found:.2g} (allowed: {measure.limit:g})"
    if found <= measure.limit:
        return f"answers {expectation.picture.name} as {expectation.answer.name} says; {phrase}"
    cause = _permuted(module, expected, picture, read_picture, card, measure) or expect_variants.explain(
        card, distance, found, measure.limit
    )
    raise ExportError(f"answers {expectation.picture.name} unlike {expectation.answer.name}; {phrase}; {cause}")


def _kind(expected: Expected) -> str:
    if expected.scores is not None:
        return "probabilities" if expected.are_probabilities else "logits"
    if expected.boxes is not None:
        return "boxes"
    return "logits" if expected.logits is not None else "pixels"


def _distance(module: Any, expected: Expected, picture: bytes, read_picture: ReadPicture, card: Card) -> float:
    """How far the module's answer is from the expected one, with the input size and preprocessing of a card."""
    pixels, region = read_picture(picture, card.input, card.preprocess)
    batch = torch.from_numpy(np.array(pixels)).unsqueeze(0)  # [1, H, W, 3]
    # The optimising executor would compile for this one call.
    with torch.inference_mode(), torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
        raw = module.network(Pixels(normalize=card.normalize)(batch))
        if expected.boxes is not None:
            boxes, scores, labels, counts = module.postprocess.detections(*raw)
            rows = slice(0, int(counts[0]))
            found = Boxes(_in_picture(boxes[0, rows].numpy(), region), scores[0, rows].numpy(), labels[0, rows].numpy())
            return _boxes_distance(expected.boxes, found)
        if expected.class_map is not None:
            height, width = card.input.height, card.input.width
            classes = class_map(
                raw.float(), height=height, width=width, align_corners=bool(module.postprocess.align_corners)
            )
            return _map_distance(expected.class_map, classes[0].numpy(), region, card.input)
    answer = raw[0].double().numpy()
    if expected.logits is not None:
        return _logits_distance(expected.logits, answer)
    assert expected.scores is not None  # noqa: S101 - one of the four is there
    return _scores_distance(expected, expected.scores, answer)


def _scores_distance(expected: Expected, scores: NDArray[np.float64], logits: NDArray[np.float64]) -> float:
    if expected.are_probabilities:
        return float(np.abs(_softmax(logits) - scores).max())
    return _logits_distance(scores, logits)


def _logits_distance(expected: NDArray[np.float64], found: NDArray[np.float64]) -> float:
    if expected.shape != found.shape:
        raise ExportError(f"the logits have shape {list(found.shape)}, the expected ones {list(expected.shape)}")
    spread = float(expected.std()) if expected.size > 1 else float(np.abs(expected).max())
    return float(np.abs(found - expected).max()) / max(spread, 1e-6)


def _boxes_distance(expected: Boxes, found: Boxes) -> float:
    """The worst partner of an expected box: difference of scores, or of the overlap from 1. Without a partner 1.

    A box of ours whose score is clearly above all expected ones' least needs a partner too.
    """
    worst = _unmatched(expected, found)
    least = float(expected.scores.min()) + BOXES
    clear = found.scores > least
    ours = Boxes(found.boxes[clear], found.scores[clear], found.labels[clear])
    return max(worst, _unmatched(ours, expected))


def _unmatched(wanted: Boxes, others: Boxes) -> float:
    if not len(wanted.labels):
        return 0.0
    if not len(others.labels):
        return 1.0
    overlap = box_iou(torch.from_numpy(wanted.boxes).float(), torch.from_numpy(others.boxes).float()).numpy()
    unlike = np.maximum(1.0 - overlap, np.abs(wanted.scores[:, None] - others.scores[None]))
    unlike[wanted.labels[:, None] != others.labels[None]] = 1.0
    return float(unlike.min(axis=1).max())


def _in_picture(boxes: NDArray[Any], region: Region) -> NDArray[np.float64]:
    """Boxes [D, 4] in fractions of the input, in pixels of the picture."""
    x0, y0, x1, y1 = region
    scale, shift = np.array([x1 - x0, y1 - y0] * 2), np.array([x0, y0] * 2)
    moved: NDArray[np.float64] = boxes.astype(np.float64) * scale + shift
    return moved


def _map_distance(expected: NDArray[np.int64], found: NDArray[np.uint8], region: Region, size: InputSize) -> float:
    """Share of pixels of another class. A map of the picture's size is brought to the input, without new classes."""
    if expected.shape != found.shape:
        image = Image.fromarray(expected.astype(np.int32))
        wanted = (size.width, size.height)
        resized = image.transform(wanted, Image.Transform.EXTENT, region, Image.Resampling.NEAREST, fillcolor=_VOID)
        expected = np.asarray(resized).astype(np.int64)
    known = expected != _VOID
    return float((expected != found)[known].mean()) if known.any() else 1.0


def _permuted(
    module: Any, expected: Expected, picture: bytes, read_picture: ReadPicture, card: Card, measure: _Measure
) -> str:
    """In words, that the numbers are the expected ones in another order; empty if they are not."""
    if card.task is not Task.CLASSIFY or expected.scores is None or len(expected.scores) < 2:
        return ""
    pixels, _ = read_picture(picture, card.input, card.preprocess)
    with torch.inference_mode(), torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
        batch = torch.from_numpy(np.array(pixels)).unsqueeze(0)
        logits = module.network(Pixels(normalize=card.normalize)(batch))[0].double().numpy()
    ours, theirs = logits.argsort(), expected.scores.argsort()
    inverse = np.empty_like(ours)
    inverse[theirs] = ours  # label of the file -> the label whose number is the same
    if _scores_distance(expected, expected.scores, logits[inverse]) > measure.limit:
        return ""
    first = int(np.flatnonzero(inverse != np.arange(len(inverse)))[0])
    return (
        f"the numbers are the same in another order, so the labels are permuted: {card.labels[first]!r} in the file "
        f"has the number of {card.labels[int(inverse[first])]!r} here; put the labels into the order of training"
    )


def _softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    powers = np.exp(logits - logits.max())
    shares: NDArray[np.float64] = powers / powers.sum()
    return shares
