"""The demo data set: shapes on textured, noisy backgrounds, drawn here, with exact masks and boxes.

In: (seed, split, index). Out: one `Scene`, the same on every call; nothing is read from disk. A picture is a
JPEG, as a client would send it, so training and scoring see the same pixels as serving.

The truth is exact: a pixel belongs to the topmost shape that covers at least half of it, and a box is the extent of the
visible pixels of its shape. A shape is not drawn where it would leave less than `MIN_VISIBLE` of another shape visible.
So every shape in the picture can be recognised, and every shape is annotated. Shapes have any colour that is lighter
than the ground. With darker colours too, a small network would need several times as many pictures to learn the same
shapes.
"""

import io
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from model_store import labels
from model_store.demo import shapes

LABELS = labels.read("demo_shapes")  # class i of a box or a picture; i + 1 in a class map, where 0 is background
BACKGROUND = 0
MIN_VISIBLE = 0.7  # of a shape's area
Split = Literal["train", "held_out"]
Kind = Literal["single", "scene"]

_SPLITS: dict[Split, int] = {"train": 0, "held_out": 1}
_KINDS: dict[Kind, int] = {"single": 0, "scene": 1}
_SIZES = ((320, 240), (400, 300), (480, 360), (480, 320), (384, 384), (360, 480), (240, 320), (640, 480))
_SCENE_SHAPES = (1, 5)  # least and most shapes that are tried in a scene
_SCENE_DIAMETER = (0.25, 0.60)  # of the shorter side
_SINGLE_DIAMETER = (0.40, 0.90)
_TRIES = 12  # places tried for one shape
_SUPERSAMPLE = 4  # per axis
_GROUND = (20.0, 110.0)  # of each channel, before texture and noise, of 0..255
_PAINT = (50.0, 255.0)
_MIN_CONTRAST = 60.0  # by which a shape is lighter than the ground, on the mean of the channels

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Shape:
    """One annotated shape.

    Attributes:
        label: index into `LABELS`.
        box: (x0, y0, x1, y1) of its visible pixels, in pixels of the picture; x1 and y1 are one past the last.
        visible: visible pixels, as a share of those with nothing in front of the shape.

    """

    label: int
    box: tuple[int, int, int, int]
    visible: float


@dataclass(frozen=True)
class Scene:
    """One picture and the truth about it.

    Attributes:
        jpeg: the picture, encoded.
        classes: uint8 [H, W], label + 1 of the visible shape of every pixel, 0 for the background.
        instances: uint8 [H, W], 1 + the position in `shapes`, 0 for the background.
        shapes: back to front.

    """

    jpeg: bytes
    classes: NDArray[np.uint8]
    instances: NDArray[np.uint8]
    shapes: tuple[Shape, ...]

    @property
    def label(self) -> int:
        """Label of the largest shape: the right class of the picture."""
        areas = [np.count_nonzero(self.instances == index + 1) for index in range(len(self.shapes))]
        return self.shapes[int(np.argmax(areas))].label

    def picture(self) -> Image.Image:
        """Decode the picture, RGB."""
        return Image.open(io.BytesIO(self.jpeg)).convert("RGB")


def draw(*, seed: int, split: Split, index: int, kind: Kind) -> Scene:
    """Draw picture `index` of a split.

    Args:
        seed: 0 or more; another seed is another data set.
        split: the two never share a random stream, whatever the seed.
        index: 0 or more. The label of a `single` picture is index modulo the number of labels, so that any run of
            pictures is balanced.
        kind: `single` shows one large shape, `scene` several that may overlap.

    """
    rng = np.random.default_rng([seed, _SPLITS[split], _KINDS[kind], index])
    width, height = _SIZES[rng.integers(len(_SIZES))]
    ground = rng.uniform(*_GROUND, 3)
    canvas = _background(rng, height, width, ground)
    instances = np.zeros((height, width), np.uint8)
    areas: list[int] = []
    found: list[int] = []
    if kind == "single":
        wanted = [index % len(LABELS)]
    else:
        wanted = rng.integers(len(LABELS), size=rng.integers(_SCENE_SHAPES[0], _SCENE_SHAPES[1] + 1)).tolist()
    for label in wanted:
        for _ in range(_TRIES):
            diameter = _diameter(rng, kind) * min(height, width)
            coverage, left, top = _coverage(rng, label, diameter, height, width)
            solid = coverage >= 0.5  # [h, w]
            region = (slice(top, top + solid.shape[0]), slice(left, left + solid.shape[1]))
            covered = instances.copy()
            covered[region][solid] = len(areas) + 1
            if _hides_too_much(covered, areas):
                continue
            paint = _paint(rng, solid.shape[0], solid.shape[1], ground)
            canvas[region] += coverage[:, :, None] * (paint - canvas[region])
            instances = covered
            areas.append(int(solid.sum()))
            found.append(label)
            break
    canvas += rng.standard_normal((height, width, 1), dtype=np.float32) * np.float32(rng.uniform(2, 12))
    quality = int(rng.integers(70, 96))
    buffer = io.BytesIO()
    Image.fromarray(canvas.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=quality)
    table = np.array([BACKGROUND, *(label + 1 for label in found)], np.uint8)
    return Scene(
        jpeg=buffer.getvalue(),
        classes=table[instances],
        instances=instances,
        shapes=tuple(_annotate(instances, i + 1, label, areas[i]) for i, label in enumerate(found)),
    )


