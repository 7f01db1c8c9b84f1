"""DeepLabv3: class logits of each cell of the last map.

Paper: Rethinking Atrous Convolution (Chen et al., 2017, arXiv:1706.05587), as configured for MobileViT (Mehta and
Rastegari, 2022, arXiv:2110.02178) and EMO (Zhang et al., 2023, arXiv:2301.01146).
Sources of the numbers: ml-cvnets (Apple sample code licence), EMO's mmsegmentation fork (Apache-2.0). This file was
written from a description of both; it contains no code of either.

| | ml-cvnets, transformers | EMO (mmsegmentation) |
|---|---|---|
| place of the pooled branch in the concatenation (`pool_first`) | last | first |
| kernel of the fusing convolution (`fuse_kernel`) | 1 | 3 |
| width | 256 (v0.1), 512 (later) | 256 |
| dilation of the three k3 branches (`rates`) | 6, 12, 18 (v0.1), 12, 24, 36 (later) | 12, 24, 36 |

Parameter names (`N` = weight, bias, running_mean, running_var, num_batches_tracked):

    branches.{0,1,2,3}.{conv.weight, norm.N}    the 1x1 branch, then the dilated ones
    pool.{conv.weight, norm.N}
    fuse.{conv.weight, norm.N}
    classifier.{weight, bias}

Differences from the sources: the auxiliary head (training only) is not built; one channelwise dropout before the
classifier, where the sources have up to two; the pooled branch, one number per channel, is spread by copying. The class
map is made from the logits by `networks.tasks.segment`.
"""

import torch
from torch import Tensor, nn

from model_store.networks.backbones.base import Channels
from model_store.networks.heads.base import RegisteredHead
from model_store.networks.layers import ConvNormAct, resize_bilinear
from model_store.networks.pixels import Pixels
from model_store.networks.tasks.segment import SEGMENT, ServedSegmenter
from model_store.zoo import DeepLabV3Head, ModelSpec


class DeepLabV3(nn.Module):
    """Atrous spatial pyramid pooling and a 1x1 classifier.

    Args:
        in_channels: of the backbone's last map.
        classes: K, with background.
        width: channels of every branch and of the fused map.
        rates: dilations of the three 3x3 branches, in cells.
        pool_first: see the table above.
        fuse_kernel: 1 or 3.

    """

    def __init__(
        self,
        *,
        in_channels: int,
        classes: int,
        width: int,
        rates: tuple[int, int, int],
        pool_first: bool = False,
        fuse_kernel: int = 1,
    ) -> None:
        super().__init__()
        self.pool_first = pool_first
        branches = [ConvNormAct(in_channels=in_channels, out_channels=width, act="relu")]
        for rate in rates:
            branches.append(
                ConvNormAct(in_channels=in_channels, out_channels=width, kernel_size=3, dilation=rate, act="relu")
            )
        self.branches = nn.ModuleList(branches)
        self.pool = ConvNormAct(in_channels=in_channels, out_channels=width, act="relu")
        self.fuse = ConvNormAct(
            in_channels=(2 + len(rates)) * width, out_channels=width, kernel_size=fuse_kernel, act="relu"
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
        # One by one: OpenVINO converts no list that grows.
        first, second = self.branches[0](x), self.branches[1](x)
        third, fourth = self.branches[2](x), self.branches[3](x)
        pooled: Tensor = self.pool(x.mean(dim=[2, 3], keepdim=True))
        pooled = pooled.expand(-1, -1, x.size(2), x.size(3))  # [N, width, 1, 1] -> [N, width, h, w]
        if self.pool_first:
            joined = torch.cat([pooled, first, second, third, fourth], dim=1)
        else:
            joined = torch.cat([first, second, third, fourth, pooled], dim=1)
        logits: Tensor = self.classifier(self.dropout(self.fuse(joined)))
        return logits


def upsample(logits: Tensor, *, height: int, width: int, align_corners: bool) -> Tensor:
    """Enlarge logits [N, K, h, w] bilinearly to float32 [N, K, height, width]. Only for training and tests."""
    return resize_bilinear(logits.float(), height, width, align_corners)


def _build(spec: DeepLabV3Head, entry: ModelSpec, channels: Channels) -> DeepLabV3:
    return DeepLabV3(
        in_channels=channels[3],
        classes=entry.classes,
        width=spec.width,
        rates=spec.rates,
        pool_first=spec.form == "mmseg",
        fuse_kernel=3 if spec.form == "mmseg" else 1,
    )


def _serve(spec: DeepLabV3Head, _entry: ModelSpec, pixels: Pixels, network: nn.Module) -> ServedSegmenter:
    return ServedSegmenter(pixels=pixels, network=network, align_corners=spec.align_corners)


HEAD = RegisteredHead(spec=DeepLabV3Head, contract=SEGMENT, build=_build, serve=_serve)
