"""PSPNet: class logits of each cell of the last map, with means over parts of the picture beside it.

Paper: Pyramid Scene Parsing Network (Zhao et al., 2017, arXiv:1612.01105), as configured for EMO (Zhang et al., 2023,
arXiv:2301.01146) in its mmsegmentation fork (Apache-2.0). This file was written from a description of that; it contains
no code of it.

The last map is averaged over 1, 2x2, 3x3 and 6x6 parts. Part i of a side of S cells is from floor(i S / n) to
ceil((i + 1) S / n); parts may overlap. Each mean goes through a 1x1 convolution and is enlarged to the size of the map.

Parameter names (`N` = weight, bias, running_mean, running_var, num_batches_tracked):

    pools.{0,1,2,3}.{conv.weight, norm.N}    1, 2, 3 and 6 parts along a side
    fuse.{conv.weight, norm.N}
    classifier.{weight, bias}

Differences from the source: the auxiliary head (training only) is not built. The class map is made from the logits by
`networks.tasks.segment`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model_store.networks.backbones.base import Channels
from model_store.networks.heads.base import RegisteredHead
from model_store.networks.layers import ConvNormAct, resize_bilinear
from model_store.networks.pixels import Pixels
from model_store.networks.tasks.segment import SEGMENT, ServedSegmenter
from model_store.zoo import ModelSpec, PSPNetHead

PARTS = (1, 2, 3, 6)  # along a side of the map


class PSPNet(nn.Module):
    """Pyramid pooling and a 1x1 classifier.

    Args:
        in_channels: of the backbone's last map.
        classes: K, with background where that is a class.
        width: channels of every pooled map and of the fused map.

    """

    def __init__(self, *, in_channels: int, classes: int, width: int) -> None:
        super().__init__()
        self.pools = nn.ModuleList(
            [ConvNormAct(in_channels=in_channels, out_channels=width, act="relu") for _ in PARTS]
        )
        self.fuse = ConvNormAct(
            in_channels=in_channels + len(PARTS) * width, out_channels=width, kernel_size=3, act="relu"
        )
        self.dropout = nn.Dropout2d(0.1)
        self.classifier = nn.Conv2d(width, classes, 1)

    def forward(self, features: list[Tensor]) -> Tensor:
        """Classify the cells of the last map.

        Args:
            features: float [N, C, H, W], the backbone's maps; the last one is used.

        Returns:
            Logits [N, K, h, w] at the resolution of the last map, in its dtype.

        """
        x = features[3]
        height, width = x.size(2), x.size(3)
        # One by one: OpenVINO converts no list that grows.
        first = resize_bilinear(self.pools[0](F.adaptive_avg_pool2d(x, 1)), height, width, False)
        second = resize_bilinear(self.pools[1](F.adaptive_avg_pool2d(x, 2)), height, width, False)
        third = resize_bilinear(self.pools[2](F.adaptive_avg_pool2d(x, 3)), height, width, False)
        fourth = resize_bilinear(self.pools[3](F.adaptive_avg_pool2d(x, 6)), height, width, False)
        joined = torch.cat([x, first, second, third, fourth], dim=1)
        logits: Tensor = self.classifier(self.dropout(self.fuse(joined)))
        return logits


def _build(spec: PSPNetHead, entry: ModelSpec, channels: Channels) -> PSPNet:
    return PSPNet(in_channels=channels[3], classes=entry.classes, width=spec.width)


def _serve(spec: PSPNetHead, _entry: ModelSpec, pixels: Pixels, network: nn.Module) -> ServedSegmenter:
    return ServedSegmenter(pixels=pixels, network=network, align_corners=spec.align_corners)


HEAD = RegisteredHead(spec=PSPNetHead, contract=SEGMENT, build=_build, serve=_serve)
