"""Whether an engine computes what the reference computes: probe pictures, and the difference of two raw outputs.

In: the raw outputs of a network, of TorchScript in float32 and of another engine, for the same pictures. Out: a
difference, and the bound that it must not exceed. The pictures are drawn here, the same in every process.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from handlers.errors import EngineUnfit

BATCHES = (1, 2)  # pictures of the compared runs: one, and more than one
_CELL_PX = 32
_SEED = 20

# Largest difference of a raw output: root mean square of (engine - reference), in standard deviations of the reference.
# A wrong conversion is off by about 1. Measured with random weights: 3e-6 in float32 and 0.03 in bfloat16, at most
# (docs/decisions/0045-network-engines.md). The bounds leave room for other CPUs and for trained weights.
BOUNDS: dict[tuple[str, str], float] = {
    (task, dtype): bound
    for task in ("classify", "detect", "segment")
    for dtype, bound in (("float32", 1e-3), ("float16", 0.05), ("bfloat16", 0.1))
}

Raw = Callable[[torch.Tensor], Sequence[torch.Tensor]]


def pictures(count: int, *, height_px: int, width_px: int) -> torch.Tensor:
    """Coarse blocks with fine noise, uint8 [count, H, W, 3]; the same on every call."""
    generator = np.random.Generator(np.random.PCG64(_SEED))
    cells = (count, -(-height_px // _CELL_PX), -(-width_px // _CELL_PX), 3)
    blocks = generator.integers(0, 200, cells).repeat(_CELL_PX, axis=1).repeat(_CELL_PX, axis=2)
    blocks = blocks[:, :height_px, :width_px]
    return torch.from_numpy((blocks + generator.integers(0, 56, blocks.shape)).astype(np.uint8))


def difference(found: Sequence[torch.Tensor], reference: Sequence[torch.Tensor]) -> float:
    """The worst output's root mean square of the difference, over the reference's standard deviation.

    Both are raw outputs of any shape [N, ...]. Infinite where shapes or numbers of outputs differ, or where an output
    is not finite.
    """
    if len(found) != len(reference) or any(a.shape != b.shape for a, b in zip(found, reference, strict=True)):
        return float("inf")
    worst = 0.0
    for one, other in zip(found, reference, strict=True):
        a, b = one.double(), other.double()
        if not bool(torch.isfinite(a).all()):
            return float("inf")
        spread = max(float(b.std(correction=0)), 1e-6)
        worst = max(worst, float((a - b).square().mean().sqrt()) / spread)
    return worst


def check(engine: Raw, reference: Raw, *, task: str, dtype: str, height_px: int, width_px: int) -> float:
    """Run both on the probe pictures; the worst difference. Raises `EngineUnfit` beyond the bound of task and dtype."""
    pixels = pictures(sum(BATCHES), height_px=height_px, width_px=width_px)
    worst = 0.0
    for batch in torch.split(pixels, list(BATCHES)):
        worst = max(worst, difference(engine(batch), reference(batch)))
    bound = BOUNDS.get((task, dtype), 0.0)  # a task that is not known here has no bound that was measured
    if worst > bound:
        raise EngineUnfit(
            f"its raw outputs differ from the reference by {worst:.3g} of their spread; {bound} is allowed"
        )
    return worst
