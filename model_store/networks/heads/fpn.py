"""Feature pyramid network: backbone maps in, maps of one width out, each with what is coarser added.

Paper: Feature Pyramid Networks (Lin et al., 2017, arXiv:1612.03144), as mmdetection and mmsegmentation (both
Apache-2.0) configure it for EMO's RetinaNet and for EfficientFormer's and SwiftFormer's Semantic FPN. This file was
written from a description of both; it contains no code of either.

There is no norm and no activation. A coarser map is enlarged by nearest to the exact size of the finer one.

Parameter names, from coarse to fine:

    laterals.{0,1,...}.{weight, bias}    1x1, to the common width
    outputs.{0,1,...}.{weight, bias}     3x3, on the sum

Differences from the sources: the convolutions are kept from coarse to fine, the order of computing. Further maps are
left to the heads that have them.
"""

from torch import Tensor, nn

from model_store.networks.layers import resize_nearest


class FPN(nn.Module):
    """The pyramid over the last maps of a backbone.

    Args:
        in_channels: of the backbone maps that are used, coarse to fine.
        width: channels of every map of the pyramid.

    """

    def __init__(self, *, in_channels: tuple[int, ...], width: int) -> None:
        super().__init__()
        self.laterals = nn.ModuleList([nn.Conv2d(channels, width, 1) for channels in in_channels])
        self.outputs = nn.ModuleList([nn.Conv2d(width, width, 3, padding=1) for _ in in_channels])

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Make the maps.

        Args:
            features: float [N, C, H, W], the four backbone maps, fine to coarse.

        Returns:
            Maps [N, width, H, W], coarse to fine, each of the size of its backbone map.

        """
        maps: list[Tensor] = []
        total = features[3]
        for index, (lateral, output) in enumerate(zip(self.laterals, self.outputs)):  # noqa: B905 - TorchScript has no strict
            y = lateral(features[3 - index])
            if index > 0:
                y = y + resize_nearest(total, y.size(2), y.size(3))
            total = y
            maps.append(output(total))
        return maps
