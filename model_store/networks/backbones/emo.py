"""EMO (1M, 2M, 5M, 6M): one inverted residual block with window attention in it, repeated in four stages.

Paper: "Rethinking Mobile Block for Efficient Attention-based Models", Zhang et al., ICCV 2023,
https://arxiv.org/abs/2301.01146. Sizes and numerics agree with the official code, zhangzjn/EMO commit 27d9b40 (that
repository states no licence, neither for its code nor for its weights), whose golden outputs are in
tests/parity/golden. This file was written from the paper and from a description of that code; it contains no code of
that project.

Differences from the official code, none of them numerical:
- The closing norm and the classifier belong to `model_store.networks.heads.classifier`, not to the backbone.
- Maps are cut into windows before queries and keys are computed, not after, so that fewer numbers move in memory.
- Attention goes through `scaled_dot_product_attention`.
- Stochastic depth (in training only) is left out.

Any input size works: convolutions round up, and maps are padded to a multiple of the window for the attention alone.
The padding takes part as keys whose values are zero, as in the official code.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from model_store.networks.backbones.base import Backbone, OfficialCode, RegisteredBackbone
from model_store.networks.layers import ChannelNorm, ConvNormAct
from model_store.zoo import EMOBackbone

STEM_CHANNELS = 24
EPS = 1e-6  # of every norm
WINDOW = 7  # cells; of the classifiers. Dense tasks with 5M use larger windows.


@dataclass(frozen=True)
class EMOConfig:
    """Sizes of one variant; tuples run over stages 1..4, `heads` over 3 and 4, the ones with attention."""

    depths: tuple[int, int, int, int]
    channels: tuple[int, int, int, int]
    expansions: tuple[float, float, float, float]  # twice as much in the first block of a stage
    heads: tuple[int, int]


CONFIGS = {
    "1m": EMOConfig(depths=(2, 2, 8, 3), channels=(32, 48, 80, 168), expansions=(2, 2.5, 3, 3.5), heads=(4, 8)),
    "2m": EMOConfig(depths=(3, 3, 9, 3), channels=(32, 48, 120, 200), expansions=(2, 2.5, 3, 3.5), heads=(6, 10)),
    "5m": EMOConfig(depths=(3, 3, 9, 3), channels=(48, 72, 160, 288), expansions=(2, 3, 4, 4), heads=(5, 9)),
    "6m": EMOConfig(depths=(3, 3, 9, 3), channels=(48, 72, 160, 320), expansions=(2, 3, 4, 5), heads=(8, 10)),
}


class SqueezeExcite(nn.Module):
    """Scale every channel by a number in 0..1 made from the means of all: float [N, C, H, W] -> [N, C, H, W]."""

    def __init__(self, *, channels: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, channels, 1)
        self.expand = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the scales."""
        means = x.mean(dim=[2, 3], keepdim=True)  # (N, C, H, W) -> (N, C, 1, 1)
        scales: Tensor = self.expand(F.silu(self.reduce(means))).sigmoid()
        return x * scales


