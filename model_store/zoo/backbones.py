"""What an entry of the zoo states about its backbone: one frozen class per family. Facts only, no torch.

`model_store.networks.backbones.registry` maps each class to the code that builds the backbone.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class BackboneSpec:
    """Base of all backbones.

    Attributes:
        family: name of the family, as in the names of the models.
        variant: size of the backbone, a name of the family's table of sizes.
        output_stride: pixels of the input per cell of the last map: 8, 16 or 32, as far as the family has them.

    """

    family: ClassVar[str]
    variant: str
    output_stride: int = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class MobileViTBackbone(BackboneSpec):
    """`backbones.mobilevit.MobileViT`: xxs, xs, s; output stride 8, 16 or 32."""

    family: ClassVar[str] = "mobilevit"


@dataclass(frozen=True, slots=True, kw_only=True)
class EMOBackbone(BackboneSpec):
    """`backbones.emo.EMO`: 1m, 2m, 5m, 6m; output stride 32.

    `window` is the side of an attention window in cells of the map. The weights do not depend on it.
    """

    family: ClassVar[str] = "emo"
    window: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SwiftFormerBackbone(BackboneSpec):
    """`backbones.swiftformer.SwiftFormer`: xs, s, l1, l3; output stride 16 or 32.

    `attention` is the published form of the attention. The names and shapes of the weights do not depend on it.
    """

    family: ClassVar[str] = "swiftformer"
    attention: Literal["l2", "ones"] = "l2"


@dataclass(frozen=True, slots=True, kw_only=True)
class MobileFormerBackbone(BackboneSpec):
    """`backbones.mobileformer.MobileFormer`: 26m to 508m; output stride 16 or 32."""

    family: ClassVar[str] = "mobileformer"
