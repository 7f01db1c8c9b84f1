"""Classification heads: feature maps in, logits out. Parameter names: `expand.{conv,norm}`, `fc`.

The form is MobileViT's (see `model_store.backbones.mobilevit` for paper and licence): the last map is widened by a
1x1 convolution with norm and activation, averaged over all positions, and mapped to classes.
"""

from torch import Tensor, nn

from model_store.layers import Activation, ConvNormAct


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
