"""Small networks in the forms that other projects have: what they return, and how they are saved."""

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

SIDE = 32
CLASSES = 3


def save(network: nn.Module, path: Path, *, trace: int = 0, training: bool = False, frozen: bool = False) -> Path:
    """Write a TorchScript file: scripted, or traced with a batch of `trace` pictures."""
    network.train(training)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if trace:
            module = torch.jit.trace(network, torch.rand(trace, 3, SIDE, SIDE), check_trace=False)
        else:
            module = torch.jit.script(network)
        if frozen:
            module = torch.jit.freeze(module)
        torch.jit.save(module, path)
    return path


class Stem(nn.Module):
    """Features that differ between pictures: [N, 8]."""

    def __init__(self, classes: int = CLASSES, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.conv = nn.Conv2d(3, 8, 5, stride=4, padding=2)
        self.norm = nn.BatchNorm2d(8)
        self.dense = nn.Conv2d(8, classes, 1)
        nn.init.normal_(self.dense.weight, std=2.0)

    def maps(self, x: Tensor) -> Tensor:
        """Logits of each cell, [N, classes, H / 4, W / 4]."""
        return self.dense(torch.relu(self.norm(self.conv(x))))

    def forward(self, x: Tensor) -> Tensor:
        """Logits [N, classes]."""
        return self.maps(x).mean(dim=[2, 3])


class InTuple(Stem):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        maps = self.maps(x)
        return maps, maps.mean(dim=[2, 3])


class InDict(Stem):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        logits = self.maps(x).mean(dim=[2, 3])
        return {"logits": logits, "other": logits * 2}


class Probabilities(Stem):
    def forward(self, x: Tensor) -> Tensor:
        return self.maps(x).mean(dim=[2, 3]).softmax(dim=1)


class Maps(Stem):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        maps = self.maps(x)
        return {"out": maps, "aux": maps * 2}


class FixedBatch(Stem):
    def forward(self, x: Tensor) -> Tensor:
        return self.maps(x).mean(dim=[2, 3]).reshape(int(x.shape[0]), CLASSES)


class MixesRows(Stem):
    def forward(self, x: Tensor) -> Tensor:
        logits = self.maps(x).mean(dim=[2, 3])
        return logits - logits.mean(dim=0, keepdim=True)


class Dropped(Stem):
    def forward(self, x: Tensor) -> Tensor:
        return torch.dropout(self.maps(x).mean(dim=[2, 3]), 0.5, True)


class NotANumber(Stem):
    def forward(self, x: Tensor) -> Tensor:
        return torch.log(self.maps(x).mean(dim=[2, 3]) * 0 - 1)


class OnlyFloat32(Stem):
    def forward(self, x: Tensor) -> Tensor:
        return self.dense(torch.relu(self.norm(self.conv(x))).to(torch.float32)).mean(dim=[2, 3])


class OnCuda(Stem):
    def forward(self, x: Tensor) -> Tensor:
        return self.maps(x).mean(dim=[2, 3]) + torch.ones(1, device="cuda")


class NamesTheCpu(Stem):
    def forward(self, x: Tensor) -> Tensor:
        return self.maps(x).mean(dim=[2, 3]) + torch.ones(1, device="cpu")


class ReadsFiles(Stem):
    def forward(self, x: Tensor) -> Tensor:
        return self.maps(x).mean(dim=[2, 3]) + torch.from_file("/etc/hostname", size=1, dtype=torch.float32)


class TwoInputs(Stem):
    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        return self.maps(x).mean(dim=[2, 3]) * scale


class Detector(Stem):
    """Boxes around the cells with the largest logits, in pixels of the input; labels from `first`.

    The number of boxes differs between pictures.
    """

    def __init__(self, first: int = 1, unit: float = 1.0) -> None:
        super().__init__()
        self.first = first
        self.unit = unit

    def one(self, maps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes [n, 4], scores [n], labels [n] of the maps of one picture, [K, h, w]."""
        probabilities = maps.float().sigmoid()
        scores, labels = probabilities.flatten(1).max(dim=0)
        kept = torch.nonzero(scores > scores.mean()).squeeze(1)
        x, y = (kept % maps.size(2)) * 4.0, torch.div(kept, maps.size(2), rounding_mode="floor") * 4.0
        boxes = torch.stack([x, y, x + 6.0, y + 5.0], dim=1) * self.unit
        return boxes, scores[kept], labels[kept] + self.first

    def forward(self, x: Tensor) -> list[dict[str, Tensor]]:
        found: list[dict[str, Tensor]] = []
        maps = self.maps(x)
        for row in range(x.size(0)):
            boxes, scores, labels = self.one(maps[row])
            found.append({"boxes": boxes, "labels": labels, "scores": scores})
        return found


class ListDetector(Detector):
    """As torchvision's: takes a list of pictures, and returns losses beside the detections."""

    def forward(
        self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None
    ) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
        found: list[dict[str, Tensor]] = []
        for image in images:
            boxes, scores, labels = self.one(self.maps(image.unsqueeze(0))[0])
            found.append({"boxes": boxes, "labels": labels, "scores": scores})
        losses: dict[str, Tensor] = {}
        return losses, found


class TupleDetector(Detector):
    def forward(self, x: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        found: list[tuple[Tensor, Tensor, Tensor]] = []
        maps = self.maps(x)
        for row in range(x.size(0)):
            boxes, scores, labels = self.one(maps[row])
            found.append((labels, boxes, scores))
        return found


class BatchDetector(Detector):
    """Tensors for all pictures, without padding: a box per cell."""

    def cells(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """boxes [N, M, 4], scores [N, M], labels [N, M]."""
        maps = self.maps(x)
        scores, labels = maps.float().sigmoid().flatten(2).max(dim=1)
        cell = torch.ones_like(maps[:, 0]).flatten(1).cumsum(1) - 1
        left, top = torch.remainder(cell, 8) * 4.0, torch.div(cell, 8, rounding_mode="floor") * 4.0
        return torch.stack([left, top, left + 6, top + 5], dim=2) * self.unit, scores, labels + self.first

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.cells(x)


class CountedDetector(BatchDetector):
    """Numbers behind the count have no meaning."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        boxes, scores, labels = self.cells(x)
        counts = torch.zeros_like(labels[:, 0]) + 5
        scores = torch.cat([scores[:, :5], scores[:, 5:] * 0 + 0.999], dim=1)
        return counts, boxes, labels, scores


class RowDetector(BatchDetector):
    def forward(self, x: Tensor) -> Tensor:
        boxes, scores, labels = self.cells(x)
        return torch.cat([boxes, scores.unsqueeze(2), labels.unsqueeze(2).float()], dim=2)


class CentreDetector(Detector):
    def forward(self, x: Tensor) -> list[dict[str, Tensor]]:
        found: list[dict[str, Tensor]] = []
        maps = self.maps(x)
        for row in range(x.size(0)):
            boxes, scores, labels = self.one(maps[row])
            centred = torch.cat([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], dim=1)
            found.append({"boxes": centred, "labels": labels, "scores": scores})
        return found


class BlindDetector(Detector):
    """Finds nothing."""

    def forward(self, x: Tensor) -> list[dict[str, Tensor]]:
        found: list[dict[str, Tensor]] = []
        maps = self.maps(x)
        for row in range(x.size(0)):
            boxes, scores, labels = self.one(maps[row])
            found.append({"boxes": boxes[:0], "labels": labels[:0], "scores": scores[:0]})
        return found
