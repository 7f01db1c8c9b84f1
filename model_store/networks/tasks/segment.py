"""Segmentation: logits of each cell in, a class for each pixel out."""

import numpy as np
import torch
from torch import Tensor, nn

from handlers.contract.card import Agreement, Task
from model_store.networks.layers import resize_linear
from model_store.networks.pixels import Pixels
from model_store.networks.tasks.base import Answers, TaskContract


class ServedSegmenter(nn.Module):
    """Pictures to class maps: classes uint8 [N, H, W], and confidence uint8 [N, h, w] at the resolution of the logits.

    Confidence is the probability of the best class of a cell, times 255, rounded. `network` returns logits
    [N, K, h, w].
    """

    def __init__(self, *, pixels: Pixels, network: nn.Module, align_corners: bool) -> None:
        super().__init__()
        self.pixels = pixels
        self.network = network
        self.postprocess = ClassMap(align_corners=align_corners)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Take uint8 [N, H, W, 3], return (classes, confidence)."""
        classes, confidence = self.postprocess(pixels, self.network(self.pixels(pixels)))
        return classes, confidence


class ClassMap(nn.Module):
    """Logits of each cell to the best class of each pixel."""

    def __init__(self, *, align_corners: bool) -> None:
        super().__init__()
        self.align_corners = align_corners

    def forward(self, pixels: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        """Take the pictures, for their size, and logits [N, K, h, w], return (classes, confidence)."""
        logits = raw.float()
        classes = class_map(logits, height=pixels.size(1), width=pixels.size(2), align_corners=self.align_corners)
        confidence = (logits.softmax(dim=1).amax(dim=1) * 255.0).round().to(torch.uint8)  # (N, K, h, w) -> (N, h, w)
        return classes, confidence


def class_map(logits: Tensor, *, height: int, width: int, align_corners: bool) -> Tensor:
    """Find the best class of every pixel of the bilinearly enlarged logits; of equal ones the lowest.

    Works through the classes one by one, so that only single planes exist at full size: [64, 21, 512, 512] logits
    would take 1.4 GB. Enlarging a plane is a product with the interpolation weights of its rows and of its columns,
    more than twice as fast on a CPU as `F.interpolate`, and the same up to float32 rounding.

    Args:
        logits: float of any width [N, K, h, w], K at most 256.
        height: of the class map, in pixels.
        width: of the class map, in pixels.
        align_corners: False for ml-cvnets v0.1, transformers and EMO, True for ml-cvnets v0.2 and later.

    Returns:
        uint8 [N, height, width], values 0..K-1.

    Raises:
        ValueError: for more than 256 classes.

    """
    if logits.size(1) > 256:
        raise ValueError("a class map of bytes holds 256 classes at most")
    rows = _weights(logits.size(2), height, align_corners, logits.device)  # [h, height]
    columns = _weights(logits.size(3), width, align_corners, logits.device)  # [w, width]
    tall = torch.matmul(rows.t(), logits.float())  # [height, h] @ [N, K, h, w] -> [N, K, height, w]
    best = torch.matmul(tall[:, 0], columns)  # [N, height, width]
    classes = torch.zeros(best.shape, dtype=torch.uint8, device=logits.device)
    # Written over and over: fresh memory for every class would cost a CPU more than the arithmetic.
    plane = torch.empty_like(best)
    better = torch.empty_like(classes)
    for index in range(1, logits.size(1)):
        torch.matmul(tall[:, index], columns, out=plane)
        # The index grows, so the maximum writes it where the plane is better and nowhere else; faster than a mask.
        torch.gt(plane, best, out=better)
        torch.maximum(classes, better.mul_(index), out=classes)
        torch.maximum(best, plane, out=best)
    return classes


def _weights(size: int, new_size: int, align_corners: bool, device: torch.device) -> Tensor:
    """What each of `size` points gives to each of `new_size` points in linear interpolation: [size, new_size]."""
    points = torch.eye(size, device=device).unsqueeze(0)  # [1, size, size]: a batch of one, a channel per point
    return resize_linear(points, new_size, align_corners).squeeze(0)


def compare(full: Answers, half: Answers) -> Agreement:
    """Share of pixels of the same class, and the largest change of a cell's confidence."""
    confidence = np.abs(full["confidence"].astype(np.int16) - half["confidence"].astype(np.int16))
    return Agreement(
        metric="class_map",
        pictures=len(full["classes"]),
        agreement=float((full["classes"] == half["classes"]).mean()),
        score_max_abs_diff=float(confidence.max()) / 255.0,
    )


# One picture is many thousand comparisons, and costs ten times as much as a picture of a classifier.
SEGMENT = TaskContract(task=Task.SEGMENT, outputs=("classes", "confidence"), compared_pictures=2, compare=compare)
