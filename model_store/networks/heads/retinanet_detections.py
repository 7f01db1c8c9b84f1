"""From RetinaNet's outputs to detections: its anchors and its policy, of fixed output shape, scriptable.

In: class logits and box deltas of every anchor. Out: boxes in fractions of the picture, scores, labels, counts.
Everything is computed in float32, whatever the network ran in. Holds no parameters; its anchors survive
`module.to(dtype)`. On CUDA nothing waits for the device. Source of the numbers: EMO's mmdetection fork (Apache-2.0), as
for `heads.retinanet`. The overlap rules are in `model_store.networks.boxes`.
"""

import math

import torch
from torch import Tensor, nn

from model_store.networks.boxes import (
    MAX_LOG_SIZE,
    at_most_float32,
    decode,
    keep_best,
    select_by_chunks,
    select_by_steps,
)
from model_store.zoo import RetinaNetHead

STRIDES_PX = (8, 16, 32, 64, 128)
SIDES = tuple(4 * 2 ** (index / 3) for index in range(3))  # of the square anchors, in strides
RATIOS = (0.5, 1.0, 2.0)  # height over width, at the area of the square
ANCHORS_PER_CELL = len(SIDES) * len(RATIOS)
PAD_PX = RetinaNetHead.pads_to
BEST_PER_LEVEL = 1000


