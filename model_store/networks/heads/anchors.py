"""SSD anchors: the boxes that predicted deltas refer to, one row per (level, y, x, shape), fine to coarse.

Sources: ml-cvnets (`SSDAnchorGenerator`) and the mmdetection fork of EMO (`SSDAnchorGenerator`). Both emit per cell:
small square, large square, then for every ratio r the wide and the tall box of the small square's area. They differ in
units: cvnets in fractions of the picture with centres that divide by the map's real size, mmdetection in pixels of the
network input with fixed strides.

Every function returns centres and sizes (cx, cy, w, h) in fractions of the network input, float32.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class AnchorLevel:
    """Anchor shapes of one feature map.

    Attributes:
        small: side of the small square.
        large: side whose geometric mean with `small` is the side of the large square.
        ratios: each adds a wide and a tall box.
        stride_px: distance of the centres in pixels; then `small` and `large` are pixels too. None: all are
            fractions of the picture, and centres spread evenly over the map.

    """

    small: float
    large: float
    ratios: tuple[int, ...]
    stride_px: float | None = None

    @property
    def per_cell(self) -> int:
        """Anchors in one cell."""
        return 2 + 2 * len(self.ratios)

    def shapes(self) -> list[tuple[float, float]]:
        """Width and height of each anchor of a cell, in order."""
        middle = math.sqrt(self.small * self.large)
        sides = [(self.small, self.small), (middle, middle)]
        for ratio in self.ratios:
            root = math.sqrt(ratio)
            sides += [(self.small * root, self.small / root), (self.small / root, self.small * root)]
        return sides


def cvnets_levels() -> tuple[AnchorLevel, ...]:
    """Return the six levels of ml-cvnets: scales evenly from 0.1 to 1.05 of the picture; the last has ratio 2 only."""
    step = (1.05 - 0.1) / 6
    scales = [0.1 + step * index for index in range(7)]
    return tuple(
        AnchorLevel(small=scales[index], large=scales[index + 1], ratios=(2, 3) if index < 5 else (2,))
        for index in range(6)
    )


def mmdet_levels() -> tuple[AnchorLevel, ...]:
    """Return the six levels of EMO's SSDLite for 320x320, in pixels. The stride 107 is no misprint."""
    sides = (48, 100, 150, 202, 253, 304, 320)
    strides = (16, 32, 64, 107, 160, 320)
    return tuple(
        AnchorLevel(small=sides[index], large=sides[index + 1], ratios=(2, 3), stride_px=strides[index])
        for index in range(6)
    )


def map_sizes(*, height: int, width: int, pooled_last: bool, output_stride: int = 32) -> list[tuple[int, int]]:
    """Return (rows, columns) of the six maps of an SSDLite for an input in pixels: two of the backbone, then halvings.

    Args:
        height: of the network input, in pixels.
        width: of the network input, in pixels.
        pooled_last: the last map is a global mean (cvnets) instead of one more stride-2 convolution (mmdetection).
        output_stride: of the backbone: 32, or 16 where its second map is as fine as its first.

    """
    sizes = [(math.ceil(height / 16), math.ceil(width / 16))]
    if output_stride == 16:
        sizes.append(sizes[0])
    while len(sizes) < 6:
        rows, columns = sizes[-1]
        sizes.append((math.ceil(rows / 2), math.ceil(columns / 2)))  # k3, stride 2, padding 1
    if pooled_last:
        sizes[-1] = (1, 1)
    return sizes


def make_anchors(
    *, levels: tuple[AnchorLevel, ...], maps: list[tuple[int, int]], height: int, width: int, clamp: bool
) -> Tensor:
    """Lay the anchors of every level out over its map.

    Args:
        levels: shapes, one entry per map.
        maps: (rows, columns) of each map, as `map_sizes` returns them.
        height: of the network input, in pixels; matters to levels in pixels only.
        width: of the network input, in pixels.
        clamp: cut the four numbers to 0..1 (cvnets: touches only wide and tall boxes of the coarse levels).

    Returns:
        float32 [A, 4]: (cx, cy, w, h) in fractions of the network input. Computed in double, as both sources do.

    """
    rows: list[Tensor] = []
    for level, (map_height, map_width) in zip(levels, maps, strict=True):
        ys = torch.arange(map_height, dtype=torch.float64) + 0.5
        xs = torch.arange(map_width, dtype=torch.float64) + 0.5
        shapes = torch.tensor(level.shapes(), dtype=torch.float64)  # [S, 2]
        if level.stride_px is None:
            ys, xs = ys / map_height, xs / map_width
        else:
            ys, xs = ys * level.stride_px / height, xs * level.stride_px / width
            shapes = shapes / torch.tensor([width, height], dtype=torch.float64)
        centre_y, centre_x = torch.meshgrid(ys, xs, indexing="ij")  # [rows, columns]
        centres = torch.stack([centre_x, centre_y], dim=-1).reshape(-1, 1, 2)  # [rows, columns, 2] -> [cells, 1, 2]
        cells = centres.shape[0]
        both = [centres.expand(-1, level.per_cell, -1), shapes.expand(cells, -1, -1)]  # 2 x [cells, S, 2]
        rows.append(torch.cat(both, dim=-1).reshape(-1, 4))  # [cells, S, 4] -> [cells*S, 4]
    anchors = torch.cat(rows)
    if clamp:
        anchors = anchors.clamp(0.0, 1.0)
    return anchors.to(torch.float32)


def anchors_per_level(*, levels: tuple[AnchorLevel, ...], maps: list[tuple[int, int]]) -> list[int]:
    """Count the rows that each level contributes to `make_anchors`."""
    return [level.per_cell * rows * columns for level, (rows, columns) in zip(levels, maps, strict=True)]


def cvnets_anchors(*, height: int, width: int, output_stride: int = 32) -> tuple[Tensor, list[int]]:
    """Anchors of the MobileViT detectors for an input in pixels: float32 [A, 4], and the number of each level."""
    levels = cvnets_levels()
    maps = map_sizes(height=height, width=width, pooled_last=True, output_stride=output_stride)
    anchors = make_anchors(levels=levels, maps=maps, height=height, width=width, clamp=True)
    return anchors, anchors_per_level(levels=levels, maps=maps)


def mmdet_anchors(*, height: int, width: int, output_stride: int = 32) -> tuple[Tensor, list[int]]:
    """Anchors of the EMO detectors, float32 [A, 4], and the number of each level; they keep their size in pixels."""
    levels = mmdet_levels()
    maps = map_sizes(height=height, width=width, pooled_last=False, output_stride=output_stride)
    anchors = make_anchors(levels=levels, maps=maps, height=height, width=width, clamp=False)
    return anchors, anchors_per_level(levels=levels, maps=maps)
