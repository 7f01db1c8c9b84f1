"""Encodes segmentation maps as masks of the size of the picture: palette PNG, COCO run lengths, confidence PNG.

In: a map over the model input, and the geometry that places it in the picture. Out: bytes, and the area of each class.
Never sees protobuf or cards.

A picture may have tens of millions of pixels. Run lengths and areas are computed on the model's own map, so their cost
grows with the width of the picture, not with its area. Masks are compressed scanline by scanline, so their memory grows
with the width too. The time of PNGs grows with the area: about 5 ms per million pixels for a mask, 10 ms for a
confidence map.
"""

import math
import struct
import zlib
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from PIL import Image

from handlers.contract.frame import Array
from service.core.types import Geometry

OUTSIDE = 255  # class of the pixels that the model did not see
_REPEATED_BYTES = 2**20  # scanlines that repeat the one above are compressed in pieces of about this size


@dataclass(frozen=True, slots=True)
class _Axis:
    """One side of the picture: which pixels the map covers, and the cell of the map that each of them shows.

    The map covers the pixels from `start` to before `end`. Each pixel shows the cell whose centre is nearest.
    """

    side_px: int
    start: int
    end: int
    cells: Array  # int64 [end - start], index into the map
    count: int  # cells of the map along this side

    @classmethod
    def of(cls, side_px: int, low: float, high: float, count: int) -> "_Axis":
        start, end = _seen(side_px, low, high)
        centres = np.arange(start, end) + 0.5
        cells = np.floor((centres - low) * (count / (high - low))).astype(np.int64)
        return cls(side_px, start, end, np.clip(cells, 0, count - 1), count)

    def shown(self) -> Array:
        """Return the cell that each pixel shows, int64 [side_px]. It is `count` where the map does not reach."""
        shown = np.full(self.side_px, self.count)
        shown[self.start : self.end] = self.cells
        return shown

    def bands(self) -> tuple[list[int], list[int]]:
        """Return the bands of pixels that show the same cell, in order: the cell of each (see `shown`), its pixels."""
        shown = self.shown()
        starts = np.flatnonzero(np.diff(shown, prepend=-1))
        return shown[starts].tolist(), np.diff(starts, append=self.side_px).tolist()


