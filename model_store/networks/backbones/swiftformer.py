"""SwiftFormer (XS, S, L1, L3): convolutions throughout, and one additive attention at the end of every stage.

Paper: "SwiftFormer: Efficient Additive Attention for Transformer-based Real-time Mobile Vision Applications", Shaker et
al., ICCV 2023, https://arxiv.org/abs/2303.15446. Sizes and numerics agree with the official code, Amshaker/SwiftFormer
4aa6cd6 (Apache-2.0), whose golden outputs are in tests/parity/golden. This file was written from the paper and from a
description of that code; it contains no code of that project. Official weights are Apache-2.0 too.

Two forms of attention were published, with equal names and shapes of weights. The origin of a checkpoint decides which
form it needs (`model_store.weights.layouts`):
- `l2`: the weights of the tokens are divided by their L2 norm. Official code and weights since 26 July 2023; timm.
- `ones`: every token weighs 1, because the first release had a softmax over an axis of size 1. Weights of March to July
  2023, and transformers' MBZUAI/swiftformer-*. The learned vector `weight` is loaded and has no effect.

Sizes: any. The five strided convolutions pad by 1 and round up, so a map's side is ceil(side / 2) of the one before it,
and ceil(side / 32) at the end; nothing is resized, cut or padded otherwise.

Differences from the official code, none of them numerical:
- `norm` and the two classifiers belong to `model_store.networks.heads.classifier`, not to the backbone.
- The weighted sum over tokens is a matrix product; layer scale and residual are one operation.
- `output_stride` 16 is an addition: the last downsampling loses its stride, and the depthwise convolutions behind it
get
  dilation 2, so that weights and receptive field stay as they are.
- Drop-path (0 in all published recipes) is left out.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model_store.networks.backbones.base import Backbone, OfficialCode, RegisteredBackbone
from model_store.networks.layers import ConvNormAct
from model_store.zoo import SwiftFormerBackbone

Attention = Literal["l2", "ones"]

EXPANSION = 4  # of every feed-forward part


@dataclass(frozen=True)
class SwiftFormerConfig:
    """Sizes of one variant; tuples run over the four stages."""

    channels: tuple[int, int, int, int]
    depths: tuple[int, int, int, int]  # blocks, the last one with attention


CONFIGS = {
    "xs": SwiftFormerConfig(channels=(48, 56, 112, 220), depths=(3, 3, 6, 4)),
    "s": SwiftFormerConfig(channels=(48, 64, 168, 224), depths=(3, 3, 9, 6)),
    "l1": SwiftFormerConfig(channels=(48, 96, 192, 384), depths=(4, 3, 10, 5)),
    "l3": SwiftFormerConfig(channels=(64, 128, 320, 512), depths=(4, 4, 12, 6)),
}


class FeedForward(nn.Module):
    """Two 1x1 convolutions with GELU between: float [N, C, H, W] -> [N, C, H, W], channels last in memory."""

    def __init__(self, *, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, hidden, 1)
        self.fc2 = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the three layers, as matrix products over positions: torch's GELU is twice as fast on such a tensor."""
        y = x.permute(0, 2, 3, 1)  # (N, C, H, W) -> (N, H, W, C)
        y = F.gelu(F.linear(y, self.fc1.weight.flatten(1), self.fc1.bias))  # weights (hidden, C, 1, 1) -> (hidden, C)
        y = F.linear(y, self.fc2.weight.flatten(1), self.fc2.bias)
        return y.permute(0, 3, 1, 2)  # (N, H, W, C) -> (N, C, H, W)


class ConvBlock(nn.Module):
    """3x3 depthwise convolution, BatchNorm, feed-forward part, scaled and added to the input.

    float [N, C, H, W] -> [N, C, H, W].
    """

    def __init__(self, *, channels: int, hidden: int, dilation: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=dilation, dilation=dilation, groups=channels)
        self.norm = nn.BatchNorm2d(channels)
        self.feed_forward = FeedForward(channels=channels, hidden=hidden)
        self.scale = nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        return torch.addcmul(x, self.scale, self.feed_forward(self.norm(self.depthwise(x))))


class AdditiveAttention(nn.Module):
    """A weighted sum of all queries, multiplied with each key: float [N, L, C] -> [N, L, C]."""

    def __init__(self, *, channels: int, attention: Attention) -> None:
        super().__init__()
        self.query = nn.Linear(channels, channels)
        self.key = nn.Linear(channels, channels)
        self.weight = nn.Parameter(torch.randn(channels, 1))
        self.project = nn.Linear(channels, channels)
        self.out = nn.Linear(channels, channels)
        self.scale = float(channels) ** -0.5
        self.weighted = attention == "l2"

    def forward(self, x: Tensor) -> Tensor:
        """Apply the attention."""
        query = F.normalize(self.query(x), dim=2)
        key = F.normalize(self.key(x), dim=2)
        if self.weighted:
            weights = F.normalize((query @ self.weight) * self.scale, dim=1)  # (N, L, 1)
            pooled = weights.transpose(1, 2) @ query  # (N, 1, L) @ (N, L, C) -> (N, 1, C)
        else:
            pooled = query.sum(dim=1, keepdim=True)
        y: Tensor = self.out(self.project(pooled * key) + query)
        return y


