"""Results: the row of one picture and its geometry in, a typed reply in the picture's own pixels out.

Also checks the options of requests, so that the API can refuse them before any work is done. Knows what the three
tasks' outputs mean, and how their coordinates lie in the picture; never sees encoded pictures, batches or the backend.
A row that contradicts its card is the model's fault, never the caller's: `BackendFault`.

Masks have the size of the original picture, which may be 100 million pixels. Everything is vectorised; run lengths and
areas are computed on the model's own map, so their cost grows with the picture's width, not its area. PNGs grow with
the area: some 5 ms per million pixels for a mask, 10 for a confidence map.
"""

import math
import struct
import zlib
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from PIL import Image

from handlers.frame import Array
from model_store.card import Card, WeightsState
from service.errors import BackendFault, FieldOutOfRange
from service.pb.mobilevision.v1 import vision_pb2
from service.work import Decoded, Geometry, Row

DEFAULT_TOP_K = 5
MAX_TOP_K = 100
DEFAULT_SCORE_THRESHOLD = 0.3
DEFAULT_MAX_DETECTIONS = 100
MAX_MAX_DETECTIONS = 200
OUTSIDE = 255  # class map value of pixels the model did not see

WEIGHTS_STATES = {
    WeightsState.RANDOM: vision_pb2.WEIGHTS_STATE_RANDOM,
    WeightsState.DEMO: vision_pb2.WEIGHTS_STATE_DEMO,
    WeightsState.CUSTOM: vision_pb2.WEIGHTS_STATE_CUSTOM,
    WeightsState.OFFICIAL: vision_pb2.WEIGHTS_STATE_OFFICIAL,
}
_ENCODINGS = {
    vision_pb2.MASK_ENCODING_UNSPECIFIED: vision_pb2.MASK_ENCODING_PNG,
    vision_pb2.MASK_ENCODING_PNG: vision_pb2.MASK_ENCODING_PNG,
    vision_pb2.MASK_ENCODING_COCO_RLE: vision_pb2.MASK_ENCODING_COCO_RLE,
}


def checked_top_k(request: vision_pb2.ClassifyRequest) -> int:
    """`top_k` of a request, or its default. Raises `FieldOutOfRange`."""
    return _in_range("top_k", request.top_k, MAX_TOP_K) if request.HasField("top_k") else DEFAULT_TOP_K


def checked_score_threshold(request: vision_pb2.DetectRequest) -> float:
    """`score_threshold` of a request, or its default. Raises `FieldOutOfRange`."""
    if not request.HasField("score_threshold"):
        return DEFAULT_SCORE_THRESHOLD
    if not 0.0 <= request.score_threshold <= 1.0:  # refuses not-a-number as well
        raise FieldOutOfRange(
            f"score_threshold is {request.score_threshold}; it must be within 0 to 1",
            metadata={"field": "score_threshold"},
        )
    return request.score_threshold


def checked_max_detections(request: vision_pb2.DetectRequest) -> int:
    """`max_detections` of a request, or its default. Raises `FieldOutOfRange`."""
    if not request.HasField("max_detections"):
        return DEFAULT_MAX_DETECTIONS
    return _in_range("max_detections", request.max_detections, MAX_MAX_DETECTIONS)


def checked_mask_encoding(request: vision_pb2.SegmentRequest) -> vision_pb2.MaskEncoding.ValueType:
    """`mask_encoding` of a request, or its default. Raises `FieldOutOfRange`."""
    encoding = _ENCODINGS.get(request.mask_encoding)
    if encoding is None:
        raise FieldOutOfRange(
            f"mask_encoding is {request.mask_encoding}; this server knows 1 (PNG) and 2 (COCO RLE)",
            metadata={"field": "mask_encoding"},
        )
    return encoding


def _in_range(field: str, value: int, most: int) -> int:
    if not 1 <= value <= most:
        raise FieldOutOfRange(f"{field} is {value}; it must be within 1 to {most}", metadata={"field": field})
    return value


