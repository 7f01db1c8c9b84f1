"""The served module of a detector that was not written here: lists of boxes to a fixed number of rows.

In: a network that returns one (boxes, scores, labels) per picture. Out: how its numbers are read, and a module with the
outputs of `networks.tasks.detect`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model_store.build.foreign_report import Report, Wish
from model_store.networks.pixels import Pixels

MOST_BOXES = 100  # per picture, as torchvision's detectors return
_UNIT_SLACK = 1.5  # corners up to here are shares of the input


class FixedRows(nn.Module):
    """Detections of any number to at most `rows` boxes per picture, best first, and zeros behind them.

    Boxes become shares of the input, labels start from 0. What is dropped: scores not above `threshold` (a NaN too),
    labels that no class has, such as a background, and boxes behind the best `rows`.
    """

    def __init__(
        self, network: nn.Module, *, rows: int, classes: int, first_label: int, in_pixels: bool, threshold: float
    ) -> None:
        super().__init__()
        self.network = network
        self.rows = rows
        self.classes = classes
        self.first_label = first_label
        self.in_pixels = in_pixels
        self.threshold = threshold

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Take [N, 3, H, W], return boxes [N, M, 4], scores [N, M], labels [N, M], counts [N]."""
        size = (x.size(0), self.rows)
        boxes = torch.zeros(size[0], size[1], 4, device=x.device)
        scores = torch.zeros(size, device=x.device)
        labels = torch.zeros(size, dtype=torch.int32, device=x.device)
        counts = torch.zeros(size[0], dtype=torch.int32, device=x.device)
        scale = torch.ones(4, device=x.device)
        if self.in_pixels:
            scale[0::2] = float(x.size(3))
            scale[1::2] = float(x.size(2))
        for picture, found in enumerate(self.network(x)):
            found_boxes, found_scores, found_labels = found
            wide = found_scores.float()
            whole = found_labels.float().round().to(torch.int64) - self.first_label
            kept = torch.nonzero((wide > self.threshold) & (whole >= 0) & (whole < self.classes)).squeeze(1)
            order = torch.sort(wide[kept], stable=True, dim=0, descending=True)[1]
            best = kept[order][: self.rows]
            count = best.size(0)
            boxes[picture, :count] = (found_boxes.float()[best] / scale).clamp(0.0, 1.0)
            scores[picture, :count] = wide[best]
            labels[picture, :count] = whole[best].to(torch.int32)
            counts[picture] = count
        return boxes, scores, labels, counts


class ServedBoxes(nn.Module):
    """Pictures to boxes; see `networks.tasks.detect.ServedDetector` for the outputs."""

    def __init__(self, *, pixels: Pixels, network: nn.Module) -> None:
        super().__init__()
        self.pixels = pixels
        self.network = network

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Take uint8 [N, H, W, 3], return (boxes, scores, labels, counts)."""
        boxes, scores, labels, counts = self.network(self.pixels(pixels))
        return boxes, scores, labels, counts


@dataclass(frozen=True)
class Reading:
    """How the numbers of a detector are read. `most` is the largest number of boxes that a picture had."""

    in_pixels: bool
    first_label: int
    most: int


def read_boxes(network: nn.Module, tries: Sequence[Tensor], wish: Wish, report: Report) -> Reading:
    """Find the unit of the boxes and the first label, from what was said and from answers. Raises `Refused`.

    `tries` are inputs of the network, float [N, 3, H, W].
    """
    with torch.inference_mode():
        found = [one for x in tries for one in network(x)]
    boxes = torch.cat([one[0].float().reshape(-1, 4) for one in found])
    labels = torch.cat([one[2].float().reshape(-1) for one in found]).round().to(torch.int64)
    if not boxes.numel() and (wish.boxes is None or wish.background is None):
        report.refuse(
            "boxes",
            "it finds none on drawn pictures and noise, so their unit and the first label cannot be seen",
            "say --boxes pixels or unit, and --background first (labels from 1) or none (labels from 0)",
        )
    if boxes.numel() and not bool((boxes[:, 2:] >= boxes[:, :2]).all()):
        report.refuse(
            "boxes", "corners are not in the order x0, y0, x1, y1", "return corners, not centres or widths and heights"
        )
    in_pixels = _unit(boxes, wish, report)
    first = _first_label(labels, wish, report)
    return Reading(in_pixels=in_pixels, first_label=first, most=max(one[0].size(0) for one in found))


def _unit(boxes: Tensor, wish: Wish, report: Report) -> bool:
    """Whether corners are in pixels of the input. They are shares of it otherwise."""
    largest = float(boxes.max()) if boxes.numel() else 0.0
    if wish.boxes == "unit" and largest > _UNIT_SLACK:
        report.refuse("boxes", f"a corner is at {largest:.4g}, so they are not in 0..1", "say --boxes pixels")
    in_pixels = largest > _UNIT_SLACK if wish.boxes is None else wish.boxes == "pixels"
    how = "as said" if wish.boxes else f"found: the largest corner is {largest:.4g}"
    report.held("boxes", f"x0, y0, x1, y1 in {'pixels of the input' if in_pixels else '0..1 of the input'}, {how}")
    return in_pixels


def _first_label(labels: Tensor, wish: Wish, report: Report) -> int:
    """The number of the first class."""
    seen = (int(labels.min()), int(labels.max())) if labels.numel() else None
    between = "none seen" if seen is None else f"seen: {seen[0]} to {seen[1]}"
    told = wish.background
    first = {"first": 1, "none": 0, "last": 0}[told] if told else _found_first(seen, wish.classes)
    if first is None:
        report.refuse(
            "labels",
            f"{between}, with {wish.classes} labels; the first class may be 0 or 1",
            "say --background first (0 is the background, labels from 1) or none (labels from 0)",
        )
    highest = first + wish.classes - (0 if told == "last" else 1)
    if seen is not None and (seen[1] > highest or seen[0] < 0):
        report.refuse(
            "labels",
            f"{between}; {wish.classes} labels from {first} end at {first + wish.classes - 1}",
            "give one label per class, without the background",
        )
    report.held("labels", f"{wish.classes} labels, the first class is {first} ({'as said' if told else between})")
    return first


def _found_first(seen: tuple[int, int] | None, classes: int) -> int | None:
    if seen is None or (seen[0] > 0 and seen[1] < classes):
        return None
    return 0 if seen[0] <= 0 else 1
