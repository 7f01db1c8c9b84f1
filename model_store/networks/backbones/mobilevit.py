"""MobileViT (xxs, xs, s): inverted residuals, and transformer blocks that attend across 2x2 patches.

Paper: "MobileViT: Light-weight, General-purpose, and Mobile-friendly Vision Transformer", Mehta and Rastegari, ICLR
2022, https://arxiv.org/abs/2110.02178. Sizes and numerics agree with the official code, apple/ml-cvnets tag cvnets-v0.1
(Apple's sample code licence), whose golden outputs are in tests/parity/golden. This file was written from the paper and
from a description of that code; it contains no code of that project. Official weights carry Apple's licence.

Differences from the official code, none of them numerical:
- `conv_1x1_exp` and the classifier belong to `model_store.networks.heads.classifier`, not to the backbone.
- Attention goes through `scaled_dot_product_attention`.
- LayerNorm always normalises the channels. Official releases from v0.3 on normalise the patches where their number
  happens to equal the width (256x320 for xxs, for one); v0.1, to which the weights belong, does not.
- Dropout (in training only) is left out.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model_store.networks.backbones.base import Backbone, OfficialCode, RegisteredBackbone
from model_store.networks.layers import ConvNormAct, InvertedResidual, resize_bilinear
from model_store.zoo import MobileViTBackbone

PATCH_PX = 2  # side of a patch, the same in all three transformer stages of every variant
HEADS = 4


@dataclass(frozen=True)
class MobileViTConfig:
    """Sizes of one variant; tuples run over the stages named."""

    expansion: int  # of every inverted residual
    channels: tuple[int, int, int, int, int]  # stages 1..5
    widths: tuple[int, int, int]  # token width, stages 3..5; the feed-forward layer is twice as wide


DEPTHS = (2, 4, 3)  # transformer layers, stages 3..5, of every variant
STEM_CHANNELS = 16
CONFIGS = {
    "xxs": MobileViTConfig(expansion=2, channels=(16, 24, 48, 64, 80), widths=(64, 80, 96)),
    "xs": MobileViTConfig(expansion=4, channels=(32, 48, 64, 80, 96), widths=(96, 120, 144)),
    "s": MobileViTConfig(expansion=4, channels=(32, 64, 96, 128, 160), widths=(144, 192, 240)),
}


class TransformerLayer(nn.Module):
    """Pre-norm attention and feed-forward, each added to its input: float [B, L, D] -> [B, L, D]."""

    def __init__(self, *, width: int, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer."""
        batch, length, width = x.shape
        qkv = self.qkv(self.norm1(x))  # (B, L, 3*D)
        # (B, L, 3*D) -> (B, L, 3, heads, D/heads) -> (3, B, heads, L, D/heads)
        qkv = qkv.view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2])  # scale (D/heads)^-0.5 is the default
        attended = attended.transpose(1, 2).reshape(batch, length, width)  # (B, heads, L, D/heads) -> (B, L, D)
        x = x + self.out(attended)
        y: Tensor = x + self.fc2(F.silu(self.fc1(self.norm2(x))))
        return y


