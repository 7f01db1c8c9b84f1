"""Parity: how far the scripted module, the reloaded module and single rows agree with the eager module.

In: the forms of one served module, and a batch of pictures. Out: a `Parity` for the card, or an `ExportError`.
"""

from typing import Any

import torch
from torch import Tensor, nn

from handlers.contract.card import Parity
from model_store import zoo
from model_store.build.errors import ExportError

PICTURES = 3  # batch that the figures are measured on
LIMIT = 1e-3  # of the largest raw output; a larger difference is more than rounding, so the export is broken


def raw_outputs(module: Any, pixels: Tensor) -> list[Tensor]:
    """What the network inside a served module (eager or scripted) returns, before post-processing.

    `pixels` is uint8 [N, H, W, 3].
    """
    with torch.inference_mode():
        raw = module.network(module.pixels(pixels))
    return list(raw) if isinstance(raw, tuple) else [raw]


def difference(first: list[Tensor], second: list[Tensor]) -> float:
    """Largest absolute difference between two lists of tensors of any shape, pairwise of the same."""
    return max(float((a.double() - b.double()).abs().max()) for a, b in zip(first, second, strict=True))


def measure(eager: nn.Module, scripted: Any, reloaded: Any, pixels: Tensor) -> Parity:
    """Agreement of the raw outputs on a batch, uint8 [N, H, W, 3]. Raises `ExportError` beyond rounding.

    Raw outputs, because post-processing orders and counts: a rounding error may swap two equal scores, which proves
    nothing.
    """
    expected, found = raw_outputs(eager, pixels), raw_outputs(scripted, pixels)
    if not all(bool(torch.isfinite(tensor).all()) for tensor in expected):
        raise ExportError(
            "the network's outputs are NaN or infinite, although its weights are finite: a variance below 0, or "
            "weights that grew without bound; check the checkpoint in the training code"
        )
    single = [raw_outputs(scripted, pixels[i : i + 1]) for i in range(pixels.shape[0])]
    rows = [torch.cat(parts) for parts in zip(*single, strict=True)]
    parity = Parity(
        scripted_max_abs_diff=difference(expected, found),
        reloaded_max_abs_diff=difference(found, raw_outputs(reloaded, pixels)),
        batch_row_max_abs_diff=difference(found, rows),
    )
    limit = LIMIT * max(1.0, *(float(tensor.abs().max()) for tensor in expected))
    for name, value in parity.model_dump().items():
        if not value <= limit:
            raise ExportError(f"{name} is {value:.3g}, more than rounding explains ({limit:.3g}); this is a bug")
    return parity


def sample_pixels(entry: zoo.ModelSpec, count: int) -> Tensor:
    """Reproducible pictures, uint8 [count, H, W, 3]: coarse blocks with fine noise, so that outputs differ."""
    generator = torch.Generator().manual_seed(0)
    height, width = entry.input.height, entry.input.width
    cells = torch.randint(0, 200, (count, -(-height // 32), -(-width // 32), 3), generator=generator)
    blocks = cells.repeat_interleave(32, dim=1).repeat_interleave(32, dim=2)[:, :height, :width]
    return (blocks + torch.randint(0, 56, blocks.shape, generator=generator)).to(torch.uint8)
