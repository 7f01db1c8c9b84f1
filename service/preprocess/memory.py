"""Memory of decoding: an opened picture in, the bytes that decoding it takes out; and the budget of all threads.

Pillow keeps pixels in 1, 2 or 4 bytes. The other figures were measured with Pillow's own wheels. Decodes no picture.
"""

import math
import threading
from collections import deque
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Protocol

from PIL import BmpImagePlugin, ImageFile, JpegImagePlugin, TiffImagePlugin, WebPImagePlugin

_WEBP_BYTES = 16  # libwebp: the frame, the canvas and the one before; then a copy for Pillow. Per pixel.
_COEFFICIENT_BYTES = 2  # JPEGs of several scans: libjpeg holds the coefficients of the whole picture
_COMPOSITED_BYTES = 13  # RGBA, RGB and the colour below, and alpha. Per pixel.
_ARRAY_BYTES = 3  # an RGB image as a numpy array. Per pixel.
_WIDEST_RESIZE_PX = 4096  # a wider model input is cropped from the picture before it is resized

# A resized picture of up to this many pixels is made whole before it is cropped.
WHOLE_PX = 2**22

_TILE_SIDES = (TiffImagePlugin.TILEWIDTH, 323)  # tags TileWidth, TileLength


class TiffHeader(Protocol):
    """What is needed of a TIFF: Pillow's picture, or the header of one that Pillow does not read."""

    @property
    def tag_v2(self) -> Any:
        """Tags to values."""

    @property
    def width(self) -> int:
        """Pixels."""

    @property
    def height(self) -> int:
        """Pixels."""


class DeepHeader(TiffHeader, Protocol):
    """The header of a TIFF that OpenCV decodes."""

    @property
    def decode_bytes(self) -> int:
        """Memory of the decoded pixels and of their copies, in bytes."""


def decode_bytes(
    picture: ImageFile.ImageFile,
    *,
    full_px: int,
    scans: int,
    rotated: bool,
    as_array: bool,
    composited: bool,
    target: tuple[int, int],
) -> int:
    """Memory that decoding takes at its peak, in bytes, from the header alone.

    `picture` is opened, and drafted if it is a JPEG. `full_px`: its pixels before that. `scans`: those of a JPEG at
    most. `rotated`: it is turned upright afterwards. `as_array`: numpy resizes it, not Pillow. `composited`: it is laid
    on a colour. `target`: width and height after the resize.
    """
    pixels = math.prod(picture.size)
    stored = _stored_bytes(picture.mode)
    per_pixel = stored + _converted_bytes(picture.mode)
    extra = 0
    if isinstance(picture, WebPImagePlugin.WebPImageFile):
        per_pixel = max(per_pixel, _WEBP_BYTES)
    elif isinstance(picture, BmpImagePlugin.BmpImageFile):
        per_pixel += 2  # run lengths: two copies of the decoded bytes
    elif isinstance(picture, JpegImagePlugin.JpegImageFile):
        if scans > 1:
            extra = _coefficient_bytes([(across, down) for _, across, down, _ in picture.layer], full_px)
    elif isinstance(picture, TiffImagePlugin.TiffImageFile):
        extra = 2 * math.prod(block_sides(picture)) * sample_bytes(picture)
    if composited:
        per_pixel += _COMPOSITED_BYTES
    if rotated:
        per_pixel += max(stored, 1 if _becomes_grey(picture.mode) else 4)
    if as_array:  # by then only the upright picture is left
        per_pixel = max(per_pixel, 4 + _ARRAY_BYTES)
    return pixels * per_pixel + extra + _resize_bytes(picture.size, target)


def plain_jpeg_bytes(
    size: tuple[int, int], factors: Sequence[tuple[int, int]], *, scans: int, as_array: bool, target: tuple[int, int]
) -> int:
    """As `decode_bytes`, for a JPEG that Pillow has not opened: (width, height), and (across, down) of each colour."""
    pixels = math.prod(size)
    per_pixel = max(1 if len(factors) == 1 else 4, 4 + _ARRAY_BYTES if as_array else 0)
    extra = _coefficient_bytes(factors, pixels) if scans > 1 else 0
    return pixels * per_pixel + extra + _resize_bytes(size, target)