def model_used(card: Card) -> vision_pb2.ModelUsed:
    """The model as it answered."""
    return vision_pb2.ModelUsed(name=card.name, version=card.version, weights=WEIGHTS_STATES[card.weights.state])


def classify_response(card: Card, decoded: Decoded, row: Row, *, top_k: int) -> vision_pb2.ClassifyResponse:
    """`scores` f32 [K], sorted, and `labels` i32 [K] to named labels."""
    scores = _output(card, row, "scores", 1)
    labels = _output(card, row, "labels", 1)
    return vision_pb2.ClassifyResponse(
        model=model_used(card),
        picture=_picture(decoded),
        labels=[
            _label(card, int(label), float(score)) for label, score in zip(labels[:top_k], scores[:top_k], strict=True)
        ],
    )


def detect_response(
    card: Card, decoded: Decoded, row: Row, *, score_threshold: float, max_detections: int
) -> vision_pb2.DetectResponse:
    """`boxes` f32 [M, 4] in 0..1 of the model input, `scores` f32 [M], `labels` i32 [M], `counts` i32 to detections."""
    count = int(_output(card, row, "counts", 0))
    scores = _output(card, row, "scores", 1)[:count]
    labels = _output(card, row, "labels", 1)[:count]
    boxes = _in_picture(_output(card, row, "boxes", 2)[:count], decoded.geometry)
    # What a wrong aspect ratio or a crop pushed over the edge is empty once clipped. A comparison with NaN is false.
    keep = (scores >= np.float32(score_threshold)) & (boxes[:, 0] < boxes[:, 2]) & (boxes[:, 1] < boxes[:, 3])
    order = np.flatnonzero(keep)
    order = order[np.argsort(-scores[order], kind="stable")][:max_detections]
    detections = [
        vision_pb2.Detection(
            box=vision_pb2.Box(x_min=x_min, y_min=y_min, x_max=x_max, y_max=y_max), label=_label(card, label, score)
        )
        for (x_min, y_min, x_max, y_max), label, score in zip(
            boxes[order].tolist(), labels[order].tolist(), scores[order].tolist(), strict=True
        )
    ]
    return vision_pb2.DetectResponse(model=model_used(card), picture=_picture(decoded), detections=detections)


def segment_response(
    card: Card,
    decoded: Decoded,
    row: Row,
    *,
    encoding: vision_pb2.MaskEncoding.ValueType,
    include_confidence: bool,
) -> vision_pb2.SegmentResponse:
    """`classes` u8 [h, w], and `confidence` u8 [h', w'] where asked for, to masks of the picture's size."""
    classes = _output(card, row, "classes", 2)
    geometry = decoded.geometry
    placement = _Placement.of(geometry, classes.shape)
    area = placement.area_px(classes)  # float64 [256], pixels
    present = [int(label) for label in np.argsort(-area, kind="stable") if area[label] > 0 and label != OUTSIDE]
    as_rle = encoding == vision_pb2.MASK_ENCODING_COCO_RLE
    counts = _rle_by_class(classes, placement, present) if as_rle else {}
    confidence = _output(card, row, "confidence", 2) if include_confidence else None
    picture_px = geometry.width_px * geometry.height_px
    return vision_pb2.SegmentResponse(
        model=model_used(card),
        picture=_picture(decoded),
        classes=[
            vision_pb2.SegmentedClass(
                id=label,
                name=_name(card, label),
                area_fraction=area[label] / picture_px,
                rle_counts=counts.get(label, b""),
            )
            for label in present
        ],
        mask_png=b"" if as_rle else _mask_png(classes, placement),
        confidence_png=b"" if confidence is None else _confidence_png(confidence, geometry),
    )


def _picture(decoded: Decoded) -> vision_pb2.Picture:
    geometry = decoded.geometry
    return vision_pb2.Picture(width=geometry.width_px, height=geometry.height_px, format=decoded.format)


def _name(card: Card, label: int) -> str:
    if not 0 <= label < len(card.labels):
        raise BackendFault(f"model {card.name} answered label {label}; its card names {len(card.labels)} labels")
    return card.labels[label]


