"""Semantic FPN: class logits of each cell of the finest backbone map, at stride 4.

Paper: Panoptic Feature Pyramid Networks (Kirillov et al., 2019, arXiv:1901.02446), as EfficientFormer configures it in
mmsegmentation (Apache-2.0) and SwiftFormer (Shaker et al., 2023, arXiv:2303.15446) follows. The authors of SwiftFormer
published scores and no configuration. This file was written from a description of both; it contains no code of either.

Every map of the pyramid goes through 3x3 convolutions to half its width. The maps of strides 8, 16 and 32 are enlarged
by 2 after each convolution, so they have one, two and three of them. The four results are added.

Parameter names (`N` = weight, bias, running_mean, running_var, num_batches_tracked):

    fpn                                          see `heads.fpn`
    branches.{0..3}.{0,2,4}.{conv.weight, norm.N}    branch 0 has stride 4; enlarging is 1, 3 and 5
    classifier.{weight, bias}

Differences from the sources: none in the numbers. The class map is made from the logits by `networks.tasks.segment`.
"""

from torch import Tensor, nn

from model_store.networks.backbones.base import Channels
from model_store.networks.heads.base import RegisteredHead
from model_store.networks.heads.fpn import FPN
from model_store.networks.layers import ConvNormAct, resize_bilinear
from model_store.networks.pixels import Pixels
from model_store.networks.tasks.segment import SEGMENT, ServedSegmenter
from model_store.zoo import ModelSpec, SemanticFPNHead

PYRAMID_WIDTH = 256  # channels of the maps of the pyramid


class Double(nn.Module):
    """Enlarge bilinearly to twice the sides: float [N, C, h, w] -> [N, C, 2h, 2w]."""

    def forward(self, x: Tensor) -> Tensor:
        """Enlarge."""
        return resize_bilinear(x, 2 * x.size(2), 2 * x.size(3), False)


def _branch(*, width: int, doublings: int) -> nn.Sequential:
    """One branch: [N, 256, h, w] -> [N, width, h * 2^doublings, w * 2^doublings]."""
    steps: list[nn.Module] = []
    for index in range(max(1, doublings)):
        before = PYRAMID_WIDTH if index == 0 else width
        steps.append(ConvNormAct(in_channels=before, out_channels=width, kernel_size=3, act="relu"))
        if doublings:
            steps.append(Double())
    return nn.Sequential(*steps)


class SemanticFPN(nn.Module):
    """Pyramid, one branch for each of its maps, their sum and a 1x1 classifier.

    Args:
        channels: of the backbone's maps at strides 4, 8, 16, 32.
        classes: K, with background where that is a class.
        width: channels of every branch.

    """

    def __init__(self, *, channels: Channels, classes: int, width: int) -> None:
        super().__init__()
        self.fpn = FPN(in_channels=tuple(reversed(channels)), width=PYRAMID_WIDTH)
        self.branches = nn.ModuleList([_branch(width=width, doublings=doublings) for doublings in range(4)])
        self.dropout = nn.Dropout2d(0.1)
        self.classifier = nn.Conv2d(width, classes, 1)

    def forward(self, features: list[Tensor]) -> Tensor:
        """Classify the cells of the finest map.

        Args:
            features: float [N, C, H, W], the backbone's maps at strides 4, 8, 16 and 32.

        Returns:
            Logits [N, K, h, w] at the resolution of the finest map, in its dtype.

        """
        maps = self.fpn(features)  # coarse to fine
        fine: Tensor = self.branches[0](maps[3])
        height, width = fine.size(2), fine.size(3)
        # A map of odd sides was larger than half the finer map, so its branch may be too large.
        total = fine + resize_bilinear(self.branches[1](maps[2]), height, width, False)
        total = total + resize_bilinear(self.branches[2](maps[1]), height, width, False)
        total = total + resize_bilinear(self.branches[3](maps[0]), height, width, False)
        logits: Tensor = self.classifier(self.dropout(total))
        return logits


def _build(spec: SemanticFPNHead, entry: ModelSpec, channels: Channels) -> SemanticFPN:
    if entry.backbone.output_stride != 32:
        raise ValueError(f"Semantic FPN takes output stride 32, not {entry.backbone.output_stride}")
    return SemanticFPN(channels=channels, classes=entry.classes, width=spec.width)


def _serve(spec: SemanticFPNHead, _entry: ModelSpec, pixels: Pixels, network: nn.Module) -> ServedSegmenter:
    return ServedSegmenter(pixels=pixels, network=network, align_corners=spec.align_corners)


HEAD = RegisteredHead(spec=SemanticFPNHead, contract=SEGMENT, build=_build, serve=_serve)
