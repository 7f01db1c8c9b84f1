"""Classification heads: feature maps in, logits out. One class per form, as the paper of each backbone has it.

Papers, sources and licences stand in the files of the backbones: `backbones.mobilevit`, `emo`, `swiftformer`,
`mobileformer`. Each form was written from the paper and from a description of the official code; this file contains no
code of those projects. Differences: dropout and stochastic depth (training only) are left out.

| class | form of | before the mean | parameter names |
|---|---|---|---|
| `Classifier` | MobileViT | 1x1 convolution, BatchNorm, activation | `expand.{conv,norm}`, `fc` |
| `NormClassifier` | EMO | LayerNorm over the channels of each position | `norm`, `fc` |
| `PairClassifier` | SwiftFormer | BatchNorm | `norm`, `fc`, `fc_distilled` |
| `TokenClassifier` | Mobile-Former | 1x1 convolution, BatchNorm, ReLU6 | `expand.{conv,norm}`, `hidden`, `norm`, `fc` |
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model_store.networks.backbones.base import Channels
from model_store.networks.backbones.mobileformer_sizes import CONFIGS
from model_store.networks.heads.base import RegisteredHead
from model_store.networks.layers import Activation, ChannelNorm, ConvNormAct, Shuffle
from model_store.networks.pixels import Pixels
from model_store.networks.tasks.classify import CLASSIFY, ServedClassifier
from model_store.zoo import ClassifierHead, ModelSpec


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
    """BatchNorm, global mean, two linear layers whose logits are averaged. One learns labels, one a teacher."""

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


def _token_classifier(spec: ClassifierHead, entry: ModelSpec, in_channels: int) -> TokenClassifier:
    config = CONFIGS[entry.variant]  # this form reads the backbone's tokens, so it needs their width
    return TokenClassifier(
        in_channels=in_channels,
        token_width=config.width,
        hidden=spec.width,
        classes=entry.classes,
        groups=config.groups,
    )


_WITH_HIDDEN_LAYER = ("mobilevit", "mobileformer")
# Form -> (options, entry, channels of the last map) to the classifier.
_FORMS: Mapping[str, Callable[[ClassifierHead, ModelSpec, int], nn.Module]] = MappingProxyType(
    {
        "mobilevit": lambda spec, entry, c: Classifier(in_channels=c, width=spec.width, classes=entry.classes),
        "emo": lambda _spec, entry, c: NormClassifier(in_channels=c, classes=entry.classes),
        "swiftformer": lambda _spec, entry, c: PairClassifier(in_channels=c, classes=entry.classes),
        "mobileformer": _token_classifier,
    }
)


def _build(spec: ClassifierHead, entry: ModelSpec, channels: Channels) -> nn.Module:
    if spec.width and spec.form not in _WITH_HIDDEN_LAYER:
        raise ValueError(f"the classifier of {spec.form} has no hidden layer, so it has no width")
    return _FORMS[spec.form](spec, entry, channels[3])


def _serve(_spec: ClassifierHead, entry: ModelSpec, pixels: Pixels, network: nn.Module) -> ServedClassifier:
    return ServedClassifier(pixels=pixels, network=network, classes=entry.classes)


HEAD = RegisteredHead(spec=ClassifierHead, contract=CLASSIFY, build=_build, serve=_serve)
