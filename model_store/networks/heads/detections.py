"""From SSD head outputs to detections: the policy of each source, of fixed output shape, scriptable.

In: class logits and box deltas of every anchor. Out: boxes in fractions of the network input, scores, labels, counts.
Everything is computed in float32, whatever the network ran in. Holds no parameters; its anchors survive
`module.to(dtype)`. On CUDA nothing waits for the device. Sources of the numbers: ml-cvnets (Apple
sample code licence) and EMO's mmdetection fork (Apache-2.0), as for `heads.ssdlite`. The overlap rules are in
`model_store.networks.boxes`.
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
from model_store.networks.heads.anchors import cvnets_anchors, mmdet_anchors


class Detections(nn.Module):
    """Decode, threshold, suppress, and keep the best M.

    Args:
        anchors: float32 [A, 4], (cx, cy, w, h) in fractions of the network input.
        level_sizes: anchors of each level, in order; they add up to A.
        background_first: the background is class 0 of the logits; otherwise the last.
        score_threshold: candidates are strictly above it (as float32, like the sources); at least 0.
        best_per_class: candidates kept in each class before suppression; 0 for no limit.
        best_per_level: (anchor, class) candidates kept in each level before suppression; 0 for no limit.
        iou_threshold: see `model_store.networks.boxes`.
        max_detections: M.
        log_size_bound: limit of the scaled log size on both sides (mmdetection); infinity for none.
        clip_before: clip boxes to the network input before suppression (mmdetection).
        clip_after: clip the returned boxes (cvnets clips after scaling to pixels, which is the same).

    """

    anchor_steps: Tensor

    def __init__(
        self,
        *,
        anchors: Tensor,
        level_sizes: list[int],
        background_first: bool,
        score_threshold: float,
        best_per_class: int,
        best_per_level: int,
        iou_threshold: float,
        max_detections: int,
        log_size_bound: float,
        clip_before: bool,
        clip_after: bool,
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
        self.background_first = background_first
        self.score_threshold = score_threshold
        # A score of p needs a logit of at least log(p) above the background's; 1e-3 is room for rounding.
        self.logit_margin = (math.log(score_threshold) if score_threshold > 0 else -math.inf) - 1e-3
        self.best_per_class = best_per_class
        self.best_per_level = best_per_level
        self.iou_threshold = at_most_float32(iou_threshold)
        self.max_detections = max_detections
        self.log_size_bound = log_size_bound
        self.clip_before = clip_before
        self.clip_after = clip_after

    def forward(self, class_logits: Tensor, box_deltas: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the detections of each picture, best first.

        Args:
            class_logits: float of any width [N, A, C+1].
            box_deltas: float of any width [N, A, 4].

        Returns:
            boxes float32 [N, M, 4] (x0, y0, x1, y1 in fractions of the network input), scores float32 [N, M],
            labels int32 [N, M] in 0..C-1 without background, counts int32 [N]. Rows from the count on are 0.

        """
        if class_logits.is_cuda:
            return self._answer(class_logits, box_deltas, self.anchor_steps, self.level_sizes)
        # On a CPU, reading a value costs no waiting. So each picture drops the anchors that see background only: the
        # result is the same, with a small part of the work.
        boxes: list[Tensor] = []
        scores: list[Tensor] = []
        labels: list[Tensor] = []
        counts: list[Tensor] = []
        for picture in range(class_logits.size(0)):
            logits = class_logits[picture]
            index = self._plausible(logits)
            answer = self._answer(
                logits.index_select(0, index).unsqueeze(0),
                box_deltas[picture].index_select(0, index).unsqueeze(0),
                self.anchor_steps.index_select(0, index),
                self._sizes_of(index),
            )
            boxes.append(answer[0])
            scores.append(answer[1])
            labels.append(answer[2])
            counts.append(answer[3])
        return torch.cat(boxes), torch.cat(scores), torch.cat(labels), torch.cat(counts)

    def _answer(
        self, class_logits: Tensor, box_deltas: Tensor, anchor_steps: Tensor, level_sizes: list[int]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The detections from some of the anchors: [N, a, C+1], [N, a, 4], int64 [a, 4], anchors per level."""
        scores = self._scores(class_logits.float(), level_sizes)
        boxes = decode(
            box_deltas.float(),
            anchor_steps.to(torch.float32) * 2.0**-40,
            log_size_low=-self.log_size_bound,
            log_size_high=self.log_size_bound,
            centre_scale=0.1,
            size_scale=0.2,
        )  # [N, a, 4]
        if self.clip_before:
            boxes = boxes.clamp(0.0, 1.0)
        if scores.is_cuda:
            found, found_scores, labels, counts = select_by_steps(
                boxes, scores, iou_threshold=self.iou_threshold, max_detections=self.max_detections
            )
        else:
            found, found_scores, labels, counts = select_by_chunks(
                boxes, scores, iou_threshold=self.iou_threshold, max_detections=self.max_detections
            )
        if self.clip_after:
            found = found.clamp(0.0, 1.0)
        return found, found_scores, labels, counts

    def _scores(self, logits: Tensor, level_sizes: list[int]) -> Tensor:
        """Probabilities of the candidates, 0 elsewhere: [N, a, C+1] -> [N, C, a]."""
        first = 1 if self.background_first else 0
        foreground = logits.softmax(dim=-1).narrow(2, first, logits.size(2) - 1)
        scores = foreground.transpose(1, 2).contiguous()  # [N, a, C] -> [N, C, a]
        scores = torch.where(scores > self.score_threshold, scores, torch.zeros_like(scores))
        if self.best_per_class > 0:
            scores = keep_best(scores, self.best_per_class)
        if self.best_per_level > 0:
            levels: list[Tensor] = []
            start = 0
            for size in level_sizes:
                level = scores.narrow(2, start, size)
                # [N, C, b] -> [N, b, C] -> [N, b*C]: of equal scores the earlier anchor, then the lower class
                flat = keep_best(level.transpose(1, 2).flatten(1), self.best_per_level)
                levels.append(flat.reshape(scores.size(0), size, scores.size(1)).transpose(1, 2))  # [N, C, b]
                start += size
            scores = torch.cat(levels, dim=2)
        return scores

    def _plausible(self, logits: Tensor) -> Tensor:
        """Indices, ascending, of the anchors that may pass the score threshold: [A, C+1] -> [a]."""
        classes = logits.size(1) - 1
        background = logits.select(1, 0 if self.background_first else classes).float()  # [A]
        best = logits.narrow(1, 1 if self.background_first else 0, classes).amax(dim=1).float()  # [A]
        return torch.nonzero((best - background) > self.logit_margin).squeeze(1)

    def _sizes_of(self, index: Tensor) -> list[int]:
        """How many of the anchors `index` [a] fall into each level; counted only where a limit per level needs it."""
        if self.best_per_level == 0:
            return self.level_sizes
        sizes: list[int] = []
        start = 0
        for size in self.level_sizes:
            sizes.append(int(((index >= start) & (index < start + size)).sum()))
            start += size
        return sizes


def cvnets_detections(
    *,
    height: int,
    width: int,
    output_stride: int = 32,
    score_threshold: float = 0.01,
    iou_threshold: float = 0.5,
    max_boxes: int = 200,
) -> Detections:
    """Build the post-processing of the MobileViT detectors, policy of ml-cvnets v0.2 and later.

    v0.1 returned more than fits a fixed shape (up to 200 of each class); `boxes.detections_by_class` does the same.

    Args:
        height: of the network input, in pixels.
        width: of the network input, in pixels.
        output_stride: of the backbone, 32 or 16.
        score_threshold: candidates have a higher score.
        iou_threshold: a box that overlaps a better box of its class by more is dropped.
        max_boxes: most boxes per picture.

    """
    anchors, level_sizes = cvnets_anchors(height=height, width=width, output_stride=output_stride)
    return Detections(
        anchors=anchors,
        level_sizes=level_sizes,
        background_first=True,
        score_threshold=score_threshold,
        best_per_class=400,
        best_per_level=0,
        iou_threshold=iou_threshold,
        max_detections=max_boxes,
        log_size_bound=math.inf,
        clip_before=False,
        clip_after=True,
    )


def mmdet_detections(
    *,
    height: int,
    width: int,
    output_stride: int = 32,
    score_threshold: float = 0.02,
    iou_threshold: float = 0.45,
    max_boxes: int = 200,
) -> Detections:
    """Build the post-processing of the EMO detectors, policy of its mmdetection configuration.

    Args:
        height: of the network input, in pixels; anchors keep their size in pixels.
        width: of the network input, in pixels.
        output_stride: of the backbone, 32 or 16.
        score_threshold: candidates have a higher score.
        iou_threshold: a box that overlaps a better box of its class by more is dropped.
        max_boxes: most boxes per picture.

    """
    anchors, level_sizes = mmdet_anchors(height=height, width=width, output_stride=output_stride)
    return Detections(
        anchors=anchors,
        level_sizes=level_sizes,
        background_first=False,
        score_threshold=score_threshold,
        best_per_class=0,
        best_per_level=1000,
        iou_threshold=iou_threshold,
        max_detections=max_boxes,
        log_size_bound=MAX_LOG_SIZE,
        clip_before=True,
        clip_after=False,
    )
