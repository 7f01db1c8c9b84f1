"""The first stage of every served module: uint8 pixels in, the network's input out.

In: uint8 [N, H, W, 3] RGB, already at the model's input size. Out: float [N, 3, H, W]. It never resizes.
"""

import torch
from torch import Tensor, nn

from handlers.contract.card import Normalize


class Pixels(nn.Module):
    """uint8 [N, H, W, 3] RGB to the network's input: [N, 3, H, W], scaled to 0..1, ordered, minus mean, over std."""

    scale_steps: Tensor
    shift_steps: Tensor
    like_weights: Tensor

    def __init__(self, *, normalize: Normalize) -> None:
        super().__init__()
        std = torch.tensor(normalize.std, dtype=torch.float64)
        mean = torch.tensor(normalize.mean, dtype=torch.float64)
        scale = (1.0 / (255.0 * std)).float().view(1, 3, 1, 1)
        shift = (-mean / std).float().view(1, 3, 1, 1)
        self.flip = normalize.channel_order == "BGR"
        # As integers, because `module.to(torch.bfloat16)` rounds float buffers, 1/255 by 0.4 %. In steps of 2**-40
        # nothing is lost: a float32 from 2**-16 up is a multiple of that.
        self.register_buffer("scale_steps", (scale.double() * 2.0**40).round().to(torch.int64))
        self.register_buffer("shift_steps", (shift.double() * 2.0**40).round().to(torch.int64))
        self.register_buffer("like_weights", torch.zeros(()))  # has the weights' dtype after any cast

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalise in float32; the result has the dtype of the weights."""
        x = pixels.permute(0, 3, 1, 2)  # (N, H, W, 3) -> (N, 3, H, W), channels last in memory
        if self.flip:
            x = x.flip(1)
        scale = self.scale_steps.to(torch.float32) * 2.0**-40
        shift = self.shift_steps.to(torch.float32) * 2.0**-40
        y = x.to(torch.float32) * scale + shift
        return y.to(self.like_weights.dtype)
