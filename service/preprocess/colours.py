"""Colours: a decoded Pillow image or array of any mode in, 8-bit RGB or grey out."""

import zlib
from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np
from PIL import Image

from handlers.contract.frame import Array
from service.preprocess.formats import unsupported

Alpha = Literal["drop", "white", "black"]

_BLOCK_PIXELS = 2**18


def is_composited(picture: Image.Image, alpha: Alpha) -> bool:
    """Whether the picture is laid on a colour. Samples of more than 8 bits never are: their alpha is dropped."""
    return alpha != "drop" and not picture.mode.startswith(("I", "F")) and picture.has_transparency_data


def to_rgb(picture: Image.Image, alpha: Alpha) -> Image.Image:
    """Convert every mode to RGB or L. L is resized at a third of the cost and becomes RGB afterwards.

    Raises `ImageFormatUnsupported` for a colour space that cannot be converted.
    """
    if is_composited(picture, alpha):
        return _on_colour(picture, alpha)
    # With this entry Pillow would warn about palettes or search the transparent colour, but alpha is dropped.
    picture.info.pop("transparency", None)
    mode = picture.mode
    if mode in {"L", "RGB"}:
        return picture
    if mode.startswith(("I", "F")):
        return Image.fromarray(_to_8_bit(picture))
    if mode in {"1", "LA"}:
        return picture.convert("L")
    if mode in {"La", "RGBa"}:
        return picture.convert("LA" if mode == "La" else "RGBA").convert("RGB")
    if mode == "LAB":
        raise unsupported("the picture is in the CIE L*a*b* colour space, which this server does not convert")
    return picture.convert("RGB")  # 1, P, PA, RGBA, RGBX, CMYK, YCbCr, HSV


def array(picture: Image.Image) -> Array:
    """The pixels of an RGB or grey image, uint8 [H, W, 3] or [H, W]. Takes little memory besides."""
    sides = (picture.height, picture.width)
    result = np.empty(sides if picture.mode == "L" else (*sides, 3), np.uint8)
    for top, samples in _blocks(picture):
        result[top : top + len(samples)] = samples
    return result


def fingerprint(picture: Image.Image) -> int:
    """A number that tells the pixels of two pictures apart. Decodes the picture."""
    value = 0
    for _, samples in _blocks(picture):
        value = zlib.crc32(samples.tobytes(), value)
    return value


def scaled(shape: tuple[int, ...], samples: Callable[[], Iterator[tuple[int, Array]]], *, floats: bool) -> Array:
    """Scale samples that state no range to uint8 of `shape`, [H, W] or [H, W, 3], 0..255.

    `samples` gives blocks of rows: the number of the first row, and the samples [rows, W] or [rows, W, 3]. The range is
    taken to be the smallest of 0..1 (`floats` only), 0..255, 0..65535 and 0..maximum that contains the largest sample.
    Negative samples and NaN are black.
    """
    largest = max(float(_finite(block).max()) for _, block in samples())
    ranges = (1.0, 255.0, 65535.0) if floats else (255.0, 65535.0)
    full = next((full for full in ranges if largest <= full), largest)
    result = np.empty(shape, np.uint8)
    for top, block in samples():
        result[top : top + len(block)] = np.rint(np.clip(_finite(block), 0.0, None) * (255.0 / full))
    return result


def rows_per_block(width: int) -> int:
    """How many rows of a picture are converted at once, to take little memory."""
    return max(1, _BLOCK_PIXELS // width)


def _on_colour(picture: Image.Image, alpha: Alpha) -> Image.Image:
    with_alpha = {"La": "LA", "RGBa": "RGBA"}.get(picture.mode)
    shown = (picture.convert(with_alpha) if with_alpha else picture).convert("RGBA")
    colours = Image.new("RGB", shown.size, alpha)
    colours.paste(shown.convert("RGB"), mask=shown.getchannel("A"))
    return colours


def _to_8_bit(picture: Image.Image) -> Array:
    """Scale samples of 16 or 32 bits or floats to uint8 [H, W], 0..255. 16-bit modes use their full range."""
    if not picture.mode.startswith("I;16"):
        return scaled((picture.height, picture.width), lambda: _blocks(picture), floats=picture.mode == "F")
    result = np.empty((picture.height, picture.width), np.uint8)
    for top, samples in _blocks(picture):
        result[top : top + len(samples)] = (samples.astype(np.uint32) + 128) // 257
    return result


def _blocks(picture: Image.Image) -> Iterator[tuple[int, Array]]:
    """The rows of a picture in blocks of about a megabyte: the number of the first row, and the samples.

    They are [rows, W], or [rows, W, channels] where a pixel has several.
    """
    rows = rows_per_block(picture.width)
    for top in range(0, picture.height, rows):
        yield top, np.asarray(picture.crop((0, top, picture.width, min(top + rows, picture.height))))


def _finite(samples: Array) -> Array:
    """The samples as float64. NaN and infinities are 0."""
    return np.nan_to_num(samples.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
