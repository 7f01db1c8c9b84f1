"""Decoding: encoded bytes in, a uint8 RGB array of the model's input size out, and its place in the picture.

Accepts JPEG, PNG, WebP, BMP, GIF (first frame) and TIFF (first page). The byte limit is checked before parsing, the
pixel limit from the header before decoding. Whatever is wrong with the bytes is an `InvalidImage` error. Never touches
a file, and never decodes a truncated picture in part.
"""

from collections.abc import Callable

from handlers.contract.card import InputSize, Preprocess
from handlers.contract.frame import Array
from service.core.types import Decoded
from service.preprocess.formats import format_of
from service.preprocess.limits import Limits, check_bytes
from service.preprocess.model_input import placed, resized_sides, to_input
from service.preprocess.upright import read


def decode(
    image: bytes,
    *,
    size: InputSize,
    preprocess: Preprocess,
    limits: Limits,
    allocate: Callable[[], Array | None] = lambda: None,
    reserve: Callable[[int], None] = lambda _bytes: None,
) -> Decoded:
    """Decode a picture and bring it to the model's input. Raises an `InvalidImage` error.

    `allocate` is called when the pixels exist. It gives the array to put them into, uint8 (height, width, 3) of the
    input size, or None for a new one. `reserve` is called with the bytes of memory that decoding takes, before it takes
    them. They are free again when this function returns.
    """
    check_bytes(image, limits)
    name = format_of(image, limits.formats)
    upright = read(
        image,
        name,
        lambda width, height: resized_sides(width, height, size, preprocess),
        preprocess,
        limits,
        reserve=reserve,
    )
    pixels, corner, geometry = to_input(upright, size, preprocess)
    return Decoded(pixels=placed(pixels, size, corner, allocate()), geometry=geometry, format=name)
