"""Mobile-Former (26M ... 508M): a MobileNet beside a few learned tokens; both read each other in every block.

Paper: "Mobile-Former: Bridging MobileNet and Transformer", Chen et al., CVPR 2022, https://arxiv.org/abs/2108.05895.
Sizes and numerics agree with the public code that published the weights, AAboys/MobileFormer f447310 (no licence file),
whose golden outputs are in tests/parity/golden. This file was written from the paper and from a
description of that code; it contains no code of that project.

Two streams: the map x, float [N, C, H, W], and the tokens z, float [N, T, D], which start equal for every picture. A
block first lets the tokens read the map and each other, then runs its convolutions with activations that token 0
steers, then lets the map read the tokens. All norms of the tokens stand behind the sum (post-norm).

Sizes: any. The five strided convolutions pad by 1 and round up, so a map's side is ceil(side / 2) of the one before it,
and ceil(side / 32) at the end; nothing is resized, cut or padded otherwise.

Differences from that code, none of them numerical:
- Tokens are stored picture first, [N, T, D]; that code stores [T, N, D].
- Attention goes through `scaled_dot_product_attention`.
- The classifier belongs to `model_store.networks.heads.classifier`. The step that reads the last map into the tokens
  once more (`closing`) exists where the head needs tokens, which the dense heads do not.
- `output_stride` 16 is an addition: the last strided convolution loses its stride, and the depthwise convolutions
behind it
  get dilation 2, so that weights and receptive field stay as they are.
- Left out: options that none of the seven variants uses, drop-path (0 in all published recipes), and dropout.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model_store.networks.backbones.base import Backbone, OfficialCode, RegisteredBackbone
from model_store.networks.backbones.mobileformer_sizes import CONFIGS, BlockConfig
from model_store.networks.layers import ConvNormAct, Shuffle
from model_store.zoo import MobileFormerBackbone

FEATURE_HEADS = 2  # attention between map and tokens
TOKEN_HEADS = 4  # attention among tokens
DOWN_EXPANSION2 = 4  # of the second half of every down block


def _shuffle(groups: int, *, when: bool) -> nn.Module:
    return Shuffle(groups=groups) if when else nn.Identity()


def flatten_map(x: Tensor) -> Tensor:
    """Positions in raster order: [N, C, H, W] -> [N, H*W, C]; no copy where x is channels last in memory."""
    return x.permute(0, 2, 3, 1).reshape(x.shape[0], x.shape[2] * x.shape[3], x.shape[1])


def split_heads(x: Tensor, heads: int) -> Tensor:
    """Contiguous channels to each head: [N, L, C] -> [N, L, heads, C/heads] -> [N, heads, L, C/heads]."""
    return x.view(x.shape[0], x.shape[1], heads, x.shape[2] // heads).transpose(1, 2)


def join_heads(x: Tensor) -> Tensor:
    """Undo `split_heads`: [N, heads, L, C/heads] -> [N, L, heads, C/heads] -> [N, L, C]."""
    return x.transpose(1, 2).reshape(x.shape[0], x.shape[2], x.shape[1] * x.shape[3])


class DynamicReLU(nn.Module):
    """max(a*x, b*x) with a in 0..2 and b in -1..1 per picture and channel, made from token 0."""

    def __init__(self, *, channels: int, width: int) -> None:
        super().__init__()
        self.channels = channels
        self.fc1 = nn.Linear(width, width // 4)
        self.fc2 = nn.Linear(width // 4, 2 * channels)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """Activate float [N, C, H, W], steered by tokens float [N, T, D]."""
        h = F.hardsigmoid(self.fc2(F.relu(self.fc1(z[:, 0]))))  # (N, 2*C), 0..1
        slopes = (2.0 * h - 1.0).unsqueeze(2).unsqueeze(3)  # (N, 2*C, 1, 1), -1..1
        return torch.maximum(x * (slopes[:, : self.channels] + 1.0), x * slopes[:, self.channels :])


class LocalToGlobal(nn.Module):
    """Tokens read the map: the tokens make the queries, the positions are keys and values. Returns tokens [N, T, D]."""

    def __init__(self, *, channels: int, width: int) -> None:
        super().__init__()
        self.heads: int = FEATURE_HEADS
        self.query = nn.Linear(width, channels)
        self.gate = nn.Linear(width, channels)
        self.project = nn.Linear(channels, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """Take the map float [N, C, H, W] and the tokens float [N, T, D]."""
        query = split_heads(self.query(z), self.heads)  # (N, heads, T, C/heads)
        positions = split_heads(flatten_map(x), self.heads)  # (N, heads, H*W, C/heads)
        # scale (C/heads)^-0.5 is the default
        read = join_heads(F.scaled_dot_product_attention(query, positions, positions))  # (N, T, C)
        read = read * (2.0 * F.hardsigmoid(self.gate(z)))
        y: Tensor = self.norm(z + self.project(read))
        return y


class TokenLayer(nn.Module):
    """Tokens read each other, then a feed-forward part: float [N, T, D] -> [N, T, D]."""

    def __init__(self, *, width: int) -> None:
        super().__init__()
        self.heads: int = TOKEN_HEADS
        self.query = nn.Linear(width, width)
        self.project = nn.Linear(width, width)
        self.norm1 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, 2 * width)
        self.fc2 = nn.Linear(2 * width, width)
        self.norm2 = nn.LayerNorm(width)

    def forward(self, z: Tensor) -> Tensor:
        """Apply the layer."""
        tokens = split_heads(z, self.heads)  # keys and values, without a projection
        read = join_heads(
            F.scaled_dot_product_attention(split_heads(self.query(z), self.heads), tokens, tokens)
        )  # (N, T, D)
        z = self.norm1(z + self.project(read))
        y: Tensor = self.norm2(z + self.fc2(F.gelu(self.fc1(z))))
        return y


class GlobalToLocal(nn.Module):
    """The map reads the tokens: the positions are the queries. Returns the map [N, C, H, W], channels last."""

    def __init__(self, *, channels: int, width: int) -> None:
        super().__init__()
        self.heads: int = FEATURE_HEADS
        self.key = nn.Linear(width, channels)
        self.value = nn.Linear(width, channels)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """Take the map float [N, C, H, W] and the tokens float [N, T, D]."""
        batch, channels, height, width = x.shape
        positions = flatten_map(x)  # (N, H*W, C)
        key = split_heads(self.key(z), self.heads)  # (N, heads, T, C/heads)
        value = split_heads(self.value(z), self.heads)
        read = F.scaled_dot_product_attention(split_heads(positions, self.heads), key, value)
        y = positions + join_heads(read)  # (N, H*W, C)
        return y.view(batch, height, width, channels).permute(0, 3, 1, 2)  # -> (N, H, W, C) -> (N, C, H, W)


class LiteBlock(nn.Module):
    """Depthwise and 1x1 convolution. The tokens pass unchanged."""

    def __init__(self, *, in_channels: int, config: BlockConfig, groups: int) -> None:
        super().__init__()
        hidden = in_channels * config.expansion
        self.residual = config.stride == 1 and in_channels == config.channels
        self.depthwise = ConvNormAct(
            in_channels=in_channels,
            out_channels=hidden,
            kernel_size=3,
            stride=config.stride,
            groups=in_channels,
            act="relu6",
        )
        self.shuffle = _shuffle(in_channels, when=groups > 1)
        self.reduce = ConvNormAct(in_channels=hidden, out_channels=config.channels, groups=groups)

    def forward(self, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Map float [N, in, H, W] and tokens -> map [N, out, ceil(H/stride), ceil(W/stride)] and the same tokens."""
        y: Tensor = self.reduce(self.shuffle(self.depthwise(x)))
        if self.residual:
            y = x + y
        return y, z