class EntryBlock(nn.Module):
    """Depthwise 3x3, squeeze-excite, 1x1, right after the stem: float [N, C, H, W] -> [N, C, H, W]."""

    def __init__(self, *, channels: int) -> None:
        super().__init__()
        self.depthwise = ConvNormAct(
            in_channels=channels, out_channels=channels, kernel_size=3, groups=channels, act="silu", eps=EPS
        )
        self.excite = SqueezeExcite(channels=channels)
        self.reduce = nn.Conv2d(channels, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        y: Tensor = self.reduce(self.excite(self.depthwise(x)))
        return y


class WindowAttention(nn.Module):
    """Attention inside windows that each span the whole map: float [N, C, H, W] -> [N, C, H, W].

    With r windows along an axis, the positions i, i + r, i + 2r, ... of that axis form one. The values attended are
    the input itself; queries and keys are made from it by a 1x1 convolution.
    """

    def __init__(self, *, channels: int, heads: int, window: int) -> None:
        super().__init__()
        if window < 1:
            raise ValueError(f"window must be at least 1, not {window}")
        self.heads = heads
        self.window = window
        self.qk = nn.Conv2d(channels, 2 * channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Attend."""
        batch, channels, height, width = x.shape
        side, heads = self.window, self.heads
        rows, columns = (height + side - 1) // side, (width + side - 1) // side  # windows along each axis
        padded = rows * side != height or columns * side != width
        if padded:
            x = F.pad(x, [0, columns * side - width, 0, rows * side - height])
        # (N, C, side*rows, side*columns) -> (N, side, rows, side, columns, C) -> (N, rows, columns, side, side, C)
        windows = x.permute(0, 2, 3, 1).reshape(batch, side, rows, side, columns, channels).permute(0, 2, 4, 1, 3, 5)
        windows = windows.reshape(-1, side, side, channels)  # -> (W, side, side, C), W = N*rows*columns
        qk = self.qk(windows.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)  # (W, side, side, 2*C)
        # (W, side, side, 2*C) -> (W, L, 2, heads, C/heads) -> (2, W, heads, L, C/heads), L = side*side
        qk = qk.reshape(-1, side * side, 2, heads, channels // heads).permute(2, 0, 3, 1, 4)
        # (W, side, side, C) -> (W, L, heads, C/heads) -> (W, heads, L, C/heads)
        values = windows.reshape(-1, side * side, heads, channels // heads).transpose(1, 2)
        y = F.scaled_dot_product_attention(qk[0], qk[1], values)  # scale (C/heads)^-0.5 is the default
        # (W, heads, L, C/heads) -> (N, rows, columns, side, side, C) -> (N, side, rows, side, columns, C)
        y = y.transpose(1, 2).reshape(batch, rows, columns, side, side, channels).permute(0, 3, 1, 4, 2, 5)
        y = y.reshape(batch, side * rows, side * columns, channels)  # -> (N, side*rows, side*columns, C)
        if padded:
            y = y[:, :height, :width]
        return y.permute(0, 3, 1, 2)


class MobileBlock(nn.Module):
    """Norm, attention or nothing, widening 1x1, depthwise convolution, narrowing 1x1: the paper's iRMB.

    float [N, in, H, W] -> [N, out, ceil(H/s), ceil(W/s)]. With stride 1 and equal channels there are two residuals: one
    around the depthwise convolution and one around the block. `heads` 0 means no attention. The activation after the
    depthwise convolution is SiLU in every stage.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        expansion: float,
        kernel_size: int,
        stride: int,
        late: bool,
        heads: int,
        window: int,
    ) -> None:
        super().__init__()
        hidden = int(in_channels * expansion)
        self.residual = stride == 1 and in_channels == out_channels
        self.norm = ChannelNorm(in_channels, eps=EPS) if late else nn.BatchNorm2d(in_channels, eps=EPS)
        self.attend: nn.Module = nn.Identity()
        if heads:
            self.attend = WindowAttention(channels=in_channels, heads=heads, window=window)
        self.expand = nn.Conv2d(in_channels, hidden, 1)
        self.act: nn.Module = nn.GELU() if late else nn.SiLU(inplace=True)
        self.depthwise = ConvNormAct(
            in_channels=hidden,
            out_channels=hidden,
            kernel_size=kernel_size,
            stride=stride,
            groups=hidden,
            act="silu",
            eps=EPS,
        )
        self.reduce = nn.Conv2d(hidden, out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        y: Tensor = self.act(self.expand(self.attend(self.norm(x))))
        z: Tensor = self.depthwise(y)
        if not self.residual:
            narrow: Tensor = self.reduce(z)
            return narrow
        added: Tensor = x + self.reduce(y + z)
        return added


class EMO(Backbone):
    """The backbone: float [N, 3, H, W] -> feature maps at strides 4, 8, 16, 32 with `channels` channels each.

    `window` is the side of an attention window in cells of the map. It changes no parameter; official configurations
    take 7, except for 5M: 10 with SSDLite and RetinaNet, 16 with DeepLabv3 and PSPNet.
    """

    def __init__(self, *, variant: str, window: int = WINDOW) -> None:
        super().__init__()
        if variant not in CONFIGS:
            raise ValueError(f"EMO has no variant {variant!r}; it has {', '.join(CONFIGS)}")
        config = CONFIGS[variant]
        self.channels = config.channels
        self.stem = ConvNormAct(in_channels=3, out_channels=STEM_CHANNELS, kernel_size=3, stride=2, bias=True, eps=EPS)
        self.entry = EntryBlock(channels=STEM_CHANNELS)
        stages = []
        before = STEM_CHANNELS
        for index, (depth, after, expansion) in enumerate(
            zip(config.depths, config.channels, config.expansions, strict=True)
        ):
            late = index >= 2
            blocks = [
                MobileBlock(
                    in_channels=after if block else before,
                    out_channels=after,
                    expansion=expansion if block else 2 * expansion,
                    kernel_size=5 if late else 3,
                    stride=1 if block else 2,
                    late=late,
                    heads=config.heads[index - 2] if late and block else 0,
                    window=window,
                )
                for block in range(depth)
            ]
            stages.append(nn.Sequential(*blocks))
            before = after
        self.stages = nn.ModuleList(stages)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the outputs of stages 1 to 4."""
        x = self.entry(self.stem(x))
        features: list[Tensor] = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features


def padding_macs(backbone: EMO, height: int, width: int) -> int:
    """Multiply-adds that the official code spends, beyond ours, on widening padding that is then cut off.

    The official code cuts the padding of the windows off after the 1x1 convolution that follows the attention, this
    file does so before. `height` and `width` are those of the input in pixels.
    """
    total = 0
    for index, stage in enumerate(backbone.stages):
        stride = 4 << index
        rows, columns = -(-height // stride), -(-width // stride)
        for block in stage.children():
            if isinstance(block, MobileBlock) and isinstance(block.attend, WindowAttention):
                side = block.attend.window
                padded = (-(-rows // side) * side) * (-(-columns // side) * side)
                total += (padded - rows * columns) * block.expand.in_channels * block.expand.out_channels
    return total


def _build(spec: EMOBackbone, dense: bool) -> EMO:
    if spec.output_stride != 32:
        raise ValueError(f"EMO has output stride 32, not {spec.output_stride}")
    return EMO(variant=spec.variant, window=spec.window)


BACKBONE = RegisteredBackbone(
    spec=EMOBackbone,
    build=_build,
    official=OfficialCode(
        layout="emo",
        taps={
            "stage0.1": "backbone.entry",
            **{f"stage{i}.{j}": f"backbone.stages.{i - 1}.{j}" for i in range(1, 5) for j in range(9)},
            "norm": "head.norm",
        },
        arguments={"window_sizes": "window"},
        extra_macs=padding_macs,
    ),
)