def _seen(side_px: int, low: float, high: float) -> tuple[int, int]:
    """Return the first pixel whose centre lies in `low`..`high`, and the one after the last. Equal if there is none."""
    start = max(math.ceil(low - 0.5), 0)
    return start, max(min(math.ceil(high - 0.5), side_px), start)


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a map [h, w] over the model input lies in the picture. Make it with `of`."""

    x: _Axis
    y: _Axis

    @classmethod
    def of(cls, geometry: Geometry, shape: tuple[int, ...]) -> "Placement":
        """Place a map of `shape` (h, w) in the picture of `geometry`."""
        return cls(
            _Axis.of(geometry.width_px, geometry.x0, geometry.x1, shape[1]),
            _Axis.of(geometry.height_px, geometry.y0, geometry.y1, shape[0]),
        )

    def area_px(self, classes: Array) -> Array:
        """Return the number of picture pixels per class, float64 [256]. `classes` is uint8 [h, w].

        Pixels outside the map are not counted.
        """
        across = np.bincount(self.x.cells, minlength=classes.shape[1])
        down = np.bincount(self.y.cells, minlength=classes.shape[0])
        weights = np.outer(down, across).astype(np.float64)
        area: Array = np.bincount(classes.ravel(), weights.ravel(), minlength=256)
        return area


def mask_png(classes: Array, placement: Placement) -> bytes:
    """Encode a class map, uint8 [h, w], as a palette PNG of the size of the picture."""
    x, y = placement.x, placement.y
    line = np.full(1 + x.side_px, OUTSIDE, np.uint8)  # filter type, then one row of the picture
    line[0] = 0
    # PNG filter type 2 stores the difference to the row above. Repeated rows become zeros, which compress very fast.
    repeated = b"\x02" + bytes(x.side_px)
    at_once = max(1, _REPEATED_BYTES // len(repeated))
    packer = zlib.compressobj(1)
    packed = []
    for cell, count in zip(*y.bands(), strict=True):
        line[1 + x.start : 1 + x.end] = OUTSIDE if cell == classes.shape[0] else classes[cell, x.cells]
        packed.append(packer.compress(line.data))
        for done in range(1, count, at_once):
            packed.append(packer.compress(repeated * min(at_once, count - done)))
    packed.append(packer.flush())
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            _png_chunk(b"IHDR", struct.pack(">IIBBBBB", x.side_px, y.side_px, 8, 3, 0, 0, 0)),
            _png_chunk(b"PLTE", _PALETTE),
            _png_chunk(b"IDAT", b"".join(packed)),
            _png_chunk(b"IEND", b""),
        ]
    )


def _png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(body, zlib.crc32(kind)))


def _voc_palette() -> bytes:
    """Return the colours of PASCAL VOC, 256 times RGB. The bits of the index go to R, G and B in turn.

    The colour of `OUTSIDE` is light gray.
    """
    index = np.arange(256)
    colours = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            colours[:, channel] |= (((index >> (3 * bit + channel)) & 1) << (7 - bit)).astype(np.uint8)
    colours[OUTSIDE] = 224
    return colours.tobytes()


_PALETTE = _voc_palette()


def confidence_png(confidence: Array, geometry: Geometry) -> bytes:
    """Encode a confidence map, uint8 [h, w], as a gray PNG of the size of the picture.

    The map is resized with bilinear interpolation. Pixels that the model did not see are 0.
    """
    rows, columns = confidence.shape
    left, right = _seen(geometry.width_px, geometry.x0, geometry.x1)
    top, bottom = _seen(geometry.height_px, geometry.y0, geometry.y1)
    picture = Image.new("L", (geometry.width_px, geometry.height_px), 0)
    if left < right and top < bottom:
        x_scale = columns / (geometry.x1 - geometry.x0)
        y_scale = rows / (geometry.y1 - geometry.y0)
        box = (  # the pixels that the model saw, in cells of the map
            max((left - geometry.x0) * x_scale, 0.0),
            max((top - geometry.y0) * y_scale, 0.0),
            min((right - geometry.x0) * x_scale, columns),
            min((bottom - geometry.y0) * y_scale, rows),
        )
        seen = Image.fromarray(np.ascontiguousarray(confidence))
        picture.paste(seen.resize((right - left, bottom - top), Image.Resampling.BILINEAR, box=box), (left, top))
    buffer = BytesIO()
    picture.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def rle_by_class(classes: Array, placement: Placement, present: list[int]) -> dict[int, bytes]:
    """Encode each class in `present` as COCO's compressed run lengths over the picture, column by column.

    `classes` is uint8 [h, w]. Returns the encoded counts by class.
    """
    x, y = placement.x, placement.y
    height = y.side_px
    # Only the rows and columns of the map that the picture shows, in bands: uint8 [columns shown, bands].
    rows, band_px = map(np.array, y.bands())
    framed = np.pad(classes, ((0, 1), (0, 1)), constant_values=OUTSIDE)
    columns_shown, shown = np.unique(x.shown(), return_inverse=True)
    columns = framed[rows[None, :], columns_shown[:, None]]
    # Runs of equal class within each column: start, length, class.
    breaks = np.ones(columns.shape, bool)
    breaks[:, 1:] = columns[:, 1:] != columns[:, :-1]
    column, band = np.nonzero(breaks)
    run_start = column * height + (np.cumsum(band_px) - band_px)[band]  # columns of `height` pixels, one after another
    run_length = np.diff(run_start, append=len(columns) * height)
    run_class = columns[breaks]
    runs_of_column = np.count_nonzero(breaks, axis=1)
    first_run = np.cumsum(runs_of_column) - runs_of_column
    # The columns of the picture are repetitions of these. List the runs of all picture columns in order.
    repeats = runs_of_column[shown]
    run = np.arange(repeats.sum()) + np.repeat(first_run[shown] - (np.cumsum(repeats) - repeats), repeats)
    start = run_start[run] + np.repeat((np.arange(x.side_px) - shown) * height, repeats)  # flat index into the picture
    end = start + run_length[run]
    label = run_class[run]
    encoded: dict[int, bytes] = {}
    for wanted in present:
        mine = label == wanted
        starts, ends = start[mine], end[mine]
        joined = starts[1:] == ends[:-1]  # a run that continues at the top of the next column
        starts = starts[np.concatenate([[True], ~joined])]
        ends = ends[np.concatenate([~joined, [True]])]
        edges = np.empty(2 * len(starts) + 1, np.int64)
        edges[0:-1:2], edges[1::2], edges[-1] = starts, ends, height * x.side_px
        counts = np.diff(edges, prepend=0)  # zeros, ones, zeros, ...
        encoded[wanted] = _rle_compressed(counts if counts[-1] else counts[:-1])
    return encoded


def _rle_compressed(counts: Array) -> bytes:
    """Encode run lengths, int64 [n], as pycocotools does (maskApi.c, rleToString).

    From the fourth count on, the difference to the count two before is encoded. Each character is 48 plus 5 bits of the
    value, lowest bits first, plus 32 if more characters follow. Bit 4 of the last character is the sign.
    """
    values = counts.copy()
    values[3:] -= counts[1:-2]
    digits = []
    follows = []
    rest = values
    while True:
        digit = rest & 31
        rest = rest >> 5
        more = np.where(digit & 16, rest != -1, rest != 0)
        digits.append((digit + 48 + 32 * more).astype(np.uint8))
        follows.append(more)
        if not more.any():
            break
    # bool [values, digits]: a digit is written if it is the first one, or if all digits before it have the flag 32.
    written = np.ones((len(values), len(digits)), bool)
    for place in range(1, len(digits)):
        written[:, place] = written[:, place - 1] & follows[place - 1]
    return np.stack(digits, axis=1)[written].tobytes()
