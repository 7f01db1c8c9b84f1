"""RetinaNet: class scores and box deltas from five maps, fine to coarse, by one pair of towers for all maps.

Paper: Focal Loss for Dense Object Detection (Lin et al., 2017, arXiv:1708.02002), as configured for EMO (Zhang et al.,
2023, arXiv:2301.01146) in its mmdetection fork (Apache-2.0). This file was written from a description of that; it
contains no code of it.

P3, P4 and P5 are a feature pyramid over the maps of strides 8, 16 and 32. P6 is a strided convolution of the backbone's
last map, not of P5, and P7 one of P6 with no activation between. Each of the nine anchors in a cell has one sigmoid for
each class; there is no background.

Parameter names:

    fpn                                            see `heads.fpn`; 0, 1, 2 are P5, P4, P3
    extra_levels.{0,1}.{weight, bias}              P6 and P7
    {class_tower,box_tower}.{0..3}.{weight, bias}
    {class_output,box_output}.{weight, bias}

Sizes: the authors pad pictures with zeros, after normalising, at the bottom and right to multiples of 32 pixels. The
network does so (`zoo.RetinaNetHead.pads_to`); its anchors cover the padded size, and boxes are cut at the picture.

Differences from the source: none in the numbers. Post-processing is
`model_store.networks.heads.retinanet_detections`.
"""

from typing import Any

import torch
from torch import Tensor, nn

from model_store.networks.backbones.base import Channels
from model_store.networks.heads.base import RegisteredHead
from model_store.networks.heads.fpn import FPN
from model_store.networks.heads.retinanet_detections import ANCHORS_PER_CELL, retinanet_detections
from model_store.networks.pixels import Pixels
from model_store.networks.tasks.detect import DETECT, ServedDetector
from model_store.zoo import ModelSpec, RetinaNetHead

WIDTH = 256  # channels of every map and tower
TOWER = 4  # convolutions of a tower


def _tower() -> nn.ModuleList:
    return nn.ModuleList([nn.Conv2d(WIDTH, WIDTH, 3, padding=1) for _ in range(TOWER)])


class RetinaNet(nn.Module):
    """The head: five maps, and the predictions of every anchor of every map.

    Args:
        channels: of the backbone's maps at strides 4, 8, 16, 32.
        classes: C; there is no background.

    """

    def __init__(self, *, channels: Channels, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.fpn = FPN(in_channels=(channels[3], channels[2], channels[1]), width=WIDTH)
        self.extra_levels = nn.ModuleList(
            [
                nn.Conv2d(channels[3], WIDTH, 3, stride=2, padding=1),
                nn.Conv2d(WIDTH, WIDTH, 3, stride=2, padding=1),
            ]
        )
        self.class_tower = _tower()
        self.box_tower = _tower()
        self.class_output = nn.Conv2d(WIDTH, ANCHORS_PER_CELL * classes, 3, padding=1)
        self.box_output = nn.Conv2d(WIDTH, ANCHORS_PER_CELL * 4, 3, padding=1)

    def forward(self, features: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Predict for every anchor.

        Args:
            features: float [N, C, H, W] at strides 4, 8, 16 and 32; the last three are used.

        Returns:
            class_logits [N, A, C] and box_deltas [N, A, 4], in the dtype of the features; rows in the order of
            `retinanet_detections.retinanet_anchors`.

        """
        maps = self.maps(features)
        # One by one: OpenVINO converts no loop over a list.
        classes3, boxes3 = self.predict(maps[0])
        classes4, boxes4 = self.predict(maps[1])
        classes5, boxes5 = self.predict(maps[2])
        classes6, boxes6 = self.predict(maps[3])
        classes7, boxes7 = self.predict(maps[4])
        classes = torch.cat([classes3, classes4, classes5, classes6, classes7], dim=1)
        return classes, torch.cat([boxes3, boxes4, boxes5, boxes6, boxes7], dim=1)

    def maps(self, features: list[Tensor]) -> list[Tensor]:
        """P3 to P7, float [N, 256, h, w], from the backbone's maps."""
        pyramid = self.fpn(features)  # P5, P4, P3
        coarse: Tensor = self.extra_levels[0](features[3])
        coarsest: Tensor = self.extra_levels[1](coarse)
        return [pyramid[2], pyramid[1], pyramid[0], coarse, coarsest]

    def predict(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Predict for one map: [N, 256, h, w] -> logits [N, h*w*9, C], deltas [N, h*w*9, 4]."""
        classes = x
        for layer in self.class_tower:
            classes = torch.relu(layer(classes))
        boxes = x
        for layer in self.box_tower:
            boxes = torch.relu(layer(boxes))
        logits: Tensor = self.class_output(classes)
        deltas: Tensor = self.box_output(boxes)
        # [N, 9*C, h, w] -> [N, h, w, 9*C] -> [N, h*w*9, C]; boxes alike
        logits = logits.permute(0, 2, 3, 1).reshape(x.size(0), -1, self.classes)
        deltas = deltas.permute(0, 2, 3, 1).reshape(x.size(0), -1, 4)
        return logits, deltas


def _build(_spec: RetinaNetHead, entry: ModelSpec, channels: Channels) -> RetinaNet:
    if entry.backbone.output_stride != 32:
        raise ValueError(f"RetinaNet has anchors for output stride 32, not {entry.backbone.output_stride}")
    return RetinaNet(channels=channels, classes=entry.classes)


def _serve(spec: RetinaNetHead, entry: ModelSpec, pixels: Pixels, network: nn.Module) -> ServedDetector:
    chosen: dict[str, Any] = {
        "score_threshold": spec.score_threshold,
        "iou_threshold": spec.iou_threshold,
        "max_boxes": spec.max_boxes,
    }
    detections = retinanet_detections(
        height=entry.input.height,
        width=entry.input.width,
        **{option: value for option, value in chosen.items() if value is not None},
    )
    return ServedDetector(pixels=pixels, network=network, detections=detections)


HEAD = RegisteredHead(spec=RetinaNetHead, contract=DETECT, build=_build, serve=_serve)
