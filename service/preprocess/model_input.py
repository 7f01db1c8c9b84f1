"""From an upright picture to the model input: resize, crop, pad.

In: an `Upright` picture, the input size and the preprocessing of the model's card. Out: uint8 pixels of the input size,
and where they lie in the picture. Never reads encoded bytes.
"""

import math
from dataclasses import replace

import cv2
import numpy as np
from PIL import Image

from handlers.contract.card import InputSize, Preprocess
from handlers.contract.frame import Array
from service.core.types import Geometry
from service.preprocess.memory import WHOLE_PX
from service.preprocess.upright import Upright

# OpenCV starts no threads of its own: as many pictures are decoded at once as there are decoding threads.
cv2.setNumThreads(1)

_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def resized_sides(width: int, height: int, size: InputSize, preprocess: Preprocess) -> tuple[int, int]:
    """(width, height) in pixels of the whole upright picture after the resize, before the crop."""
    short_px = preprocess.shorter_side_px
    if preprocess.crop_share is not None:  # as timm's ResizeKeepRatio
        covered = (math.floor(size.width / preprocess.crop_share), math.floor(size.height / preprocess.crop_share))
        ratio = min(width / covered[0], height / covered[1])
        return round(width / ratio), round(height / ratio)
    if short_px is None:
        return size.width, size.height
    # The long side is truncated, as torchvision and transformers do.
    if width <= height:
        return short_px, int(short_px * height / width)
    return int(short_px * width / height), short_px


def to_input(upright: Upright, size: InputSize, preprocess: Preprocess) -> tuple[Array, tuple[int, int], Geometry]:
    """Resize and crop. The pixels are uint8 (h, w, 3), h and w at most those of the input, in any memory layout.

    They are smaller than the input if the resized picture is. The two numbers are the column and row of the input where
    they begin. The geometry is that of the whole input. The array may be read-only.
    """
    width, height = upright.width_px, upright.height_px
    shown = (0.0, 0.0, float(width), float(height))  # what is resized, in pixels of the picture
    if not preprocess.antialias:
        upright, shown = _whole_samples(upright)
    resized_width, resized_height = resized_sides(width, height, size, preprocess)
    # 0 in mode squash, negative if the input is larger than the resized picture
    left = _crop_offset(resized_width - size.width, preprocess)
    top = _crop_offset(resized_height - size.height, preprocess)
    # The crop, in pixels of the resized picture.
    cut = (max(left, 0), max(top, 0), min(left + size.width, resized_width), min(top + size.height, resized_height))
    cut_size = (cut[2] - cut[0], cut[3] - cut[1])
    x0, y0, x1, y1 = upright.box
    x_scale, y_scale = (x1 - x0) / resized_width, (y1 - y0) / resized_height
    source = (x0 + cut[0] * x_scale, y0 + cut[1] * y_scale, x0 + cut[2] * x_scale, y0 + cut[3] * y_scale)
    # Of a picture that would become very long, such as one of 1 x 10000 pixels, only the crop is resized. Up to a few
    # levels differ from resizing all, because Pillow may take the two axes in another order.
    wasteful = cut_size != (resized_width, resized_height) and resized_width * resized_height > WHOLE_PX
    if isinstance(upright.decoded, np.ndarray) and upright.size == (resized_width, resized_height):
        pixels = _in_colour(upright.decoded[cut[1] : cut[3], cut[0] : cut[2]])
    elif not preprocess.antialias:
        pixels = _two_taps(upright, None if wasteful else (resized_width, resized_height), cut, source)
    else:
        image, method = upright.as_image(), _FILTERS[preprocess.interpolation]
        if not wasteful:
            resized = image.resize((resized_width, resized_height), method, box=upright.box).crop(cut)
        else:
            width_limit, height_limit = image.size
            within = (max(source[0], 0), max(source[1], 0), min(source[2], width_limit), min(source[3], height_limit))
            resized = image.resize(cut_size, method, box=within)
        pixels = np.asarray(resized.convert("RGB"))
    x_step, y_step = (shown[2] - shown[0]) / resized_width, (shown[3] - shown[1]) / resized_height
    geometry = Geometry(
        width_px=width,
        height_px=height,
        x0=shown[0] + left * x_step,
        y0=shown[1] + top * y_step,
        x1=shown[0] + (left + size.width) * x_step,
        y1=shown[1] + (top + size.height) * y_step,
    )
    return pixels, (max(-left, 0), max(-top, 0)), geometry


