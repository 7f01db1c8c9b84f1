"""SSDLite: class scores and box deltas from six feature maps, fine to coarse.

Papers: SSD (Liu et al., 2016, arXiv:1512.02325); SSDLite (Sandler et al., 2018, arXiv:1801.04381), as configured for
MobileViT (Mehta and Rastegari, 2022, arXiv:2110.02178) and EMO (Zhang et al., 2023, arXiv:2301.01146).
Sources of the numbers: ml-cvnets (Apple sample code licence), EMO's mmdetection fork (Apache-2.0). This file was
written from a description of both; it contains no code of either.

Two forms of one module:

| | `cvnets_ssdlite` | `mmdet_ssdlite` |
|---|---|---|
| extra maps | 3 times dw k3 s2 + BN, pw + BN + ReLU; mean, pw | 4 times pw half, dw k3 s2, pw, each + BN + ReLU6 |
| predictor | joint: one pw gives boxes and scores | split: a tower for scores, one for boxes |
| activation after its depthwise | none | ReLU6 |
| eps, momentum of BN | 1e-5, 0.1 | 1e-3, 0.03 |
| background class | first | last |

Parameter names (`N` = weight, bias, running_mean, running_var, num_batches_tracked):

    cvnets  extra_levels.{0,1,2}.{depthwise,pointwise}.{conv.weight, norm.N}
            extra_levels.3.pointwise.weight
            predictors.{0,1}.project.{conv.weight, norm.N}    only where map and predictor widths differ
            predictors.{0..4}.depthwise.{conv.weight, norm.N}
            predictors.{0..5}.pointwise.{weight, bias}
    mmdet   extra_levels.{0..3}.{reduce,depthwise,pointwise}.{conv.weight, norm.N}
            predictors.{0..5}.{class_depthwise,box_depthwise}.{conv.weight, norm.N}
            predictors.{0..5}.{class_pointwise,box_pointwise}.{weight, bias}

Differences from the sources: none in the numbers. cvnets' head "step" (sampling every n-th cell; 1 in every published
model) is left out. Post-processing is `model_store.networks.heads.detections`.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from model_store.networks.backbones.base import Channels
from model_store.networks.heads.anchors import cvnets_levels, mmdet_levels
from model_store.networks.heads.base import RegisteredHead
from model_store.networks.heads.detections import Detections, cvnets_detections, mmdet_detections
from model_store.networks.layers import Activation, ConvNormAct
from model_store.networks.pixels import Pixels
from model_store.networks.tasks.detect import DETECT, ServedDetector
from model_store.zoo import ModelSpec, SSDLiteHead


class SeparableLevel(nn.Module):
    """Next map of cvnets: depthwise k3 stride 2, then 1x1. float [N, in, H, W] -> [N, out, ceil(H/2), ceil(W/2)]."""

    def __init__(self, *, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.depthwise = ConvNormAct(
            in_channels=in_channels, out_channels=in_channels, kernel_size=3, stride=2, groups=in_channels
        )
        self.pointwise = ConvNormAct(in_channels=in_channels, out_channels=out_channels, act="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Apply both steps."""
        y: Tensor = self.pointwise(self.depthwise(x))
        return y


