"""Class maps of a data set: the file of a mask in, the true label of every pixel out."""

import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mobilevision.eval.answers import NOTHING
from mobilevision.eval.dataset import Dataset, MaskValues, Sample
from mobilevision.eval.errors import UnusableDataset, UnusableModel
from mobilevision.eval.files import upright_size

_PLAIN_MODES = {"P", "L", "1", "I", "I;16"}
_COLOUR_MODES = {"RGB", "RGBA", "P"}
_MAX_PIXELS = 100_000_000  # of a mask; each takes a few bytes while it is read
_CHECKED = 20  # masks that are read before a run
_VOC_BORDER = (224, 224, 192)  # the colour of index 255 in VOC's palette


class NotOfTheseClasses(ValueError):
    """A mask holds a value or a colour that is no class of the data set: so do others, most likely."""


def read_truth(sample: Sample, values: MaskValues) -> NDArray[np.uint8]:
    """The true label of every pixel, uint8 (height, width), `NOTHING` where it is unknown.

    Raises ValueError where the file cannot be read, holds no class map or has another size than the picture, and
    `NotOfTheseClasses`.
    """
    assert sample.mask is not None  # noqa: S101 - every sample of a segmentation data set has a mask
    try:
        expected = upright_size(sample.image)
    except ValueError:  # the server decides what becomes of this picture
        expected = None
    return read_map(sample.mask, values, expected=expected)


def read_map(path: Path, values: MaskValues, *, expected: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    """As `read_truth`, uint8 (height, width), of one file. `expected`: width and height of the picture.

    Raises ValueError and `NotOfTheseClasses`.
    """
    raw, colours = _pixels(path, expected, colours=bool(values.of_colour))
    if colours is not None:
        return _by_colour(path, colours, values)
    highest = int(raw.max(initial=0))
    if highest > NOTHING or int(raw.min(initial=0)) < 0:
        raise ValueError(f"{path.name} holds the value {highest}; classes are values of 8 bits")
    table = np.full(NOTHING + 1, -1, np.int16)
    table[list(values.of_value)] = list(values.of_value.values())
    found: NDArray[np.int16] = table[raw]
    if (found < 0).any():
        value = int(raw[found < 0].min())
        classes = ", ".join(_ranges(sorted(values.of_value)))
        raise NotOfTheseClasses(f"{path.name} holds the value {value}, which is no class here; known are {classes}")
    return found.astype(np.uint8)


def check_some(dataset: Dataset, *, classes: int) -> None:
    """Read the first masks, so that a data set of other classes is refused before the run.

    Raises `UnusableModel` where masks hold other classes than the model, and `UnusableDataset` where none can be read.
    """
    values = dataset.mask_values
    if values is None:
        return
    wrong, looked_at = [], dataset.samples[:_CHECKED]
    for sample in looked_at:
        try:
            read_truth(sample, values)
        except NotOfTheseClasses as error:
            raise UnusableModel(
                f"{error} (the model has {classes}); --first-class and --ignore-index say how masks are read, "
                "and a file classes.txt in the data set names its classes"
            ) from error
        except ValueError as error:
            wrong.append(str(error))
    if len(wrong) == len(looked_at):
        raise UnusableDataset(f"none of the first {len(wrong)} masks can be used: {wrong[0]}")
    if values.of_value.get(NOTHING) == NOTHING and not values.of_colour and _only_black_and_white(looked_at):
        raise UnusableDataset(
            "the masks hold the values 0 and 255 only, and 255 means unknown: write the second class as 1"
        )


def _only_black_and_white(samples: Iterable[Sample]) -> bool:
    found: set[int] = set()
    for sample in samples:
        assert sample.mask is not None  # noqa: S101
        try:
            raw, _ = _pixels(sample.mask, None, colours=False)
        except ValueError:
            continue
        found |= set(np.unique(raw).tolist())
        if found - {0, NOTHING}:
            return False
    return NOTHING in found


def _pixels(
    path: Path, expected: tuple[int, int] | None, *, colours: bool
) -> tuple[NDArray[Any], NDArray[np.int32] | None]:
    """The values (height, width) of a mask, and where asked for the numbers (height, width) of its colours."""
    try:
        with Image.open(path) as image:
            if image.width * image.height > _MAX_PIXELS:
                raise ValueError(f"{path.name} states {image.width} x {image.height} pixels, which is too large")
            if expected is not None and image.size != expected:
                raise ValueError(
                    f"{path.name} is {image.width} x {image.height} pixels, its picture {expected[0]} x {expected[1]}"
                )
            if colours and image.mode in _COLOUR_MODES:
                rgb = np.asarray(image.convert("RGB"))
                number = rgb[..., 0].astype(np.int32)
                for band in (1, 2):
                    number = number << 8 | rgb[..., band]
                return rgb[..., 0], number
            if image.mode not in _PLAIN_MODES:
                raise ValueError(
                    f"{path.name} is a picture of mode {image.mode}, not a class map; a file labelmap.txt in the data "
                    "set, with <name>:<red>,<green>,<blue>:: on each line, gives colours their classes"
                )
            values = np.asarray(image)
            return values.astype(np.uint8) if values.dtype == bool else values, None
    except (OSError, SyntaxError, TypeError, ArithmeticError, LookupError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path.name} cannot be read: {type(error).__name__}: {error}") from error


def _by_colour(path: Path, colours: NDArray[np.int32], values: MaskValues) -> NDArray[np.uint8]:
    known = {_VOC_BORDER: NOTHING, **values.of_colour}
    found, where = np.unique(colours, return_inverse=True)
    labels = np.empty(len(found), np.uint8)
    for index, number in enumerate(found.tolist()):
        colour = (number >> 16, number >> 8 & 255, number & 255)
        if colour not in known:
            raise NotOfTheseClasses(f"{path.name} holds the colour {colour}, which labelmap.txt does not list")
        labels[index] = known[colour]
    return labels[where].reshape(colours.shape)


def _ranges(values: list[int]) -> list[str]:
    """Texts of one value, or of neighbours such as "0 to 2"."""
    texts = []
    for _, group in itertools.groupby(enumerate(values), key=lambda pair: pair[1] - pair[0]):
        run = [value for _, value in group]
        texts.append(str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}")
    return texts