def placed(pixels: Array, size: InputSize, corner: tuple[int, int], into: Array | None) -> Array:
    """Put `pixels` (h, w, 3) into a black input at `corner` (column, row): uint8 (height, width, 3), contiguous.

    The input is `into`, or a new array if that is None. A new array may share its memory with `pixels`.
    """
    height, width, _ = pixels.shape
    if (height, width) == (size.height, size.width):
        if into is None:
            return np.ascontiguousarray(pixels)
        np.copyto(into, pixels)
        return into
    # As torchvision and transformers pad a crop that is larger than the picture.
    padded = np.empty((size.height, size.width, 3), np.uint8) if into is None else into
    padded[...] = 0
    left, top = corner
    padded[top : top + height, left : left + width] = pixels
    return padded


def _crop_offset(margin_px: int, preprocess: Preprocess) -> int:
    """Pixels that are cut on the left or above. Negative: pixels that are padded there."""
    if margin_px < 0 and preprocess.crop_offset == "round":
        return -(-margin_px // 2)  # torchvision pads the smaller half on the left and above
    return margin_px // 2 if preprocess.crop_offset == "floor" else round(margin_px / 2)


def _whole_samples(upright: Upright) -> tuple[Upright, tuple[float, float, float, float]]:
    """The picture without the row and column that reach past it, and the rectangle that is left, in its pixels.

    OpenCV resizes only whole images.
    """
    x0, y0, x1, y1 = upright.box
    whole = (math.ceil(x0), math.ceil(y0), math.floor(x1), math.floor(y1))
    if whole == (0, 0, *upright.size):
        return upright, (0.0, 0.0, float(upright.width_px), float(upright.height_px))
    x_step, y_step = upright.width_px / (x1 - x0), upright.height_px / (y1 - y0)
    shown = (
        (whole[0] - x0) * x_step,
        (whole[1] - y0) * y_step,
        (whole[2] - x0) * x_step,
        (whole[3] - y0) * y_step,
    )
    image = upright.as_image().crop(whole)
    box = (0.0, 0.0, float(image.width), float(image.height))
    return replace(upright, decoded=image, box=box), shown


def _two_taps(
    upright: Upright,
    resized: tuple[int, int] | None,
    cut: tuple[int, int, int, int],
    source: tuple[float, float, float, float],
) -> Array:
    """Bilinear from the two nearest samples at any scale, without antialiasing: uint8 (height, width, 3).

    OpenCV resizes the whole image to `resized` (width, height), and `cut` is taken from that. If `resized` is None,
    because it would be much larger than the crop, Pillow transforms the rectangle `source` of the image alone. Both
    results differ by at most one in 255.
    """
    if resized is None:
        size = (cut[2] - cut[0], cut[3] - cut[1])
        part = upright.as_image().transform(size, Image.Transform.EXTENT, source, Image.Resampling.BILINEAR)
        return np.asarray(part.convert("RGB"))
    pixels = cv2.resize(upright.as_array(), resized, interpolation=cv2.INTER_LINEAR)
    return _in_colour(pixels[cut[1] : cut[3], cut[0] : cut[2]])


def _in_colour(pixels: Array) -> Array:
    """Pixels uint8 [H, W, 3] or grey ones [H, W], as [H, W, 3]. No copy."""
    return pixels if pixels.ndim == 3 else np.broadcast_to(pixels[..., None], (*pixels.shape, 3))