class PooledLevel(nn.Module):
    """Last map of cvnets: mean of the picture, 1x1 without norm or bias. float [N, in, H, W] -> [N, out, 1, 1]."""

    def __init__(self, *, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.pointwise = nn.Conv2d(in_channels, out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Apply mean, convolution and ReLU."""
        return torch.relu(self.pointwise(x.mean(dim=[2, 3], keepdim=True)))


class BottleneckLevel(nn.Module):
    """Next map of mmdet: 1x1 to half, depthwise k3 stride 2, 1x1. [N, in, H, W] -> [N, out, ceil(H/2), ceil(W/2)]."""

    def __init__(self, *, in_channels: int, out_channels: int, eps: float, momentum: float) -> None:
        super().__init__()
        half = out_channels // 2
        self.reduce = ConvNormAct(in_channels=in_channels, out_channels=half, act="relu6", eps=eps, momentum=momentum)
        self.depthwise = ConvNormAct(
            in_channels=half,
            out_channels=half,
            kernel_size=3,
            stride=2,
            groups=half,
            act="relu6",
            eps=eps,
            momentum=momentum,
        )
        self.pointwise = ConvNormAct(
            in_channels=half, out_channels=out_channels, act="relu6", eps=eps, momentum=momentum
        )

    def forward(self, x: Tensor) -> Tensor:
        """Apply the three steps."""
        y: Tensor = self.pointwise(self.depthwise(self.reduce(x)))
        return y


class JointPredictor(nn.Module):
    """Scores and boxes of one map from one 1x1 convolution.

    Args:
        in_channels: of the map.
        width: channels the prediction is made from; another number than `in_channels` adds a projection.
        scores: classes with background.
        anchors: per cell.
        depthwise: look at the 3x3 neighbourhood first; without it the 1x1 convolution stands alone.

    """

    def __init__(self, *, in_channels: int, width: int, scores: int, anchors: int, depthwise: bool) -> None:
        super().__init__()
        self.scores = scores
        self.project: nn.Module = nn.Identity()
        if in_channels != width:
            self.project = ConvNormAct(in_channels=in_channels, out_channels=width, act="relu")
        self.depthwise: nn.Module = nn.Identity()
        if depthwise:
            self.depthwise = ConvNormAct(in_channels=width, out_channels=width, kernel_size=3, groups=width)
        self.pointwise = nn.Conv2d(width, anchors * (4 + scores), 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Predict: float [N, in, H, W] -> scores [N, H*W*anchors, scores], deltas [N, H*W*anchors, 4]."""
        y: Tensor = self.pointwise(self.depthwise(self.project(x)))
        # Channels hold, anchor by anchor, 4 box numbers and the scores.
        # [N, anchors*(4+scores), H, W] -> [N, H, W, anchors*(4+scores)] -> [N, H*W*anchors, 4+scores]
        y = y.permute(0, 2, 3, 1).reshape(x.size(0), -1, 4 + self.scores)
        return y[:, :, 4:], y[:, :, :4]


class SplitPredictor(nn.Module):
    """Scores and boxes of one map from two towers of depthwise k3 and 1x1."""

    def __init__(
        self, *, in_channels: int, scores: int, anchors: int, act: Activation, eps: float, momentum: float
    ) -> None:
        super().__init__()
        self.scores = scores
        self.class_depthwise = ConvNormAct(
            in_channels=in_channels,
            out_channels=in_channels,
            kernel_size=3,
            groups=in_channels,
            act=act,
            eps=eps,
            momentum=momentum,
        )
        self.class_pointwise = nn.Conv2d(in_channels, anchors * scores, 1)
        self.box_depthwise = ConvNormAct(
            in_channels=in_channels,
            out_channels=in_channels,
            kernel_size=3,
            groups=in_channels,
            act=act,
            eps=eps,
            momentum=momentum,
        )
        self.box_pointwise = nn.Conv2d(in_channels, anchors * 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Predict: float [N, in, H, W] -> scores [N, H*W*anchors, scores], deltas [N, H*W*anchors, 4]."""
        classes: Tensor = self.class_pointwise(self.class_depthwise(x))
        boxes: Tensor = self.box_pointwise(self.box_depthwise(x))
        # [N, anchors*scores, H, W] -> [N, H, W, anchors*scores] -> [N, H*W*anchors, scores]; boxes alike
        classes = classes.permute(0, 2, 3, 1).reshape(x.size(0), -1, self.scores)
        boxes = boxes.permute(0, 2, 3, 1).reshape(x.size(0), -1, 4)
        return classes, boxes


class SSDLite(nn.Module):
    """The head: two backbone maps, extra maps made from the coarser one, one predictor per map.

    Args:
        extra_levels: each makes the next map from the one before.
        predictors: one for stride 16, one for stride 32, one per extra level.

    """

    def __init__(self, *, extra_levels: list[nn.Module], predictors: list[nn.Module]) -> None:
        super().__init__()
        if len(predictors) != 2 + len(extra_levels):
            raise ValueError(f"{len(predictors)} predictors for {2 + len(extra_levels)} maps")
        self.extra_levels = nn.ModuleList(extra_levels)
        self.predictors = nn.ModuleList(predictors)

    def forward(self, features: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Predict for every anchor.

        Args:
            features: float [N, C, H, W] at strides 4, 8, 16 and 32; the last two are used.

        Returns:
            class_logits [N, A, C+1] with the background where the form puts it, and box_deltas [N, A, 4], in the
            dtype of the features; rows in the order of `anchors.make_anchors`.

        """
        maps = [features[2], features[3]]
        for level in self.extra_levels:
            maps.append(level(maps[-1]))
        classes: list[Tensor] = []
        boxes: list[Tensor] = []
        for index, predictor in enumerate(self.predictors):
            level_classes, level_boxes = predictor(maps[index])
            classes.append(level_classes)
            boxes.append(level_boxes)
        return torch.cat(classes, dim=1), torch.cat(boxes, dim=1)


def cvnets_ssdlite(*, channels: tuple[int, int, int, int], classes: int = 80) -> SSDLite:
    """Build the head of the MobileViT detectors (v0.1 and later are the same).

    Args:
        channels: of the backbone's maps at strides 4, 8, 16, 32.
        classes: without background.

    """
    extra_levels: list[nn.Module] = [
        SeparableLevel(in_channels=channels[3], out_channels=256),
        SeparableLevel(in_channels=256, out_channels=128),
        SeparableLevel(in_channels=128, out_channels=128),
        PooledLevel(in_channels=128, out_channels=64),
    ]
    inputs = (channels[2], channels[3], 256, 128, 128, 64)
    widths = (512, 256, 256, 128, 128, 64)
    predictors: list[nn.Module] = [
        JointPredictor(
            in_channels=inputs[index],
            width=widths[index],
            scores=classes + 1,
            anchors=level.per_cell,
            depthwise=index < 5,  # the pooled map has no neighbours
        )
        for index, level in enumerate(cvnets_levels())
    ]
    return SSDLite(extra_levels=extra_levels, predictors=predictors)


def mmdet_ssdlite(*, channels: tuple[int, int, int, int], classes: int = 80) -> SSDLite:
    """Build the head of the EMO detectors; the choice for SwiftFormer and Mobile-Former too, whose authors published no
    detectors.

    Args:
        channels: of the backbone's maps at strides 4, 8, 16, 32.
        classes: without background.

    """
    eps, momentum = 1e-3, 0.03
    widths = (channels[2], channels[3], 512, 256, 256, 128)
    extra_levels: list[nn.Module] = [
        BottleneckLevel(in_channels=widths[index - 1], out_channels=widths[index], eps=eps, momentum=momentum)
        for index in range(2, 6)
    ]
    predictors: list[nn.Module] = [
        SplitPredictor(
            in_channels=widths[index],
            scores=classes + 1,
            anchors=level.per_cell,
            act="relu6",
            eps=eps,
            momentum=momentum,
        )
        for index, level in enumerate(mmdet_levels())
    ]
    return SSDLite(extra_levels=extra_levels, predictors=predictors)


def _build(spec: SSDLiteHead, entry: ModelSpec, channels: Channels) -> SSDLite:
    stride = entry.backbone.output_stride
    if spec.form == "cvnets" and stride == 8:
        raise ValueError("SSDLite in the form of ml-cvnets takes output stride 16 or 32, not 8")
    if spec.form == "mmdet" and stride != 32:
        raise ValueError(f"SSDLite in the form of mmdetection has anchors for output stride 32, not {stride}")
    make = cvnets_ssdlite if spec.form == "cvnets" else mmdet_ssdlite
    return make(channels=channels, classes=entry.classes)


def _serve(spec: SSDLiteHead, entry: ModelSpec, pixels: Pixels, network: nn.Module) -> ServedDetector:
    make: Callable[..., Detections] = cvnets_detections if spec.form == "cvnets" else mmdet_detections
    chosen = {"score_threshold": spec.score_threshold, "iou_threshold": spec.iou_threshold, "max_boxes": spec.max_boxes}
    detections = make(
        height=entry.input.height,
        width=entry.input.width,
        output_stride=entry.backbone.output_stride,
        **{option: value for option, value in chosen.items() if value is not None},
    )
    return ServedDetector(pixels=pixels, network=network, detections=detections)


HEAD = RegisteredHead(spec=SSDLiteHead, contract=DETECT, build=_build, serve=_serve)
