"""THE LIST: every model that can be built, one frozen `Entry` per backbone and head.

Only facts stand here; `model_store.assemble` turns an entry into a network. Importing this module never imports
torch. Published scores and parameter counts are those of the official checkpoints (sources: the README of ml-cvnets
tag cvnets-v0.1); `parameters` and `macs` were measured on the official code.
"""

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from model_store.card import InputSize, Normalize, Preprocess, Task


@dataclass(frozen=True, slots=True)
class ClassifierHead:
    """`heads.classifier.Classifier`: the last map widened to `width` channels, averaged, mapped to classes."""

    width: int


@dataclass(frozen=True, slots=True)
class SSDLiteHead:
    """`heads.ssdlite.SSDLite` and its post-processing, in the form of ml-cvnets or of mmdetection."""

    form: Literal["cvnets", "mmdet"]


@dataclass(frozen=True, slots=True)
class DeepLabV3Head:
    """`heads.deeplabv3.DeepLabV3` in the form of ml-cvnets or of mmsegmentation.

    `align_corners` is how its logits are brought to the input's size.
    """

    form: Literal["cvnets", "mmseg"]
    width: int
    rates: tuple[int, int, int]
    align_corners: bool


Head = ClassifierHead | SSDLiteHead | DeepLabV3Head


@dataclass(frozen=True, slots=True)
class Entry:
    """One model: what it is, how it is built, what it is fed, what was published about it.

    `published` maps a metric (`top1`, `map`, `miou`, in percent) to the score of the official checkpoint, which is at
    `checkpoint_url` (empty: never published). `parameters` counts learnable scalars, `macs` the multiply-adds of
    convolutions and matrix products for one picture at `input`.
    """

    name: str
    task: Task
    family: str
    variant: str
    output_stride: int  # of the backbone
    head: Head
    labels: str  # label set, see model_store.labels
    input: InputSize
    preprocess: Preprocess
    normalize: Normalize
    paper: str
    licence: str  # of the official weights
    checkpoint_url: str
    layout: str  # key layout of the official checkpoint, see model_store.layouts
    parameters: int
    macs: int
    published: Mapping[str, float] = field(default_factory=dict)

    @property
    def head_name(self) -> str:
        """The head in one word: classifier, ssdlite or deeplabv3."""
        return HEAD_NAMES[type(self.head)]


class UnknownModel(LookupError):
    """No entry has this name. `nearest` holds the names most like it."""

    def __init__(self, name: str, nearest: tuple[str, ...]) -> None:
        hint = f"; did you mean {' or '.join(nearest)}?" if nearest else "; `mobilevision models list` shows all names"
        super().__init__(f"no model is called {name!r}{hint}")
        self.name = name
        self.nearest = nearest


HEAD_NAMES: Mapping[type, str] = MappingProxyType(
    {ClassifierHead: "classifier", SSDLiteHead: "ssdlite", DeepLabV3Head: "deeplabv3"}
)

_MOBILEVIT_PAPER = "MobileViT: Light-weight, General-purpose, and Mobile-friendly Vision Transformer (arXiv 2110.02178)"
_MOBILEVIT_LICENCE = "Apple sample code licence (ml-cvnets)"
_CVNETS = "https://docs-assets.developer.apple.com/ml-research/models/cvnets"
# The checkpoints of ml-cvnets v0.1 read pictures with OpenCV: BGR in 0..1, no mean or std, bilinear without
# antialiasing. Later releases read RGB, but these files belong to v0.1.
_BGR = Normalize(channel_order="BGR")
_SQUASH = Preprocess(mode="squash", antialias=False)


def _mobilevit_classify(variant: str, width: int, parameters: int, macs: int, top1: float) -> Entry:
    return Entry(
        name=f"mobilevit_{variant}_classify",
        task=Task.CLASSIFY,
        family="mobilevit",
        variant=variant,
        output_stride=32,
        head=ClassifierHead(width=width),
        labels="imagenet1k",
        input=InputSize(height=256, width=256),
        preprocess=Preprocess(mode="crop", shorter_side_px=288, antialias=False),
        normalize=_BGR,
        paper=_MOBILEVIT_PAPER,
        licence=_MOBILEVIT_LICENCE,
        checkpoint_url=f"{_CVNETS}/classification/mobilevit_{variant}.pt",
        layout="cvnets",
        parameters=parameters,
        macs=macs,
        published={"top1": top1},
    )


def _mobilevit_detect(variant: str, parameters: int, macs: int, mean_average_precision: float) -> Entry:
    return Entry(
        name=f"mobilevit_{variant}_detect",
        task=Task.DETECT,
        family="mobilevit",
        variant=variant,
        output_stride=32,
        head=SSDLiteHead(form="cvnets"),
        labels="coco80",
        input=InputSize(height=320, width=320),
        preprocess=_SQUASH,
        normalize=_BGR,
        paper=_MOBILEVIT_PAPER,
        licence=_MOBILEVIT_LICENCE,
        checkpoint_url=f"{_CVNETS}/detection/ssd_mobilevit_{variant}_320.pt",
        layout="cvnets",
        parameters=parameters,
        macs=macs,
        published={"map": mean_average_precision},
    )


def _mobilevit_segment(variant: str, parameters: int, macs: int, miou: float) -> Entry:
    return Entry(
        name=f"mobilevit_{variant}_segment",
        task=Task.SEGMENT,
        family="mobilevit",
        variant=variant,
        output_stride=16,
        head=DeepLabV3Head(form="cvnets", width=256, rates=(6, 12, 18), align_corners=False),
        labels="voc21",
        input=InputSize(height=512, width=512),
        preprocess=_SQUASH,
        normalize=_BGR,
        paper=_MOBILEVIT_PAPER,
        licence=_MOBILEVIT_LICENCE,
        checkpoint_url=f"{_CVNETS}/segmentation/deeplabv3_mobilevit_{variant}.pt",
        layout="cvnets",
        parameters=parameters,
        macs=macs,
        published={"miou": miou},
    )


ENTRIES: tuple[Entry, ...] = (
    _mobilevit_classify("xxs", 320, 1_272_024, 407_364_096, 69.0),
    _mobilevit_classify("xs", 384, 2_317_848, 1_025_911_808, 74.7),
    _mobilevit_classify("s", 640, 5_578_632, 2_000_831_488, 78.3),
    _mobilevit_detect("xxs", 1_755_050, 842_026_960, 19.9),
    _mobilevit_detect("xs", 2_742_042, 1_845_432_160, 24.8),
    _mobilevit_detect("s", 5_738_826, 3_426_732_960, 27.9),
    _mobilevit_segment("xxs", 1_854_853, 3_952_791_552, 72.8),
    _mobilevit_segment("xs", 2_944_069, 7_378_395_136, 77.1),
    _mobilevit_segment("s", 6_357_941, 13_693_526_016, 79.3),
)

_BY_NAME: Mapping[str, Entry] = MappingProxyType({entry.name: entry for entry in ENTRIES})


def names() -> tuple[str, ...]:
    """Names of all entries, in the order of the list."""
    return tuple(_BY_NAME)


def entries(task: Task | None = None) -> Iterator[Entry]:
    """All entries, or those of one task, in the order of the list."""
    return (entry for entry in ENTRIES if task is None or entry.task is task)


def get(name: str) -> Entry:
    """The entry called `name`. Raises `UnknownModel`, which names the nearest ones."""
    if name not in _BY_NAME:
        raise UnknownModel(name, tuple(difflib.get_close_matches(name, _BY_NAME, n=3, cutoff=0.6)))
    return _BY_NAME[name]