def deep_bytes(header: DeepHeader, *, as_array: bool, target: tuple[int, int]) -> int:
    """As `decode_bytes`, for a TIFF that OpenCV decodes."""
    extra = 2 * math.prod(block_sides(header)) * sample_bytes(header)
    arrays = header.width * header.height * (4 + _ARRAY_BYTES) if as_array else 0
    return max(header.decode_bytes, arrays) + extra + _resize_bytes((header.width, header.height), target)


def _resize_bytes(size: tuple[int, int], target: tuple[int, int]) -> int:
    """Bytes of the picture that is resized along one axis, and along both. Sides are (width, height)."""
    one_axis = min(max(target), _WIDEST_RESIZE_PX) * max(size)
    return 4 * (one_axis + min(math.prod(target), WHOLE_PX))


def block_sides(picture: TiffHeader) -> tuple[int, int]:
    """(width, height) in pixels of the strips or tiles of a TIFF. libtiff decodes them whole."""
    tags = picture.tag_v2
    width, height = (int(tags.get(tag) or 0) for tag in _TILE_SIDES)
    if width and height:
        return width, height
    stored_width, stored_height = int(tags.get(256) or picture.width), int(tags.get(257) or picture.height)
    return stored_width, min(int(tags.get(TiffImagePlugin.ROWSPERSTRIP) or stored_height), stored_height)


def sample_bytes(picture: TiffHeader) -> int:
    """Bytes per pixel of a TIFF's strips or tiles."""
    bits = picture.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE) or (1,)
    samples = int(picture.tag_v2.get(TiffImagePlugin.SAMPLESPERPIXEL) or 1)
    return math.ceil(max(map(int, bits)) * max(samples, len(bits)) / 8)


def _coefficient_bytes(factors: Sequence[tuple[int, int]], full_px: int) -> int:
    """Bytes of the coefficients of the whole JPEG, whatever the scale that it is decoded at."""
    most = max(across for across, _ in factors) * max(down for _, down in factors)
    return math.ceil(full_px * _COEFFICIENT_BYTES * sum(across * down for across, down in factors) / most)


def _stored_bytes(mode: str) -> int:
    if mode in {"1", "L", "P"}:
        return 1
    return 2 if mode.startswith("I;16") else 4


def _converted_bytes(mode: str) -> int:
    """Bytes per pixel of the RGB or grey image that `upright` makes from an image of this mode."""
    if mode in {"L", "RGB"}:
        return 0
    return 1 if _becomes_grey(mode) else 4


def _becomes_grey(mode: str) -> bool:
    return mode.startswith(("I", "F")) or mode in {"1", "L", "LA"}


class DecodeBudget:
    """Memory for decoding, shared by all decoding threads. Threads get their share in the order in which they ask."""

    def __init__(self, total_bytes: int) -> None:
        self._total = total_bytes
        self._used = 0
        self._waiting: deque[object] = deque()
        self._changed = threading.Condition()

    @property
    def used_bytes(self) -> int:
        """What is taken now."""
        return self._used

    def share(self) -> "Share":
        """Return an empty share, to be used in a `with` statement."""
        return Share(self)

    def take(self, count: int) -> None:
        """Wait until `count` bytes are free, and take them. More than there are in all count as all."""
        ticket = object()
        with self._changed:
            self._waiting.append(ticket)
            self._changed.wait_for(
                lambda: self._waiting[0] is ticket and (not self._used or self._used + count <= self._total)
            )
            self._waiting.popleft()
            self._used += count
            self._changed.notify_all()

    def give_back(self, count: int) -> None:
        """Give `count` bytes back that were taken."""
        with self._changed:
            self._used -= count
            self._changed.notify_all()


class Share:
    """The memory of one decode. It is given back at the end of the `with` statement."""

    def __init__(self, budget: DecodeBudget) -> None:
        self._budget = budget
        self._bytes = 0

    def reserve(self, count: int) -> None:
        """Wait until `count` bytes are free, and take them. At most once: a thread that holds some must not wait."""
        self._budget.take(count)
        self._bytes += count

    def __enter__(self) -> "Share":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bytes:
            self._budget.give_back(self._bytes)