class DownBlock(nn.Module):
    """Halves the map: a strided depthwise and a 1x1 convolution, then the same without stride as a residual.

    An activation or a shuffle has the number of the convolution before it. The same holds for `BottleneckBlock`.
    """

    def __init__(
        self, *, in_channels: int, config: BlockConfig, width: int, groups: int, stride: int, dilation: int
    ) -> None:
        super().__init__()
        channels = config.channels
        hidden1, hidden2 = in_channels * config.expansion, channels * DOWN_EXPANSION2
        self.local_to_global = LocalToGlobal(channels=in_channels, width=width)
        self.token_layer = TokenLayer(width=width)
        self.conv1 = ConvNormAct(
            in_channels=in_channels, out_channels=hidden1, kernel_size=3, stride=stride, groups=in_channels
        )
        self.shuffle1 = _shuffle(in_channels, when=groups > 1)
        self.act1 = DynamicReLU(channels=hidden1, width=width)
        self.conv2 = ConvNormAct(in_channels=hidden1, out_channels=channels, groups=groups)
        self.conv3 = ConvNormAct(
            in_channels=channels, out_channels=hidden2, kernel_size=3, dilation=dilation, groups=channels
        )
        self.shuffle3 = _shuffle(channels, when=groups > 1)
        self.act3 = DynamicReLU(channels=hidden2, width=width)
        self.conv4 = ConvNormAct(in_channels=hidden2, out_channels=channels, groups=groups)
        self.global_to_local = GlobalToLocal(channels=channels, width=width)

    def forward(self, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Map float [N, in, H, W] and tokens -> map [N, out, ceil(H/stride), ceil(W/stride)] and new tokens."""
        z = self.token_layer(self.local_to_global(x, z))
        y = self.conv2(self.act1(self.shuffle1(self.conv1(x)), z))
        y = y + self.conv4(self.act3(self.shuffle3(self.conv3(y)), z))
        return self.global_to_local(y, z), z


class BottleneckBlock(nn.Module):
    """1x1, depthwise, 1x1 convolution; the input is added where the channel count stays."""

    def __init__(self, *, in_channels: int, config: BlockConfig, width: int, groups: int, dilation: int) -> None:
        super().__init__()
        hidden = in_channels * config.expansion
        self.residual = in_channels == config.channels
        self.local_to_global = LocalToGlobal(channels=in_channels, width=width)
        self.token_layer = TokenLayer(width=width)
        self.conv1 = ConvNormAct(in_channels=in_channels, out_channels=hidden, groups=groups)
        self.shuffle1 = _shuffle(groups, when=groups > 1)
        self.act1 = DynamicReLU(channels=hidden, width=width)
        self.conv2 = ConvNormAct(
            in_channels=hidden, out_channels=hidden, kernel_size=3, dilation=dilation, groups=hidden
        )
        self.act2 = DynamicReLU(channels=hidden, width=width)
        self.conv3 = ConvNormAct(in_channels=hidden, out_channels=config.channels, groups=groups)
        self.shuffle3 = _shuffle(groups, when=groups > 1)
        self.global_to_local = GlobalToLocal(channels=config.channels, width=width)

    def forward(self, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Map float [N, in, H, W] and tokens -> map [N, out, H, W] and new tokens."""
        z = self.token_layer(self.local_to_global(x, z))
        y = self.act1(self.shuffle1(self.conv1(x)), z)
        y = self.shuffle3(self.conv3(self.act2(self.conv2(y), z)))
        if self.residual:
            y = x + y
        return self.global_to_local(y, z), z


class MobileFormer(Backbone):
    """The backbone: float [N, 3, H, W] -> feature maps at strides 4, 8, 16, 32 with `channels` channels each.

    Args:
        variant: a name in `CONFIGS`.
        output_stride: 32, or 16 for a last map twice as fine.
        tokens: return the tokens too, float [N, T, D], as the fifth entry; classification needs them.

    """

    def __init__(self, *, variant: str, output_stride: int = 32, tokens: bool = False) -> None:
        super().__init__()
        if variant not in CONFIGS:
            raise ValueError(f"Mobile-Former has no variant {variant!r}; it has {', '.join(CONFIGS)}")
        if output_stride not in {16, 32}:
            raise ValueError(f"output_stride must be 16 or 32, not {output_stride}")
        config = CONFIGS[variant]
        width, groups = config.width, config.groups
        self.stem = ConvNormAct(in_channels=3, out_channels=config.stem_channels, kernel_size=3, stride=2, act="relu6")
        self.tokens = nn.Parameter(torch.randn(config.tokens, width))
        blocks: list[nn.Module] = []
        channels, nominal_stride = config.stem_channels, 2
        last_at: dict[int, int] = {}  # nominal stride -> index of the last block there
        channels_at: dict[int, int] = {}
        for index, block in enumerate(config.blocks):
            nominal_stride *= block.stride
            dilation = nominal_stride // output_stride if nominal_stride > output_stride else 1
            if block.kind == "lite":
                blocks.append(LiteBlock(in_channels=channels, config=block, groups=groups))
            elif block.kind == "down":
                stride = 1 if nominal_stride > output_stride else block.stride
                blocks.append(
                    DownBlock(
                        in_channels=channels,
                        config=block,
                        width=width,
                        groups=groups,
                        stride=stride,
                        dilation=dilation,
                    )
                )
            else:
                blocks.append(
                    BottleneckBlock(in_channels=channels, config=block, width=width, groups=groups, dilation=dilation)
                )
            channels = block.channels
            last_at[nominal_stride], channels_at[nominal_stride] = index, channels
        self.blocks = nn.ModuleList(blocks)
        self.taps = [last_at[stride] for stride in (4, 8, 16, 32)]  # blocks whose maps are returned
        self.channels = (channels_at[4], channels_at[8], channels_at[16], channels_at[32])
        self.closing = LocalToGlobal(channels=channels, width=width) if tokens else None

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the last map at each stride, then the tokens if `tokens` was set."""
        x = self.stem(x)
        z = self.tokens.repeat(x.shape[0], 1, 1)  # (T, D) -> (N, T, D)
        features: list[Tensor] = []
        for index, block in enumerate(self.blocks):
            x, z = block(x, z)
            if index in self.taps:
                features.append(x)
        if self.closing is not None:
            features.append(self.closing(x, z))
        return features


def _build(spec: MobileFormerBackbone, dense: bool) -> MobileFormer:
    return MobileFormer(variant=spec.variant, output_stride=spec.output_stride, tokens=not dense)


BACKBONE = RegisteredBackbone(
    spec=MobileFormerBackbone,
    build=_build,
    official=OfficialCode(
        layout="mobileformer",
        taps={
            "stem": "backbone.stem",
            **{f"features.{i}": f"backbone.blocks.{i}" for i in range(12)},
            "local_global": "backbone.closing",
        },
        token_first=frozenset({"tokens", "tokens_final"}),
    ),
)