def map_sizes(*, height: int, width: int) -> list[tuple[int, int]]:
    """Return (rows, columns) of P3 to P7 for a picture of height x width pixels, which the network pads."""
    rows, columns = (math.ceil(side / PAD_PX) * PAD_PX for side in (height, width))  # in pixels
    sizes = [(rows // stride, columns // stride) for stride in STRIDES_PX[:3]]
    while len(sizes) < len(STRIDES_PX):
        rows, columns = sizes[-1]
        sizes.append((math.ceil(rows / 2), math.ceil(columns / 2)))  # k3, stride 2, padding 1
    return sizes


def corner_anchors(*, strides_px: tuple[int, ...], sides: tuple[float, ...], maps: list[tuple[int, int]]) -> Tensor:
    """Lay anchors out over maps, each with its centre at the upper left corner of its cell.

    Args:
        strides_px: pixels per cell of each map.
        sides: of the square anchors, in strides.
        maps: (rows, columns) of each map.

    Returns:
        float64 [A, 4]: (cx, cy, w, h) in pixels, one row per (map, y, x, ratio, side): the side changes fastest.

    """
    shapes = torch.tensor(
        [(side / math.sqrt(ratio), side * math.sqrt(ratio)) for ratio in RATIOS for side in sides], dtype=torch.float64
    )  # [S, 2], in strides
    levels: list[Tensor] = []
    for stride, (rows, columns) in zip(strides_px, maps, strict=True):
        ys, xs = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")  # [rows, columns]
        centres = torch.stack([xs, ys], dim=-1).reshape(-1, 1, 2).double()  # [rows, columns, 2] -> [cells, 1, 2]
        both = [centres.expand(-1, len(shapes), -1), shapes.expand(len(centres), -1, -1)]  # 2 x [cells, S, 2]
        levels.append(torch.cat(both, dim=-1).reshape(-1, 4) * stride)  # [cells, S, 4] -> [cells*S, 4]
    return torch.cat(levels)


def retinanet_anchors(*, height: int, width: int) -> tuple[Tensor, list[int]]:
    """Anchors for a picture of height x width pixels, float32 [A, 4], and the number of each level.

    They are (cx, cy, w, h) in fractions of the picture; those of the padding have centres beyond 1.
    """
    maps = map_sizes(height=height, width=width)
    anchors = corner_anchors(strides_px=STRIDES_PX, sides=SIDES, maps=maps)
    anchors = anchors / torch.tensor([width, height, width, height], dtype=torch.float64)
    return anchors.float(), [ANCHORS_PER_CELL * rows * columns for rows, columns in maps]


class RetinaNetDetections(nn.Module):
    """Threshold, keep the best of each level, decode, suppress, and keep the best M.

    Args:
        anchors: float32 [A, 4], (cx, cy, w, h) in fractions of the picture.
        level_sizes: anchors of each level, in order; they add up to A.
        score_threshold: candidates are strictly above it (as float32, like the source); at least 0.
        best_per_level: (anchor, class) candidates kept in each level before suppression; at least 1.
        iou_threshold: see `model_store.networks.boxes`.
        max_detections: M.

    """

    anchor_steps: Tensor

    def __init__(
        self,
        *,
        anchors: Tensor,
        level_sizes: list[int],
        score_threshold: float,
        best_per_level: int,
        iou_threshold: float,
        max_detections: int,
    ) -> None:
        super().__init__()
        if sum(level_sizes) != anchors.shape[0]:
            raise ValueError(f"levels of {sum(level_sizes)} anchors in all, but {anchors.shape[0]} anchors")
        if not 0.0 <= score_threshold < 1.0:
            raise ValueError(f"score_threshold must be in 0..1, not {score_threshold}")
        # As integers, because a cast of the whole module to bfloat16 would round float anchors too. In steps of 2**-40
        # nothing is lost: a float32 from 2**-16 up is a multiple of that.
        self.register_buffer("anchor_steps", (anchors.double() * 2.0**40).round().to(torch.int64), persistent=False)
        self.level_sizes = level_sizes
        self.score_threshold = score_threshold
        self.best_per_level = best_per_level
        self.iou_threshold = at_most_float32(iou_threshold)
        self.max_detections = max_detections
        self.log_size_bound = MAX_LOG_SIZE

    def forward(self, class_logits: Tensor, box_deltas: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the detections of each picture, best first.

        Args:
            class_logits: float of any width [N, A, C].
            box_deltas: float of any width [N, A, 4].

        Returns:
            boxes float32 [N, M, 4] (x0, y0, x1, y1 in fractions of the picture, inside of it), scores float32 [N, M],
            labels int32 [N, M] in 0..C-1, counts int32 [N]. Rows from the count on are 0.

        """
        pictures, classes = class_logits.size(0), class_logits.size(2)
        index, sizes = self._possible(class_logits)  # [N, a]
        logits = class_logits.gather(1, index.unsqueeze(2).expand(-1, -1, classes))  # [N, a, C]
        deltas = box_deltas.gather(1, index.unsqueeze(2).expand(-1, -1, 4))  # [N, a, 4]
        steps = self.anchor_steps.index_select(0, index.flatten()).reshape(pictures, -1, 4)
        boxes = decode(
            deltas.float(),
            steps.to(torch.float32) * 2.0**-40,
            log_size_low=-self.log_size_bound,
            log_size_high=self.log_size_bound,
            centre_scale=1.0,
            size_scale=1.0,
        ).clamp(0.0, 1.0)  # [N, a, 4]
        scores = self._scores(logits.float(), sizes)
        if scores.is_cuda:
            return select_by_steps(boxes, scores, iou_threshold=self.iou_threshold, max_detections=self.max_detections)
        return select_by_chunks(boxes, scores, iou_threshold=self.iou_threshold, max_detections=self.max_detections)

    def _possible(self, logits: Tensor) -> tuple[Tensor, list[int]]:
        """The anchors, ascending int64 [N, a], that may have a candidate among the best of their level; a per level.

        These are the first `best_per_level` anchors of a level, in the order of their best score, equal ones in the
        order of the anchors. Any other anchor comes after as many anchors, each of which has a candidate before its
        candidates.
        """
        best = logits.amax(dim=2).float().sigmoid()  # [N, A]
        kept: list[Tensor] = []
        sizes: list[int] = []
        start = 0
        for size in self.level_sizes:
            order = torch.sort(best.narrow(1, start, size), dim=1, stable=True, descending=True).indices
            some = order[:, : self.best_per_level].sort(dim=1).values
            kept.append(some + start)
            sizes.append(some.size(1))
            start += size
        return torch.cat(kept, dim=1), sizes

    def _scores(self, logits: Tensor, sizes: list[int]) -> Tensor:
        """Scores of the candidates, 0 elsewhere: [N, a, C] -> [N, C, a]."""
        scores = logits.sigmoid()
        scores = torch.where(scores > self.score_threshold, scores, torch.zeros_like(scores))
        levels: list[Tensor] = []
        start = 0
        for size in sizes:
            level = scores.narrow(1, start, size)
            # [N, b, C] -> [N, b*C]: of equal scores the earlier anchor, then the lower class
            flat = keep_best(level.flatten(1), self.best_per_level)
            levels.append(flat.reshape(level.shape))
            start += size
        return torch.cat(levels, dim=1).transpose(1, 2).contiguous()


def retinanet_detections(
    *, height: int, width: int, score_threshold: float = 0.05, iou_threshold: float = 0.5, max_boxes: int = 100
) -> RetinaNetDetections:
    """Build the post-processing of EMO's RetinaNet.

    Args:
        height: of the picture, in pixels; the network pads it.
        width: of the picture, in pixels.
        score_threshold: candidates have a higher score.
        iou_threshold: a box that overlaps a better box of its class by more is dropped.
        max_boxes: most boxes per picture.

    """
    anchors, level_sizes = retinanet_anchors(height=height, width=width)
    return RetinaNetDetections(
        anchors=anchors,
        level_sizes=level_sizes,
        score_threshold=score_threshold,
        best_per_level=BEST_PER_LEVEL,
        iou_threshold=iou_threshold,
        max_detections=max_boxes,
    )