def _label(card: Card, label: int, score: float) -> vision_pb2.Label:
    return vision_pb2.Label(id=label, name=_name(card, label), score=score)


def _output(card: Card, row: Row, name: str, dimensions: int) -> Array:
    array = row.outputs.get(name)
    if array is None or array.ndim != dimensions:
        found = "is missing" if array is None else f"has shape {array.shape}"
        raise BackendFault(f"output {name!r} of model {card.name} {found}; expected {dimensions} dimensions")
    return array


def _in_picture(boxes: Array, geometry: Geometry) -> Array:
    """Boxes in 0..1 of the model input to float32 pixels of the picture, clipped to it."""
    scale = np.array([geometry.x1 - geometry.x0, geometry.y1 - geometry.y0] * 2)
    shift = np.array([geometry.x0, geometry.y0] * 2)
    upper = np.array([geometry.width_px, geometry.height_px] * 2)
    in_picture: Array = np.clip(boxes.astype(np.float64) * scale + shift, 0.0, upper).astype(np.float32)
    return in_picture


@dataclass(frozen=True, slots=True)
class _Axis:
    """Which cell of a map the pixels `start` to `end` along one side of the picture show, by nearest centre."""

    side_px: int
    start: int
    end: int
    cells: Array  # int64 [end - start]

    @classmethod
    def of(cls, side_px: int, low: float, high: float, count: int) -> "_Axis":
        start, end = _seen(side_px, low, high)
        centres = np.arange(start, end) + 0.5
        cells = np.floor((centres - low) * (count / (high - low))).astype(np.int64)
        return cls(side_px, start, end, np.clip(cells, 0, count - 1))


def _seen(side_px: int, low: float, high: float) -> tuple[int, int]:
    """First and one past the last pixel whose centre lies in `low`..`high`; equal where there is none."""
    start = max(math.ceil(low - 0.5), 0)
    return start, max(min(math.ceil(high - 0.5), side_px), start)


@dataclass(frozen=True, slots=True)
class _Placement:
    """How a map [h, w] over the model input lies in the picture."""

    x: _Axis
    y: _Axis

    @classmethod
    def of(cls, geometry: Geometry, shape: tuple[int, ...]) -> "_Placement":
        return cls(
            _Axis.of(geometry.width_px, geometry.x0, geometry.x1, shape[1]),
            _Axis.of(geometry.height_px, geometry.y0, geometry.y1, shape[0]),
        )

    def area_px(self, classes: Array) -> Array:
        """Pixels of the picture per class, float64 [256]; those outside the map are not counted."""
        across = np.bincount(self.x.cells, minlength=classes.shape[1])
        down = np.bincount(self.y.cells, minlength=classes.shape[0])
        weights = np.outer(down, across).astype(np.float64)
        area: Array = np.bincount(classes.ravel(), weights.ravel(), minlength=256)
        return area


def _mask_png(classes: Array, placement: _Placement) -> bytes:
    """The class map as a palette PNG of the picture's size."""
    x, y = placement.x, placement.y
    # One row per row of the map that shows; all the picture's rows are repetitions of these.
    rows = np.full((classes.shape[0], x.side_px), OUTSIDE, np.uint8)
    rows[:, x.start : x.end] = classes[:, x.cells]
    # Filter type 2 (difference to the row above) turns repetitions into zeros, which cost next to nothing to compress.
    scanlines = np.zeros((y.side_px, 1 + x.side_px), np.uint8)
    scanlines[:, 0] = 2
    source = np.full(y.side_px, -1)
    source[y.start : y.end] = y.cells
    changes = np.flatnonzero(np.diff(source, prepend=-2))  # rows of the picture that differ from the one above
    scanlines[changes, 0] = 0
    blank = source[changes] < 0
    scanlines[changes, 1:] = np.where(blank[:, None], np.uint8(OUTSIDE), rows[source[changes]])
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            _png_chunk(b"IHDR", struct.pack(">IIBBBBB", x.side_px, y.side_px, 8, 3, 0, 0, 0)),
            _png_chunk(b"PLTE", _PALETTE),
            _png_chunk(b"IDAT", zlib.compress(scanlines.data, 1)),
            _png_chunk(b"IEND", b""),
        ]
    )


