"""The entries with the papers' other heads: Semantic FPN, PSPNet and RetinaNet. Each follows one with a usual head.

Facts only, no torch. In: the entries of `model_store.zoo.table`. Out: more entries. No checkpoint of these models was
ever published, only scores: of EMO 1M, 2M and 5M with RetinaNet and PSPNet (README of zhangzjn/EMO 27d9b40), and of
SwiftFormer L1 and L3 with Semantic FPN (paper). Costs were counted here. The other models are our default.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from handlers.contract.card import InputSize, Preprocess
from model_store.zoo.backbones import EMOBackbone
from model_store.zoo.entry import ModelSpec
from model_store.zoo.heads import PSPNetHead, RetinaNetHead, SemanticFPNHead

# OpenCV's bilinear filter. The authors keep the aspect ratio, which makes every picture another size; pictures of one
# batch must share one, so here they are squashed.
_SQUASH = Preprocess(mode="squash", antialias=False)

# The authors scale pictures to 800 pixels on the shorter side, and at most 1333 on the longer one. This is what a
# picture of 4 to 3, the most common shape in COCO, becomes, so that nothing is squashed. The network pads it to 1088.
_LARGE = InputSize(height=800, width=1067)
# Our default: COCO's most common size, at a third of the costs.
_MEDIUM = InputSize(height=480, width=640)


@dataclass(frozen=True, slots=True)
class _Facts:
    """Learnable scalars, multiply-adds at the input of the entry, and the published score in percent."""

    parameters: int
    macs: int
    score: float | None = None


# Name of the entry with a usual head to the facts.
_SEMANTIC_FPN: Mapping[str, _Facts] = MappingProxyType(
    {
        "swiftformer_xs_segment": _Facts(7_149_910, 24_375_511_040),
        "swiftformer_s_segment": _Facts(9_776_214, 26_395_533_312),
        "swiftformer_l1_segment": _Facts(15_477_414, 29_638_557_696, 41.4),
        "swiftformer_l3_segment": _Facts(31_736_406, 42_383_835_136, 43.9),
    }
)
# Without the auxiliary head, which the published numbers of parameters count.
_PSPNET: Mapping[str, _Facts] = MappingProxyType(
    {
        "emo_1m_segment": _Facts(4_151_342, 2_103_672_960, 33.2),
        "emo_2m_segment": _Facts(5_242_078, 3_091_903_776, 34.5),
        "emo_5m_segment": _Facts(8_178_142, 6_050_956_416, 38.2),
        "emo_6m_segment": _Facts(9_312_222, 6_380_012_672),
    }
)
_RETINANET: Mapping[str, _Facts] = MappingProxyType(
    {
        "emo_1m_detect": _Facts(10_479_244, 132_596_295_440, 34.4),
        "emo_2m_detect": _Facts(11_555_644, 135_819_198_208, 36.2),
        "emo_5m_detect": _Facts(14_440_508, 144_507_139_200, 38.9),
        "emo_6m_detect": _Facts(15_550_012, 145_573_682_688),
        "mobilevit_xxs_detect": _Facts(9_982_820, 48_431_861_760),
        "mobilevit_xs_detect": _Facts(11_002_404, 52_038_516_480),
        "mobilevit_s_detect": _Facts(14_125_460, 57_721_159_680),
        "swiftformer_xs_detect": _Facts(12_464_564, 48_922_090_080),
        "swiftformer_s_detect": _Facts(15_100_084, 51_290_040_960),
        "swiftformer_l1_detect": _Facts(21_169_924, 55_119_951_360),
        "swiftformer_l3_detect": _Facts(37_719_732, 70_000_773_120),
        "mobileformer_26m_detect": _Facts(10_524_256, 45_259_822_336),
        "mobileformer_52m_detect": _Facts(10_719_088, 45_404_974_336),
        "mobileformer_96m_detect": _Facts(11_186_864, 45_667_102_400),
        "mobileformer_151m_detect": _Facts(14_090_752, 45_920_127_168),
        "mobileformer_214m_detect": _Facts(15_001_420, 46_296_631_680),
        "mobileformer_294m_detect": _Facts(15_941_508, 46_766_092_800),
        "mobileformer_508m_detect": _Facts(17_931_452, 48_064_951_680),
    }
)


def pyramids(entries: tuple[ModelSpec, ...]) -> Iterator[ModelSpec]:
    """The entries that follow those of `entries` that are listed here."""
    by_name = {entry.name: entry for entry in entries}
    for name, facts in _RETINANET.items():
        yield _retinanet(by_name[name], facts)
    for name, facts in _PSPNET.items():
        yield _pspnet(by_name[name], facts)
    for name, facts in _SEMANTIC_FPN.items():
        yield _semantic_fpn(by_name[name], facts)


def _retinanet(base: ModelSpec, facts: _Facts) -> ModelSpec:
    emo = isinstance(base.backbone, EMOBackbone)  # with windows of the same size as for SSDLite
    return replace(
        base,
        name=f"{base.family}_{base.variant}_retinanet",
        head=RetinaNetHead(),
        input=_LARGE if emo else _MEDIUM,
        checkpoint_url="",
        layout="emo_mmdetection" if emo else "native",
        parameters=facts.parameters,
        macs=facts.macs,
        published={} if facts.score is None else {"map": facts.score},
    )


def _pspnet(base: ModelSpec, facts: _Facts) -> ModelSpec:
    return replace(
        base,  # with windows of the same size as for DeepLabv3
        name=f"{base.family}_{base.variant}_pspnet",
        head=PSPNetHead(),
        parameters=facts.parameters,
        macs=facts.macs,
        published={} if facts.score is None else {"miou": facts.score},
    )


def _semantic_fpn(base: ModelSpec, facts: _Facts) -> ModelSpec:
    # The head of EfficientFormer, whose recipe the authors followed; they published no code for it.
    return replace(
        base,
        name=f"{base.family}_{base.variant}_semantic_fpn",
        head=SemanticFPNHead(),
        preprocess=_SQUASH,
        layout="swiftformer_mmsegmentation",
        parameters=facts.parameters,
        macs=facts.macs,
        published={} if facts.score is None else {"miou": facts.score},
    )
