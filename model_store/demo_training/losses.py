"""Training losses of the three tasks. In: raw outputs of a network and a `pool.Batch`. Out: one scalar.

The loss of SSD is that of ml-cvnets (Liu et al. 2016, arXiv:1512.02325). An anchor is positive where its IoU
with a shape is 0.45 or more, and each shape also claims its best anchor; softmax cross-entropy over the positives and
three times as many hardest negatives; smooth L1 over the positives; both divided by the number of positives.
Differences: `_BETA` is a fifth of SSD's 1, in units of a tenth of an anchor's size, because the last percents of
overlap are scored too, and boxes weigh double.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from model_store.demo_training.pool import Batch
from model_store.networks.boxes import box_iou, corners, encode
from model_store.networks.heads.deeplabv3 import upsample

_POSITIVE_IOU = 0.45
_NEGATIVES = 3  # per positive
_BETA = 0.2
_BOX_WEIGHT = 2.0


def match(boxes: Tensor, labels: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor]:
    """Assign a shape or the background to every anchor.

    Args:
        boxes: float32 [G, 4] corners; G may be 0.
        labels: int64 [G].
        anchors: float32 [A, 4], (cx, cy, w, h).

    Returns:
        classes int64 [A]: label + 1, 0 for background. targets float32 [A, 4]: encoded boxes, 0 for background.

    """
    classes = torch.zeros(anchors.shape[0], dtype=torch.int64)
    targets = torch.zeros_like(anchors)
    if boxes.shape[0] == 0:
        return classes, targets
    iou = box_iou(corners(anchors), boxes)  # [A, G]
    overlap, shape = iou.max(dim=1)  # [A]
    claimed = iou.argmax(dim=0)  # [G]
    shape[claimed] = torch.arange(boxes.shape[0])
    overlap[claimed] = 1.0
    positive = overlap >= _POSITIVE_IOU
    classes[positive] = labels[shape[positive]] + 1
    targets[positive] = encode(boxes[shape[positive]], anchors[positive])
    return classes, targets


def detection_loss(class_logits: Tensor, box_deltas: Tensor, batch: Batch, anchors: Tensor) -> Tensor:
    """SSD's loss: float [N, A, C+1] with background first, [N, A, 4], anchors float32 [A, 4]."""
    matched = [match(*truth, anchors) for truth in zip(batch.boxes, batch.box_labels, strict=True)]
    classes = torch.stack([one[0] for one in matched])  # [N, A]
    targets = torch.stack([one[1] for one in matched])  # [N, A, 4]
    positive = classes > 0
    count = positive.sum(dim=1, keepdim=True)  # [N, 1]
    entropy = F.cross_entropy(class_logits.transpose(1, 2), classes, reduction="none")  # [N, A]
    hardness = entropy.detach().masked_fill(positive, -1.0)
    rank = hardness.argsort(dim=1, descending=True).argsort(dim=1)  # [N, A]: 0 is the hardest negative
    chosen = positive | (rank < _NEGATIVES * count.clamp(min=1))
    off = F.smooth_l1_loss(box_deltas[positive], targets[positive], beta=_BETA, reduction="sum")
    total: Tensor = entropy[chosen].sum() + _BOX_WEIGHT * off
    return total / positive.sum().clamp(min=1)


def segmentation_loss(logits: Tensor, batch: Batch, *, dice: float) -> Tensor:
    """Cross-entropy of every pixel of the enlarged logits, float [N, K, h, w], and `dice` times their Dice loss.

    The Dice loss (Milletari et al. 2016, arXiv:1606.04797) is taken per class over the whole batch, of the classes in
    it, so that a small shape counts as much as a large one.
    """
    side = batch.classes.shape[1]
    large = upsample(logits, height=side, width=side, align_corners=False)  # [N, K, S, S]
    entropy = F.cross_entropy(large, batch.classes)
    if not dice:
        return entropy
    truth = F.one_hot(batch.classes, large.shape[1]).permute(0, 3, 1, 2).to(large.dtype)  # [N, S, S, K] -> [N, K, S, S]
    chance = large.softmax(dim=1)
    hit = (chance * truth).sum(dim=(0, 2, 3))  # [K]
    size = chance.sum(dim=(0, 2, 3)) + truth.sum(dim=(0, 2, 3))  # [K]
    present = truth.sum(dim=(0, 2, 3)) > 0
    return entropy + dice * (1 - 2 * hit[present] / size[present]).mean()


def classification_loss(logits: Tensor, batch: Batch) -> Tensor:
    """Cross-entropy of float logits [N, K], with label smoothing 0.05."""
    return F.cross_entropy(logits, batch.labels, label_smoothing=0.05)
