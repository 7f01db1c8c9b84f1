"""DeepLabv3: class logits of each cell of the last map, and the class map made from them.

Paper: Rethinking Atrous Convolution (Chen et al., 2017, arXiv:1706.05587), as configured for MobileViT (Mehta and
Rastegari, 2022, arXiv:2110.02178) and EMO (Zhang et al., 2023, arXiv:2301.01146).
Sources of the numbers: ml-cvnets (Apple sample code licence), EMO's mmsegmentation fork (Apache-2.0); written anew from
their description in specs/heads.md, section 2.

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
classifier, where the sources have up to two; the pooled branch, one number per channel, is spread by copying.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model_store.layers import ConvNormAct


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
        branches: list[Tensor] = []
        for branch in self.branches:
            branches.append(branch(x))
        pooled: Tensor = self.pool(x.mean(dim=[2, 3], keepdim=True))
        pooled = pooled.expand(-1, -1, x.size(2), x.size(3))  # [N, width, 1, 1] -> [N, width, h, w]
        branches.insert(0 if self.pool_first else len(branches), pooled)
        logits: Tensor = self.classifier(self.dropout(self.fuse(torch.cat(branches, dim=1))))
        return logits


def upsample(logits: Tensor, *, height: int, width: int, align_corners: bool) -> Tensor:
    """Enlarge logits [N, K, h, w] bilinearly to float32 [N, K, height, width]. For training and tests: it is large."""
    return F.interpolate(logits.float(), size=[height, width], mode="bilinear", align_corners=align_corners)


def class_map(logits: Tensor, *, height: int, width: int, align_corners: bool) -> Tensor:
    """Find the best class of every pixel of the bilinearly enlarged logits; of equal ones the lowest.

    Works through the classes one by one, so that only single planes exist at full size: [64, 21, 512, 512] logits
    would take 1.4 GB. Enlarging a plane is a product with the interpolation weights of its rows and of its columns,
    more than twice as fast on a CPU as `F.interpolate`, and the same up to float32 rounding.

    Args:
        logits: float of any width [N, K, h, w], K at most 256.
        height: of the class map, in pixels.
        width: of the class map, in pixels.
        align_corners: False for ml-cvnets v0.1, transformers and EMO, True for ml-cvnets v0.2 and later.

    Returns:
        uint8 [N, height, width], values 0..K-1.

    """
    if logits.size(1) > 256:
        raise ValueError("a class map of bytes holds 256 classes at most")
    rows = _weights(logits.size(2), height, align_corners, logits.device)  # [h, height]
    columns = _weights(logits.size(3), width, align_corners, logits.device)  # [w, width]
    tall = torch.matmul(rows.t(), logits.float())  # [height, h] @ [N, K, h, w] -> [N, K, height, w]
    best = torch.matmul(tall[:, 0], columns)  # [N, height, width]
    classes = torch.zeros(best.shape, dtype=torch.uint8, device=logits.device)
    # Written over and over: fresh memory for every class would cost a CPU more than the arithmetic.
    plane = torch.empty_like(best)
    better = torch.empty_like(classes)
    for index in range(1, logits.size(1)):
        torch.matmul(tall[:, index], columns, out=plane)
        # The index grows, so the maximum writes it where the plane is better and nowhere else; faster than a mask.
        torch.gt(plane, best, out=better)
        torch.maximum(classes, better.mul_(index), out=classes)
        torch.maximum(best, plane, out=best)
    return classes


def _weights(size: int, new_size: int, align_corners: bool, device: torch.device) -> Tensor:
    """What each of `size` points gives to each of `new_size` points in linear interpolation: [size, new_size]."""
    points = torch.eye(size, device=device).unsqueeze(0)  # [1, size, size]: a batch of one, a channel per point
    return F.interpolate(points, size=[new_size], mode="linear", align_corners=align_corners).squeeze(0)
