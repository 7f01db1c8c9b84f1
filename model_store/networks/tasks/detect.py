"""Detection: raw outputs of a detector in, boxes of fixed number out."""

import numpy as np
import torch
from torch import Tensor, nn

from handlers.contract.card import Agreement, Task
from model_store.networks.boxes import box_iou
from model_store.networks.pixels import Pixels
from model_store.networks.tasks.base import Answers, TaskContract

SAME_BOX_IOU = 0.5  # least overlap of two boxes that count as the same


class ServedDetector(nn.Module):
    """Pictures to at most M boxes, best first.

    boxes float32 [N, M, 4] (x0, y0, x1, y1 in 0..1 of the input), scores float32 [N, M], labels int32 [N, M] from 0,
    without background, counts int32 [N]; rows from the count on are 0. `network` returns class logits and box deltas;
    `detections` turns these into boxes, scores, labels and counts.
    """

    def __init__(self, *, pixels: Pixels, network: nn.Module, detections: nn.Module) -> None:
        super().__init__()
        self.pixels = pixels
        self.network = network
        self.postprocess = BoxesInside(detections)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Take uint8 [N, H, W, 3], return (boxes, scores, labels, counts)."""
        class_logits, box_deltas = self.network(self.pixels(pixels))
        boxes, scores, labels, counts = self.postprocess(pixels, class_logits, box_deltas)
        return boxes, scores, labels, counts


class BoxesInside(nn.Module):
    """The raw outputs of a detector to boxes inside the picture."""

    def __init__(self, detections: nn.Module) -> None:
        super().__init__()
        self.detections = detections

    def forward(
        self, pixels: Tensor, class_logits: Tensor, box_deltas: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Take the pictures (unused), logits [N, A, C] and deltas [N, A, 4], return (boxes, scores, labels, counts)."""
        boxes, scores, found, counts = self.detections(class_logits, box_deltas)
        return boxes.clamp(0.0, 1.0), scores, found, counts


def compare(full: Answers, half: Answers) -> Agreement:
    """Share of the float32 boxes, weighted by score, with a partner in bfloat16, and the largest change of a score.

    Boxes are taken best first. A partner has the same class and an overlap of at least `SAME_BOX_IOU`, and is the
    partner of one box only.
    """
    found = total = worst = 0.0
    for picture, count in enumerate(full["counts"]):
        rows, others = slice(0, int(count)), slice(0, int(half["counts"][picture]))
        scores, other_scores = full["scores"][picture, rows], half["scores"][picture, others]
        corners = [torch.from_numpy(answers["boxes"][picture]) for answers in (full, half)]
        overlap = box_iou(corners[0][rows], corners[1][others]).numpy()  # [rows, others]
        same_label = full["labels"][picture, rows, None] == half["labels"][picture, others]
        left = np.where(same_label & (overlap >= SAME_BOX_IOU), overlap, 0.0)
        for row, score in enumerate(scores.tolist()):
            total += score  # one by one, as `found`: sums rounded otherwise would make a share above 1
            partner = int(left[row].argmax()) if left.shape[1] else -1
            if partner >= 0 and left[row, partner] > 0:
                left[:, partner] = 0.0
                found += score
                worst = max(worst, abs(score - float(other_scores[partner])))
    agreement = found / total if total else float(not half["counts"].any())
    return Agreement(metric="boxes", pictures=len(full["counts"]), agreement=agreement, score_max_abs_diff=worst)


DETECT = TaskContract(
    task=Task.DETECT, outputs=("boxes", "scores", "labels", "counts"), compared_pictures=4, compare=compare
)
