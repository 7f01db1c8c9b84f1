"""Classification heads: feature maps in, logits out. One class per form; papers and licences stand at the backbones.

| class | form of | before the mean | parameter names |
|---|---|---|---|
| `Classifier` | MobileViT | 1x1 convolution, BatchNorm, activation | `expand.{conv,norm}`, `fc` |
| `NormClassifier` | EMO | LayerNorm over the channels of each position | `norm`, `fc` |
| `PairClassifier` | SwiftFormer | BatchNorm | `norm`, `fc`, `fc_distilled` |
| `TokenClassifier` | Mobile-Former | 1x1 convolution, BatchNorm, ReLU6 | `expand.{conv,norm}`, `hidden`, `norm`, `fc` |
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model_store.layers import Activation, ChannelNorm, ConvNormAct, Shuffle


class Classifier(nn.Module):
    """1x1 convolution to `width` channels, global mean, linear layer to `classes` logits."""

    def __init__(self, *, in_channels: int, width: int, classes: int, act: Activation = "silu") -> None:
        super().__init__()
        self.expand = ConvNormAct(in_channels=in_channels, out_channels=width, act=act)
        self.fc = nn.Linear(width, classes)

    def forward(self, features: list[Tensor]) -> Tensor:
        """Feature maps at strides 4, 8, 16, 32 (only the last is used) -> float logits [N, classes]."""
        pooled = self.expand(features[3]).mean(dim=(2, 3))  # (N, width, h, w) -> (N, width)
        logits: Tensor = self.fc(pooled)
        return logits


class NormClassifier(nn.Module):
    """LayerNorm over the channels at each position, global mean, linear layer to `classes` logits."""

    def __init__(self, *, in_channels: int, classes: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.norm = ChannelNorm(in_channels, eps=eps)
        self.fc = nn.Linear(in_channels, classes)

    def forward(self, features: list[Tensor]) -> Tensor:
        """Feature maps at strides 4, 8, 16, 32 (only the last is used) -> float logits [N, classes]."""
        pooled = self.norm(features[3]).mean(dim=(2, 3))  # (N, C, h, w) -> (N, C)
        logits: Tensor = self.fc(pooled)
        return logits


class PairClassifier(nn.Module):
    """BatchNorm, global mean, two linear layers whose logits are averaged: one learns labels, the other a teacher."""

    def __init__(self, *, in_channels: int, classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(in_channels)
        self.fc = nn.Linear(in_channels, classes)
        self.fc_distilled = nn.Linear(in_channels, classes)

    def forward(self, features: list[Tensor]) -> Tensor:
        """Feature maps at strides 4, 8, 16, 32 (only the last is used) -> float logits [N, classes]."""
        pooled = self.norm(features[3]).mean(dim=(2, 3))  # (N, C, h, w) -> (N, C)
        logits: Tensor = (self.fc(pooled) + self.fc_distilled(pooled)) * 0.5
        return logits


class TokenClassifier(nn.Module):
    """1x1 convolution to six times the channels, global mean beside token 0, a hidden layer, `classes` logits.

    Args:
        in_channels: of the last map.
        token_width: of a token.
        hidden: width of the hidden layer.
        classes: number of logits.
        groups: of the 1x1 convolution; with more than one, channels are interleaved before it.

    """

    def __init__(self, *, in_channels: int, token_width: int, hidden: int, classes: int, groups: int) -> None:
        super().__init__()
        width = 6 * in_channels
        self.shuffle: nn.Module = Shuffle(groups=groups) if groups > 1 else nn.Identity()
        self.expand = ConvNormAct(in_channels=in_channels, out_channels=width, groups=groups, act="relu6")
        self.hidden = nn.Linear(width + token_width, hidden)
        self.norm = nn.BatchNorm1d(hidden)
        self.fc = nn.Linear(hidden, classes)

    def forward(self, features: list[Tensor]) -> Tensor:
        """Feature maps at strides 4, 8, 16, 32 (the last is used), tokens [N, T, D] -> float logits [N, classes]."""
        pooled = F.hardswish(self.expand(self.shuffle(features[3])).mean(dim=(2, 3)))  # (N, C, h, w) -> (N, 6*C)
        both = torch.cat([pooled, features[4][:, 0]], dim=1)  # (N, 6*C + D)
        logits: Tensor = self.fc(F.hardswish(self.norm(self.hidden(both))))
        return logits