class AttentionBlock(nn.Module):
    """A `ConvBlock` that does not widen, attention over all positions, then BatchNorm and feed-forward part.

    float [N, C, H, W] -> [N, C, H, W].
    """

    def __init__(self, *, channels: int, dilation: int, attention: Attention) -> None:
        super().__init__()
        self.local = ConvBlock(channels=channels, hidden=channels, dilation=dilation)
        self.attention = AdditiveAttention(channels=channels, attention=attention)
        self.norm = nn.BatchNorm2d(channels)
        self.feed_forward = FeedForward(channels=channels, hidden=EXPANSION * channels)
        self.scale1 = nn.Parameter(torch.full((channels, 1, 1), 1e-5))
        self.scale2 = nn.Parameter(torch.full((channels, 1, 1), 1e-5))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        x = self.local(x)
        batch, channels, height, width = x.shape
        # (N, C, H, W) -> (N, H, W, C) -> (N, H*W, C): no copy where x is channels last in memory
        attended = self.attention(x.permute(0, 2, 3, 1).reshape(batch, height * width, channels))
        # (N, H*W, C) -> (N, H, W, C) -> (N, C, H, W), channels last in memory
        attended = attended.view(batch, height, width, channels).permute(0, 3, 1, 2)
        x = torch.addcmul(x, self.scale1, attended)
        return torch.addcmul(x, self.scale2, self.feed_forward(self.norm(x)))


class SwiftFormer(Backbone):
    """The backbone: float [N, 3, H, W] -> feature maps at strides 4, 8, 16, 32 with `channels` channels each.

    Args:
        variant: a name in `CONFIGS`.
        output_stride: 32, or 16 for a last map twice as fine.
        attention: see the head of this file.
        dense: normalise each of the four maps (BatchNorm; with fresh weights the identity), as the official code does
            for detection and segmentation. For classification the head normalises the last map instead.

    """

    def __init__(
        self, *, variant: str, output_stride: int = 32, attention: Attention = "l2", dense: bool = False
    ) -> None:
        super().__init__()
        if variant not in CONFIGS:
            raise ValueError(f"SwiftFormer has no variant {variant!r}; it has {', '.join(CONFIGS)}")
        if output_stride not in {16, 32}:
            raise ValueError(f"output_stride must be 16 or 32, not {output_stride}")
        if attention not in {"l2", "ones"}:
            raise ValueError(f"attention must be 'l2' or 'ones', not {attention!r}")
        config = CONFIGS[variant]
        self.channels = config.channels
        before = (config.channels[0], *config.channels)  # channels that enter each stage's downsampling
        self.stem = nn.Sequential(
            ConvNormAct(in_channels=3, out_channels=before[0] // 2, kernel_size=3, stride=2, act="relu", bias=True),
            ConvNormAct(
                in_channels=before[0] // 2, out_channels=before[0], kernel_size=3, stride=2, act="relu", bias=True
            ),
        )
        downsamples: list[nn.Module] = [nn.Identity()]  # the stem downsamples for the first stage
        stages: list[nn.Module] = []
        for stage, (channels, depth) in enumerate(zip(config.channels, config.depths, strict=True)):
            fine = stage == 3 and output_stride == 16
            dilation = 2 if fine else 1
            if stage > 0:
                downsamples.append(
                    ConvNormAct(
                        in_channels=before[stage],
                        out_channels=channels,
                        kernel_size=3,
                        stride=1 if fine else 2,
                        bias=True,
                    )
                )
            stages.append(
                nn.Sequential(
                    *(
                        ConvBlock(channels=channels, hidden=EXPANSION * channels, dilation=dilation)
                        for _ in range(depth - 1)
                    ),
                    AttentionBlock(channels=channels, dilation=dilation, attention=attention),
                )
            )
        self.downsamples = nn.ModuleList(downsamples)
        self.stages = nn.ModuleList(stages)
        self.norms = nn.ModuleList(
            [nn.BatchNorm2d(channels) if dense else nn.Identity() for channels in config.channels]
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the outputs of the four stages."""
        x = self.stem(x)
        features: list[Tensor] = []
        for downsample, stage, norm in zip(self.downsamples, self.stages, self.norms):  # noqa: B905 - TorchScript has no strict
            x = stage(downsample(x))
            features.append(norm(x))
        return features


def _build(spec: SwiftFormerBackbone, dense: bool) -> SwiftFormer:
    return SwiftFormer(variant=spec.variant, output_stride=spec.output_stride, attention=spec.attention, dense=dense)


BACKBONE = RegisteredBackbone(
    spec=SwiftFormerBackbone,
    build=_build,
    official=OfficialCode(
        layout="swiftformer",
        taps={
            "patch_embed": "backbone.stem",
            **{f"network.{2 * i}": f"backbone.stages.{i}" for i in range(4)},
            "norm": "head.norm",
        },
        notes={"attention of the first public release": {"attention": "ones"}},
    ),
)