def _png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(body, zlib.crc32(kind)))


def _voc_palette() -> bytes:
    """PASCAL VOC's colours: the bits of the index dealt to R, G, B in turn. 255 is light gray: outside."""
    index = np.arange(256)
    colours = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            colours[:, channel] |= (((index >> (3 * bit + channel)) & 1) << (7 - bit)).astype(np.uint8)
    colours[OUTSIDE] = 224
    return colours.tobytes()


_PALETTE = _voc_palette()


def _confidence_png(confidence: Array, geometry: Geometry) -> bytes:
    """The confidence map, smoothly resized to the picture; 0 outside what the model saw."""
    rows, columns = confidence.shape
    left, right = _seen(geometry.width_px, geometry.x0, geometry.x1)
    top, bottom = _seen(geometry.height_px, geometry.y0, geometry.y1)
    picture = Image.new("L", (geometry.width_px, geometry.height_px), 0)
    if left < right and top < bottom:
        x_scale = columns / (geometry.x1 - geometry.x0)
        y_scale = rows / (geometry.y1 - geometry.y0)
        box = (  # the seen pixels, in cells of the map
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


def _rle_by_class(classes: Array, placement: _Placement, present: list[int]) -> dict[int, bytes]:
    """COCO's compressed run lengths of each class over the picture, column by column."""
    x, y = placement.x, placement.y
    height = y.side_px
    # The columns of the map at the picture's height, and last one column of "outside": uint8 [w + 1, height].
    columns = np.full((classes.shape[1] + 1, height), OUTSIDE, np.uint8)
    columns[:-1, y.start : y.end] = classes[y.cells].T
    # Runs of equal class within each of them: where, how long, what.
    breaks = np.ones(columns.shape, bool)
    breaks[:, 1:] = columns[:, 1:] != columns[:, :-1]
    run_start = np.flatnonzero(breaks)  # flat index into `columns`
    run_length = np.diff(run_start, append=columns.size)
    run_class = columns.ravel()[run_start]
    runs_of_column = np.count_nonzero(breaks, axis=1)
    first_run = np.cumsum(runs_of_column) - runs_of_column
    # The picture's columns are repetitions of those: list the runs of all of them in order.
    shown = np.full(x.side_px, classes.shape[1])
    shown[x.start : x.end] = x.cells
    repeats = runs_of_column[shown]
    run = np.arange(repeats.sum()) + np.repeat(first_run[shown] - (np.cumsum(repeats) - repeats), repeats)
    start = run_start[run] + np.repeat((np.arange(x.side_px) - shown) * height, repeats)  # flat index into the picture
    end = start + run_length[run]
    label = run_class[run]
    encoded: dict[int, bytes] = {}
    for wanted in present:
        mine = label == wanted
        starts, ends = start[mine], end[mine]
        joined = starts[1:] == ends[:-1]  # a run that goes on at the top of the next column
        starts = starts[np.concatenate([[True], ~joined])]
        ends = ends[np.concatenate([~joined, [True]])]
        edges = np.empty(2 * len(starts) + 1, np.int64)
        edges[0:-1:2], edges[1::2], edges[-1] = starts, ends, height * x.side_px
        counts = np.diff(edges, prepend=0)  # zeros, ones, zeros, ...
        encoded[wanted] = _rle_compressed(counts if counts[-1] else counts[:-1])
    return encoded


def _rle_compressed(counts: Array) -> bytes:
    """The text form of pycocotools (maskApi.c, rleToString): from the fourth on differences to the last but one.

    A character is 48 + 5 bits, lowest first, + 32 while more follow; bit 4 of the last one is the sign.
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
    # [values, digits]: a digit is written if it is the first, or if all before it said that more follow.
    written = np.ones((len(values), len(digits)), bool)
    for place in range(1, len(digits)):
        written[:, place] = written[:, place - 1] & follows[place - 1]
    return np.stack(digits, axis=1)[written].tobytes()
