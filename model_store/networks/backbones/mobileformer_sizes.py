"""The sizes of the seven Mobile-Formers, from the paper and AAboys/MobileFormer f447310. Facts only."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class BlockConfig:
    """One block: its kind, the expansion of its (first) depthwise convolution, the channels it ends in, its stride."""

    kind: Literal["lite", "down", "bottleneck"]
    expansion: int
    channels: int
    stride: int = 1


@dataclass(frozen=True)
class MobileFormerConfig:
    """Sizes of one variant."""

    stem_channels: int
    tokens: int  # T
    width: int  # D
    groups: int  # of the 1x1 convolutions; more than one brings shuffles of channels
    blocks: tuple[BlockConfig, ...]


def _lite(expansion: int, channels: int, stride: int) -> BlockConfig:
    return BlockConfig("lite", expansion, channels, stride)


def _down(channels: int) -> BlockConfig:
    return BlockConfig("down", 6, channels, 2)


def _bottleneck(expansion: int, channels: int) -> BlockConfig:
    return BlockConfig("bottleneck", expansion, channels)


def _smallest(groups: int) -> MobileFormerConfig:
    """26M and 52M differ in the groups only."""
    return MobileFormerConfig(
        stem_channels=8,
        tokens=3,
        width=128,
        groups=groups,
        blocks=(
            _lite(3, 12, 2),
            _bottleneck(3, 12),
            _down(24),
            _bottleneck(3, 24),
            _down(48),
            _bottleneck(4, 48),
            _bottleneck(6, 64),
            _down(96),
            _bottleneck(6, 96),
        ),
    )


def _large(
    stem_channels: int, channels: tuple[int, int, int, int, int], expansions: tuple[int, int]
) -> MobileFormerConfig:
    """151M to 508M: `channels` after the blocks 2, 4, 6, 8 and 11, `expansions` of the blocks 2 and 4."""
    c1, c2, c3, c4, c5 = channels
    return MobileFormerConfig(
        stem_channels=stem_channels,
        tokens=6,
        width=192,
        groups=1,
        blocks=(
            _lite(2, stem_channels, 1),
            _down(c1),
            _bottleneck(expansions[0], c1),
            _down(c2),
            _bottleneck(expansions[1], c2),
            _down(c3),
            _bottleneck(4, c3),
            _bottleneck(6, c4),
            _bottleneck(6, c4),
            _down(c5),
            _bottleneck(6, c5),
            _bottleneck(6, c5),
        ),
    )


CONFIGS = {
    "26m": _smallest(groups=4),
    "52m": _smallest(groups=1),
    "96m": MobileFormerConfig(
        stem_channels=12,
        tokens=4,
        width=128,
        groups=1,
        blocks=(
            _lite(2, 12, 1),
            _down(16),
            _down(32),
            _bottleneck(3, 32),
            _down(64),
            _bottleneck(4, 64),
            _bottleneck(6, 88),
            _down(128),
            _bottleneck(6, 128),
        ),
    ),
    "151m": _large(12, (16, 32, 64, 88, 128), (3, 3)),
    "214m": _large(12, (20, 40, 80, 112, 160), (3, 4)),
    "294m": _large(16, (24, 48, 96, 128, 192), (4, 4)),
    "508m": _large(24, (40, 72, 128, 176, 240), (3, 3)),
}