class MobileViTBlock(nn.Module):
    """Local convolution, attention among pixels at the same place of every patch, fusion with the block's input.

    float [N, C, H, W] -> [N, C, H, W]; any H and W.
    """

    def __init__(self, *, channels: int, width: int, depth: int) -> None:
        super().__init__()
        self.local = ConvNormAct(in_channels=channels, out_channels=channels, kernel_size=3, act="silu")
        self.to_tokens = nn.Conv2d(channels, width, 1, bias=False)
        self.layers = nn.ModuleList(
            [TransformerLayer(width=width, hidden=2 * width, heads=HEADS) for _ in range(depth)]
        )
        self.norm = nn.LayerNorm(width)
        self.from_tokens = ConvNormAct(in_channels=width, out_channels=channels, act="silu")
        self.fuse = ConvNormAct(in_channels=2 * channels, out_channels=channels, kernel_size=3, act="silu")
        self.patch: int = PATCH_PX

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        y = self.to_tokens(self.local(x))
        height, width = y.shape[2], y.shape[3]
        rows, columns = (height + self.patch - 1) // self.patch, (width + self.patch - 1) // self.patch
        resized = rows * self.patch != height or columns * self.patch != width
        if resized:  # odd sides are stretched to the next even size, never padded
            y = resize_bilinear(y, rows * self.patch, columns * self.patch, False)
        tokens = self.unfold(y, rows, columns)
        for layer in self.layers:
            tokens = layer(tokens)
        y = self.fold(self.norm(tokens), rows, columns)
        if resized:
            y = resize_bilinear(y, height, width, False)
        fused: Tensor = self.fuse(torch.cat([x, self.from_tokens(y)], dim=1))
        return fused

    def unfold(self, y: Tensor, rows: int, columns: int) -> Tensor:
        """One sequence per place inside the patch: [N, D, rows*p, columns*p] -> [N*p*p, rows*columns, D]."""
        batch, width, p = y.shape[0], y.shape[1], self.patch
        # (N, D, rows*p, columns*p) -> (N, D, rows, p, columns, p) -> (N, p, p, rows, columns, D)
        y = y.reshape(batch, width, rows, p, columns, p).permute(0, 3, 5, 2, 4, 1)
        return y.reshape(batch * p * p, rows * columns, width)  # -> (N*p*p, rows*columns, D)

    def fold(self, tokens: Tensor, rows: int, columns: int) -> Tensor:
        """Undo `unfold`: [N*p*p, rows*columns, D] -> [N, D, rows*p, columns*p], channels last in memory."""
        p = self.patch
        batch, width = tokens.shape[0] // (p * p), tokens.shape[2]
        # (N*p*p, rows*columns, D) -> (N, p, p, rows, columns, D) -> (N, rows, p, columns, p, D)
        y = tokens.view(batch, p, p, rows, columns, width).permute(0, 3, 1, 4, 2, 5)
        # -> (N, rows*p, columns*p, D) -> (N, D, rows*p, columns*p)
        return y.reshape(batch, rows * p, columns * p, width).permute(0, 3, 1, 2)


class MobileViT(Backbone):
    """The backbone: float [N, 3, H, W] -> feature maps at strides 4, 8, 16, 32 with `channels` channels each.

    `output_stride` 16 or 8 removes the stride of the last one or two stages. The dilation in force before a stage is
    what its strided convolution uses, so 16 has no dilated convolution and 8 has one (as in the official encoder).
    """

    def __init__(self, *, variant: str, output_stride: int = 32) -> None:
        super().__init__()
        if variant not in CONFIGS:
            raise ValueError(f"MobileViT has no variant {variant!r}; it has {', '.join(CONFIGS)}")
        if output_stride not in {8, 16, 32}:
            raise ValueError(f"output_stride must be 8, 16 or 32, not {output_stride}")
        config = CONFIGS[variant]
        c1, c2, c3, c4, c5 = config.channels
        self.channels = (c2, c3, c4, c5)
        stride4 = 1 if output_stride == 8 else 2
        stride5 = 2 if output_stride == 32 else 1
        dilation5 = 2 if output_stride == 8 else 1

        def residual(before: int, after: int, stride: int, dilation: int = 1) -> InvertedResidual:
            hidden = before * config.expansion
            return InvertedResidual(
                in_channels=before, out_channels=after, hidden_channels=hidden, stride=stride, dilation=dilation
            )

        def block(stage: int) -> MobileViTBlock:
            return MobileViTBlock(
                channels=config.channels[stage], width=config.widths[stage - 2], depth=DEPTHS[stage - 2]
            )

        self.stem = ConvNormAct(in_channels=3, out_channels=STEM_CHANNELS, kernel_size=3, stride=2, act="silu")
        self.stages = nn.ModuleList(
            [
                nn.Sequential(residual(STEM_CHANNELS, c1, 1)),
                nn.Sequential(residual(c1, c2, 2), residual(c2, c2, 1), residual(c2, c2, 1)),
                nn.Sequential(residual(c2, c3, 2), block(2)),
                nn.Sequential(residual(c3, c4, stride4), block(3)),
                nn.Sequential(residual(c4, c5, stride5, dilation5), block(4)),
            ]
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the outputs of stages 2 to 5."""
        x = self.stem(x)
        features: list[Tensor] = []
        for index, stage in enumerate(self.stages):
            x = stage(x)
            if index > 0:
                features.append(x)
        return features


def _build(spec: MobileViTBackbone, dense: bool) -> MobileViT:
    return MobileViT(variant=spec.variant, output_stride=spec.output_stride)


BACKBONE = RegisteredBackbone(
    spec=MobileViTBackbone,
    build=_build,
    official=OfficialCode(
        layout="cvnets",
        taps={
            "conv_1": "backbone.stem",
            **{f"layer_{i}": f"backbone.stages.{i - 1}" for i in range(1, 6)},
            "conv_1x1_exp": "head.expand",
        },
    ),
)
