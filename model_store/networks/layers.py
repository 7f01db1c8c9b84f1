"""Building blocks shared by backbones and heads: plain, scriptable, sizes by keyword.

Every convolution pads with zeros to "same" size (`dilation * (kernel_size // 2)`); a convolution followed by a
norm has no bias unless asked for. Parameter names: `ConvNormAct` holds `conv.*` and `norm.*`.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Activation = Literal["none", "relu", "relu6", "silu", "gelu", "hardswish"]


def activation(name: Activation) -> nn.Module:
    """Build the activation called `name`; `none` is the identity. GELU is the exact form (erf)."""
    if name == "relu":
        return nn.ReLU(inplace=True)
    if name == "relu6":
        return nn.ReLU6(inplace=True)
    if name == "silu":
        return nn.SiLU(inplace=True)
    if name == "gelu":
        return nn.GELU()
    if name == "hardswish":
        return nn.Hardswish(inplace=True)
    return nn.Identity()


class ConvNormAct(nn.Module):
    """Convolution, BatchNorm, activation: float [N, in, H, W] -> [N, out, ceil(H/s), ceil(W/s)]."""

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        act: Activation = "none",
        eps: float = 1e-5,
        momentum: float = 0.1,
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            padding=dilation * (kernel_size // 2),
            dilation=dilation,
            groups=groups,
            bias=bias,
        )
        self.norm = nn.BatchNorm2d(out_channels, eps=eps, momentum=momentum)
        self.act = activation(act)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the three steps."""
        y: Tensor = self.act(self.norm(self.conv(x)))
        return y


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels at each position: float [N, C, H, W] -> [N, C, H, W], channels last in memory."""

    def __init__(self, channels: int, *, eps: float) -> None:
        super().__init__(channels, eps=eps)

    def forward(self, input: Tensor) -> Tensor:
        """Normalise."""
        y = input.permute(0, 2, 3, 1)  # (N, C, H, W) -> (N, H, W, C)
        y = F.layer_norm(y, self.normalized_shape, self.weight, self.bias, self.eps)
        return y.permute(0, 3, 1, 2)  # -> (N, C, H, W)


class InvertedResidual(nn.Module):
    """Widen (1x1), filter per channel (3x3 depthwise), narrow (1x1, no activation): MobileNetV2's block.

    The input is added when stride is 1 and the channel count stays: float [N, in, H, W] -> [N, out, H/s, W/s].
    """

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        hidden_channels: int,
        stride: int = 1,
        dilation: int = 1,
        act: Activation = "silu",
    ) -> None:
        super().__init__()
        self.residual = stride == 1 and in_channels == out_channels
        self.expand = ConvNormAct(in_channels=in_channels, out_channels=hidden_channels, act=act)
        self.depthwise = ConvNormAct(
            in_channels=hidden_channels,
            out_channels=hidden_channels,
            kernel_size=3,
            stride=stride,
            dilation=dilation,
            groups=hidden_channels,
            act=act,
        )
        self.reduce = ConvNormAct(in_channels=hidden_channels, out_channels=out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        y: Tensor = self.reduce(self.depthwise(self.expand(x)))
        return x + y if self.residual else y


class Shuffle(nn.Module):
    """Interleave `groups` groups of channels: new channel j*groups + i is old channel i*(C/groups) + j."""

    def __init__(self, *, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        """Reorder float [N, C, H, W], channels last in memory."""
        batch, channels, height, width = x.shape
        # (N, C, H, W) -> (N, H, W, C) -> (N, H, W, groups, C/groups) -> (N, H, W, C/groups, groups)
        y = x.permute(0, 2, 3, 1).reshape(batch, height, width, self.groups, channels // self.groups).transpose(3, 4)
        # -> (N, H, W, C) -> (N, C, H, W)
        return y.reshape(batch, height, width, channels).permute(0, 3, 1, 2)


def resize_bilinear(x: Tensor, height: int, width: int, align_corners: bool) -> Tensor:
    """Resize [N, C, h, w] to [N, C, height, width] bilinearly, as `torch.nn.functional.interpolate` does.

    `interpolate` itself is not used: scripting compiles all its modes into the archive, and an older torch refuses an
    archive that has a mode it does not know (torch 2.11 refuses what 2.13 writes).
    """
    resized: Tensor = torch._C._nn.upsample_bilinear2d(x, [height, width], align_corners, None)
    return resized


def resize_nearest(x: Tensor, height: int, width: int) -> Tensor:
    """Resize [N, C, h, w] to [N, C, height, width] by copying the nearest cell; see `resize_bilinear`."""
    resized: Tensor = torch._C._nn.upsample_nearest2d(x, [height, width], None)
    return resized


def resize_linear(x: Tensor, width: int, align_corners: bool) -> Tensor:
    """Resize [N, C, w] to [N, C, width] linearly; see `resize_bilinear`."""
    resized: Tensor = torch._C._nn.upsample_linear1d(x, [width], align_corners, None)
    return resized
