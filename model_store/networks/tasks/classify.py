"""Classification: logits [N, K] in, the best classes out."""

import numpy as np
import torch
from torch import Tensor, nn

from handlers.contract.card import Agreement, Task
from model_store.networks.pixels import Pixels
from model_store.networks.tasks.base import Answers, TaskContract

BEST_CLASSES = 100  # largest number of classes that are returned


class ServedClassifier(nn.Module):
    """Pictures to their best K = min(classes, 100) classes: scores float32 [N, K], falling, and labels int32 [N, K].

    `network` returns logits [N, classes].
    """

    def __init__(self, *, pixels: Pixels, network: nn.Module, classes: int) -> None:
        super().__init__()
        self.pixels = pixels
        self.network = network
        self.postprocess = BestClasses(min(classes, BEST_CLASSES))

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Take uint8 [N, H, W, 3], return (scores, labels)."""
        scores, labels = self.postprocess(pixels, self.network(self.pixels(pixels)))
        return scores, labels


class BestClasses(nn.Module):
    """Logits to the K best classes."""

    def __init__(self, best: int) -> None:
        super().__init__()
        self.best = best

    def forward(self, pixels: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Take the pictures (unused) and logits [N, classes], return scores [N, K] and labels [N, K]."""
        scores, best = torch.topk(logits.float().softmax(dim=1), self.best, dim=1)
        return scores, best.to(torch.int32)


def compare(full: Answers, half: Answers) -> Agreement:
    """Share of pictures with the same best class, and the largest change of that class's score."""
    best = full["labels"][:, :1]  # [N, 1]
    again = np.where(half["labels"] == best, half["scores"], 0.0).max(axis=1)  # [N]; 0 where the class is missing
    return Agreement(
        metric="top1",
        pictures=len(best),
        agreement=float((half["labels"][:, :1] == best).mean()),
        score_max_abs_diff=float(np.abs(again - full["scores"][:, 0]).max()),
    )


# One picture is one comparison here.
CLASSIFY = TaskContract(task=Task.CLASSIFY, outputs=("scores", "labels"), compared_pictures=8, compare=compare)
