"""Feature pyramid network: backbone maps in, maps of one width out, each with what is coarser added.

Paper: Feature Pyramid Networks (Lin et al., 2017, arXiv:1612.03144), as mmdetection and mmsegmentation (both
Apache-2.0) configure it for EMO's RetinaNet and for EfficientFormer's and SwiftFormer's Semantic FPN. This file was
written from a description of both; it contains no code of either.

There is no norm and no activation. A coarser map is enlarged by nearest to the exact size of the finer one.

Parameter names, levels from coarse to fine:

    levels.{0,1,...}.{lateral,output}.{weight, bias}

Differences from the sources: the levels are kept from coarse to fine, the order of computing. Further maps are left to
the heads that have them.
"""

from torch import Tensor, nn

from model_store.networks.layers import resize_nearest


class FPNLevel(nn.Module):
    """The two convolutions of one level: 1x1 to the common width, and 3x3 on the sum."""

    def __init__(self, *, in_channels: int, width: int) -> None:
        super().__init__()
        self.lateral = nn.Conv2d(in_channels, width, 1)
        self.output = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, feature: Tensor) -> Tensor:
        """Bring a backbone map to the common width: float [N, C, H, W] -> [N, width, H, W]."""
        y: Tensor = self.lateral(feature)
        return y

    def finish(self, total: Tensor) -> Tensor:
        """Make the output map from the sum of this and the coarser levels; the shape stays."""
        y: Tensor = self.output(total)
        return y


class FPN(nn.Module):
    """The pyramid over the last maps of a backbone.

    Args:
        in_channels: of the backbone maps that are used, coarse to fine.
        width: channels of every map of the pyramid.

    """

    def __init__(self, *, in_channels: tuple[int, ...], width: int) -> None:
        super().__init__()
        self.levels = nn.ModuleList([FPNLevel(in_channels=channels, width=width) for channels in in_channels])

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Make the maps.

        Args:
            features: float [N, C, H, W], the four backbone maps, fine to coarse.

        Returns:
            Maps [N, width, H, W], coarse to fine, one for each level, each of the size of its backbone map.

        """
        maps: list[Tensor] = []
        total = features[3]
        for index, level in enumerate(self.levels):
            lateral = level(features[3 - index])
            if index > 0:
                lateral = lateral + resize_nearest(total, lateral.size(2), lateral.size(3))
            total = lateral
            maps.append(level.finish(total))
        return maps
