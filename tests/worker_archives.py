"""Unpacked archives for tests of the worker: a toy classifier made of the parts that a served module has."""

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import torch

SIDE = 64
OUTPUTS = [
    {"name": "scores", "dtype": "float32", "shape": [2]},
    {"name": "labels", "dtype": "int32", "shape": [2]},
]


class ToyPixels(torch.nn.Module):
    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.permute(0, 3, 1, 2).to(torch.float32) / 255.0


class ToyNetwork(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 16, 3, stride=4)
        self.head = torch.nn.Linear(16, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(torch.nn.functional.silu(self.stem(x)).mean([2, 3]))
        return logits * 100.0


class ToyScores(torch.nn.Module):
    def forward(self, pixels: torch.Tensor, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scores, labels = torch.softmax(logits.float(), -1).sort(descending=True)
        return scores, labels.to(torch.int32)


class ToyServed(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pixels, self.network, self.postprocess = ToyPixels(), ToyNetwork(), ToyScores()

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scores, labels = self.postprocess(pixels, self.network(self.pixels(pixels)))
        return scores, labels


def write_archive(
    directory: Path,
    module_bytes: bytes,
    *,
    side: int = SIDE,
    max_batch: int = 8,
    outputs: list[dict[str, Any]] = OUTPUTS,
    agreement: float | None = None,
) -> Path:
    """Write the two files that a worker reads. `agreement`: of bfloat16, as the card says; None: not measured."""
    directory.mkdir(exist_ok=True)
    card = {
        "task": "classify",
        "input": {"height": side, "width": side},
        "max_batch": max_batch,
        "outputs": outputs,
        "bfloat16": None if agreement is None else {"agreement": agreement},
        "module_sha256": hashlib.sha256(module_bytes).hexdigest(),
    }
    (directory / "model.pt").write_bytes(module_bytes)
    (directory / "card.json").write_text(json.dumps(card))
    return directory


def scripted(module: torch.nn.Module) -> bytes:
    """The module as TorchScript."""
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(module.eval()), buffer)
    return buffer.getvalue()


def split_archive(directory: Path, **options: Any) -> Path:
    """An archive of `ToyServed` with weights that are the same in every call."""
    torch.manual_seed(0)
    return write_archive(directory, scripted(ToyServed()), **options)
