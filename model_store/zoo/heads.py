"""What an entry of the zoo states about its head: one frozen class per head. Facts only, no torch.

`model_store.networks.heads.registry` maps each class to the code that builds the head.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal


@dataclass(frozen=True, slots=True)
class HeadSpec:
    """Base of all heads.

    Attributes:
        name: the head in one word, as it stands in the model card.
        dense: whether the head predicts for each place in the picture (boxes, class maps) rather than for the whole
            picture. Some backbones build their maps differently for such heads.
        pads_to: the network pads its input with zeros, at the bottom and right, to multiples of so many pixels.

    """

    name: ClassVar[str]
    dense: ClassVar[bool] = True
    pads_to: ClassVar[int] = 1


@dataclass(frozen=True, slots=True)
class ClassifierHead(HeadSpec):
    """One of the classifiers of `heads.classifier`, each in the form of its paper.

    `width` is the width of the hidden layer, before or behind the mean; 0 where the form has none.
    """

    name: ClassVar[str] = "classifier"
    dense: ClassVar[bool] = False
    form: Literal["mobilevit", "emo", "swiftformer", "mobileformer"]
    width: int = 0


@dataclass(frozen=True, slots=True)
class SSDLiteHead(HeadSpec):
    """`heads.ssdlite.SSDLite` and its post-processing, in the form of ml-cvnets or of mmdetection.

    `score_threshold`: candidates have a higher score. `iou_threshold`: a box that overlaps a better box of its class by
    more is dropped. `max_boxes`: boxes per picture. None: what the form has.
    """

    name: ClassVar[str] = "ssdlite"
    form: Literal["cvnets", "mmdet"]
    score_threshold: float | None = None
    iou_threshold: float | None = None
    max_boxes: int | None = None


@dataclass(frozen=True, slots=True)
class DeepLabV3Head(HeadSpec):
    """`heads.deeplabv3.DeepLabV3` in the form of ml-cvnets or of mmsegmentation.

    `width` counts the channels of every branch, `rates` are the dilations of the three 3x3 branches in cells.
    `align_corners` is how the logits are enlarged to the size of the input.
    """

    name: ClassVar[str] = "deeplabv3"
    form: Literal["cvnets", "mmseg"]
    width: int
    rates: tuple[int, int, int]
    align_corners: bool


@dataclass(frozen=True, slots=True)
class SemanticFPNHead(HeadSpec):
    """`heads.semantic_fpn.SemanticFPN` in the form of mmsegmentation.

    `width` counts the channels of every branch. `align_corners` is how the logits are enlarged to the size of the
    input.
    """

    name: ClassVar[str] = "semantic_fpn"
    width: int = 128
    align_corners: bool = False


@dataclass(frozen=True, slots=True)
class PSPNetHead(HeadSpec):
    """`heads.pspnet.PSPNet` in the form of mmsegmentation.

    `width` counts the channels of every pooled map and of the fused map. `align_corners` is how the logits are enlarged
    to the size of the input.
    """

    name: ClassVar[str] = "pspnet"
    width: int = 256
    align_corners: bool = False


@dataclass(frozen=True, slots=True)
class RetinaNetHead(HeadSpec):
    """`heads.retinanet.RetinaNet` and its post-processing, in the form of mmdetection.

    `score_threshold`: candidates have a higher score. `iou_threshold`: a box that overlaps a better box of its class by
    more is dropped. `max_boxes`: boxes per picture. None: what the source has, 0.05, 0.5 and 100.
    """

    name: ClassVar[str] = "retinanet"
    pads_to: ClassVar[int] = 32
    score_threshold: float | None = None
    iou_threshold: float | None = None
    max_boxes: int | None = None