def _diameter(rng: np.random.Generator, kind: Kind) -> float:
    """Fraction of the picture's shorter side; small ones as often as large ones, on a logarithmic scale."""
    low, high = _SINGLE_DIAMETER if kind == "single" else _SCENE_DIAMETER
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _annotate(instances: NDArray[np.uint8], number: int, label: int, area: int) -> Shape:
    mine = instances == number
    xs, ys = np.flatnonzero(mine.any(axis=0)), np.flatnonzero(mine.any(axis=1))
    box = (int(xs[0]), int(ys[0]), int(xs[-1]) + 1, int(ys[-1]) + 1)
    return Shape(label=label, box=box, visible=int(mine.sum()) / area)


def _hides_too_much(covered: NDArray[np.uint8], areas: list[int]) -> bool:
    """Whether any earlier shape would keep less than `MIN_VISIBLE` of its pixels."""
    left = np.bincount(covered.ravel(), minlength=len(areas) + 1)
    return any(left[i + 1] < MIN_VISIBLE * area for i, area in enumerate(areas))


def _coverage(
    rng: np.random.Generator, label: int, diameter: float, height: int, width: int
) -> tuple[Floats, int, int]:
    """Turn and place a shape wholly inside the picture.

    Answers the share of each pixel it covers, float32 [h, w], and the corner (left, top). The map is cut to the shape's
    extent, and the corner is where that starts in the picture.
    """
    angle = rng.uniform(0, 2 * np.pi)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    rings = [outline @ rotation.T * diameter / 2 for outline in shapes.OUTLINES[LABELS[label]]]  # [P, 2] each
    low, high = rings[0].min(axis=0), rings[0].max(axis=0)  # the first outline holds the others
    room = np.array([width, height]) - (high - low) - 2
    corner = 1 + rng.uniform(0, 1, 2) * np.maximum(room, 0)  # of the extent, in the picture
    left, top = (int(value) for value in np.floor(corner))
    extent_x, extent_y = (int(value) for value in np.ceil(corner + high - low) - np.floor(corner))
    mask = Image.new("L", (extent_x * _SUPERSAMPLE, extent_y * _SUPERSAMPLE))
    pen = ImageDraw.Draw(mask)
    for index, ring in enumerate(rings):
        points = (ring - low + corner - (left, top)) * _SUPERSAMPLE - 0.5
        pen.polygon([(float(x), float(y)) for x, y in points], fill=255 if index == 0 else 0)
    small = mask.reduce(_SUPERSAMPLE)
    coverage = np.asarray(small, np.float32)[: height - top, : width - left] / np.float32(255)
    return coverage, left, top


def _colour(rng: np.random.Generator, ground: NDArray[np.float64]) -> NDArray[np.float64]:
    """Draw a colour that is lighter than the ground."""
    while True:
        colour = rng.uniform(*_PAINT, 3)
        if colour.mean() - ground.mean() >= _MIN_CONTRAST:
            return colour


def _paint(rng: np.random.Generator, height: int, width: int, ground: NDArray[np.float64]) -> Floats:
    """Fill of a shape, float32 [h, w, 3]: plain, shaded, striped or mottled."""
    colour = _colour(rng, ground).astype(np.float32)
    fill = np.broadcast_to(colour, (height, width, 3)).copy()
    style = rng.integers(4)
    if style == 1:
        fill += _slope(rng, height, width)[:, :, None] * np.float32(30)
    elif style == 2:
        fill += _stripes(rng, height, width)[:, :, None] * np.float32(rng.uniform(10, 25))
    elif style == 3:
        fill += _mottle(rng, height, width, cells=6) * np.float32(rng.uniform(8, 22))
    return fill


def _background(rng: np.random.Generator, height: int, width: int, ground: NDArray[np.float64]) -> Floats:
    """Ground of a picture, float32 [h, w, 3]: always uneven, often patterned."""
    canvas = np.broadcast_to(ground.astype(np.float32), (height, width, 3)).copy()
    canvas += _slope(rng, height, width)[:, :, None] * np.float32(rng.uniform(0, 30))
    canvas += _mottle(rng, height, width, cells=int(rng.integers(3, 24))) * np.float32(rng.uniform(4, 18))
    if rng.random() < 0.4:
        canvas += _stripes(rng, height, width)[:, :, None] * np.float32(rng.uniform(4, 20))
    return canvas


def _slope(rng: np.random.Generator, height: int, width: int) -> Floats:
    """Plane of random direction, -1..1: float32 [h, w]."""
    angle = rng.uniform(0, 2 * np.pi)
    ys = np.linspace(-1, 1, height, dtype=np.float32)[:, None] * np.float32(np.sin(angle))
    xs = np.linspace(-1, 1, width, dtype=np.float32)[None, :] * np.float32(np.cos(angle))
    return cast(Floats, (ys + xs) / np.float32(1.4143))


def _stripes(rng: np.random.Generator, height: int, width: int) -> Floats:
    """Wave of random direction, period (6 to 40 pixels) and phase, -1..1: float32 [h, w]."""
    angle, period_px, phase = rng.uniform(0, np.pi), rng.uniform(6, 40), rng.uniform(0, 2 * np.pi)
    ys = np.arange(height, dtype=np.float32)[:, None] * np.float32(np.sin(angle) * 2 * np.pi / period_px)
    xs = np.arange(width, dtype=np.float32)[None, :] * np.float32(np.cos(angle) * 2 * np.pi / period_px)
    return cast(Floats, np.sin(ys + xs + np.float32(phase)))


def _mottle(rng: np.random.Generator, height: int, width: int, *, cells: int) -> Floats:
    """Smooth random blotches of every channel, standard deviation about 1 at the cells: float32 [h, w, 3]."""
    coarse = rng.standard_normal((cells, cells, 3), dtype=np.float32)
    planes = [Image.fromarray(coarse[:, :, i]).resize((width, height), Image.Resampling.BICUBIC) for i in range(3)]
    return np.stack([np.asarray(plane) for plane in planes], axis=2)
