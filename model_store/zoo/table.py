"""The list of every model that can be built, one frozen `ModelSpec` per backbone and head.

Facts only; `model_store.build.assemble` turns an entry into a network. Importing this module never imports
torch. Published scores are those of the official checkpoints (sources: the READMEs of ml-cvnets tag cvnets-v0.1,
zhangzjn/EMO 27d9b40, Amshaker/SwiftFormer 4aa6cd6 and AAboys/MobileFormer f447310); `parameters` and `macs` were
measured on the official code, except where a comment states otherwise.

The code of SwiftFormer and Mobile-Former was published for classification only. Their detectors and segmenters here are
our default: the heads, label sets and input sizes of EMO (SSDLite of mmdetection's form on strides 16 and 32 at 320 px,
COCO; DeepLabv3 of mmsegmentation's form at output stride 32 and 512 px, ADE20K), without official weights or scores.
The other heads that the papers report are in `model_store.zoo.pyramids`.
"""

from dataclasses import replace

from handlers.contract.card import InputSize, Normalize, Preprocess, Task
from model_store.labels import LabelSet
from model_store.zoo.backbones import EMOBackbone, MobileFormerBackbone, MobileViTBackbone, SwiftFormerBackbone
from model_store.zoo.entry import ModelSpec
from model_store.zoo.heads import ClassifierHead, DeepLabV3Head, HeadSpec, SSDLiteHead
from model_store.zoo.pyramids import pyramids

_MOBILEVIT_PAPER = "MobileViT: Light-weight, General-purpose, and Mobile-friendly Vision Transformer (arXiv 2110.02178)"
_MOBILEVIT_LICENCE = "Apple sample code licence (ml-cvnets)"
_CVNETS = "https://docs-assets.developer.apple.com/ml-research/models/cvnets"
# The checkpoints of ml-cvnets v0.1 read pictures with OpenCV: BGR in 0..1, no mean or std, bilinear without
# antialiasing. Later releases read RGB, but these files belong to v0.1.
_BGR = Normalize(channel_order="BGR")
_SQUASH = Preprocess(mode="squash", antialias=False)

# Mean and deviation of ImageNet, RGB in 0..1.
_IMAGENET = Normalize(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
# Shorter side 224 / 0.875, then the centre: what most ImageNet recipes evaluate with.
_CROP_224 = Preprocess(mode="crop", shorter_side_px=256, interpolation="bicubic", crop_offset="round")

_EMO_PAPER = "Rethinking Mobile Block for Efficient Attention-based Models (arXiv 2301.01146)"
_EMO_LICENCE = "none stated (zhangzjn/EMO)"

_SWIFTFORMER_PAPER = (
    "SwiftFormer: Efficient Additive Attention for Transformer-based Real-time Mobile Vision Applications "
    "(arXiv 2303.15446)"
)
_SWIFTFORMER_LICENCE = "Apache-2.0"
_MOBILEFORMER_PAPER = "Mobile-Former: Bridging MobileNet and Transformer (arXiv 2108.05895)"
_MOBILEFORMER_LICENCE = "none stated (AAboys/MobileFormer)"
_DRIVE = "https://drive.google.com/file/d/{}/view?usp=sharing"  # what the two READMEs link to


def _mobilevit_classify(variant: str, width: int, parameters: int, macs: int, top1: float) -> ModelSpec:
    return ModelSpec(
        name=f"mobilevit_{variant}_classify",
        task=Task.CLASSIFY,
        backbone=MobileViTBackbone(variant=variant),
        head=ClassifierHead(form="mobilevit", width=width),
        labels=LabelSet("imagenet1k"),
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


def _mobilevit_detect(variant: str, parameters: int, macs: int, mean_average_precision: float) -> ModelSpec:
    return ModelSpec(
        name=f"mobilevit_{variant}_detect",
        task=Task.DETECT,
        backbone=MobileViTBackbone(variant=variant),
        head=SSDLiteHead(form="cvnets"),
        labels=LabelSet("coco80"),
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


def _mobilevit_segment(variant: str, parameters: int, macs: int, miou: float) -> ModelSpec:
    return ModelSpec(
        name=f"mobilevit_{variant}_segment",
        task=Task.SEGMENT,
        backbone=MobileViTBackbone(variant=variant, output_stride=16),
        head=DeepLabV3Head(form="cvnets", width=256, rates=(6, 12, 18), align_corners=False),
        labels=LabelSet("voc21"),
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


def _emo_classify(variant: str, parameters: int, macs: int, top1: float, top5: float) -> ModelSpec:
    return ModelSpec(
        name=f"emo_{variant}_classify",
        task=Task.CLASSIFY,
        backbone=EMOBackbone(variant=variant, window=7),
        head=ClassifierHead(form="emo"),
        labels=LabelSet("imagenet1k"),
        input=InputSize(height=224, width=224),
        preprocess=_CROP_224,
        normalize=_IMAGENET,
        paper=_EMO_PAPER,
        licence=_EMO_LICENCE,
        checkpoint_url=f"https://raw.githubusercontent.com/zhangzjn/EMO/main/resources/EMO_{variant.upper()}/net.pth",
        layout="emo",
        parameters=parameters,
        macs=macs,
        published={"top1": top1, "top5": top5},
    )


def _emo_detect(
    variant: str, window: int, parameters: int, macs: int, mean_average_precision: float | None = None
) -> ModelSpec:
    return ModelSpec(
        name=f"emo_{variant}_detect",
        task=Task.DETECT,
        backbone=EMOBackbone(variant=variant, window=window),
        head=SSDLiteHead(form="mmdet"),
        labels=LabelSet("coco80"),
        input=InputSize(height=320, width=320),
        preprocess=_SQUASH,
        normalize=_IMAGENET,
        paper=_EMO_PAPER,
        licence=_EMO_LICENCE,
        checkpoint_url="",
        layout="emo_mmdetection",
        parameters=parameters,
        macs=macs,
        published={} if mean_average_precision is None else {"map": mean_average_precision},
    )


def _emo_segment(variant: str, window: int, parameters: int, macs: int, miou: float | None = None) -> ModelSpec:
    # The authors keep the aspect ratio (shorter side 512, longer up to 2048), which makes every picture another size;
    # pictures of one batch must share one, so here they are squashed.
    return ModelSpec(
        name=f"emo_{variant}_segment",
        task=Task.SEGMENT,
        backbone=EMOBackbone(variant=variant, window=window),  # not dilated, as in the official configurations
        head=DeepLabV3Head(form="mmseg", width=256, rates=(12, 24, 36), align_corners=False),
        labels=LabelSet("ade20k150"),
        input=InputSize(height=512, width=512),
        preprocess=_SQUASH,
        normalize=_IMAGENET,
        paper=_EMO_PAPER,
        licence=_EMO_LICENCE,
        checkpoint_url="",
        layout="emo_mmsegmentation",
        parameters=parameters,
        macs=macs,
        published={} if miou is None else {"miou": miou},
    )


def _swiftformer_classify(variant: str, drive_id: str, parameters: int, macs: int, top1: float) -> ModelSpec:
    return ModelSpec(
        name=f"swiftformer_{variant}_classify",
        task=Task.CLASSIFY,
        backbone=SwiftFormerBackbone(variant=variant, attention="l2"),
        head=ClassifierHead(form="swiftformer"),
        labels=LabelSet("imagenet1k"),
        input=InputSize(height=224, width=224),
        preprocess=_CROP_224,
        normalize=_IMAGENET,
        paper=_SWIFTFORMER_PAPER,
        licence=_SWIFTFORMER_LICENCE,
        checkpoint_url=_DRIVE.format(drive_id),
        layout="swiftformer",
        parameters=parameters,
        macs=macs,
        published={"top1": top1},
    )


def _mobileformer_classify(
    variant: str, hidden: int, drive_id: str, parameters: int, macs: int, top1: float
) -> ModelSpec:
    return ModelSpec(
        name=f"mobileformer_{variant}_classify",
        task=Task.CLASSIFY,
        backbone=MobileFormerBackbone(variant=variant),
        head=ClassifierHead(form="mobileformer", width=hidden),
        labels=LabelSet("imagenet1k"),
        input=InputSize(height=224, width=224),
        preprocess=Preprocess(mode="crop", shorter_side_px=256, crop_offset="round"),
        normalize=_IMAGENET,
        paper=_MOBILEFORMER_PAPER,
        licence=_MOBILEFORMER_LICENCE,
        checkpoint_url=_DRIVE.format(drive_id),
        layout="mobileformer",
        parameters=parameters,
        macs=macs,
        published={"top1": top1},
    )


def _our_detect(classifier: ModelSpec, parameters: int, macs: int) -> ModelSpec:
    """SSDLite as EMO has it, for a backbone whose authors published no such detector."""
    return replace(
        classifier,
        name=f"{classifier.family}_{classifier.variant}_detect",
        task=Task.DETECT,
        head=SSDLiteHead(form="mmdet"),
        labels=LabelSet("coco80"),
        input=InputSize(height=320, width=320),
        preprocess=Preprocess(mode="squash"),
        checkpoint_url="",
        layout="native",
        parameters=parameters,
        macs=macs,
        published={},
    )


def _our_segment(classifier: ModelSpec, parameters: int, macs: int) -> ModelSpec:
    """DeepLabv3 as EMO has it, for a backbone whose authors published no such model; the backbone is not dilated."""
    return replace(
        classifier,
        name=f"{classifier.family}_{classifier.variant}_segment",
        task=Task.SEGMENT,
        head=DeepLabV3Head(form="mmseg", width=256, rates=(12, 24, 36), align_corners=False),
        labels=LabelSet("ade20k150"),
        input=InputSize(height=512, width=512),
        preprocess=Preprocess(mode="squash"),
        checkpoint_url="",
        layout="native",
        parameters=parameters,
        macs=macs,
        published={},
    )


_SWIFTFORMERS = (
    _swiftformer_classify("xs", "12RchxzyiJrtZS-2Bur9k4wcRQMItA43S", 3_475_360, 602_400_000, 75.7),
    _swiftformer_classify("s", "1awpcXAaHH38WaHrOmUM8updxQazUZ3Nb", 6_092_128, 984_600_000, 78.5),
    _swiftformer_classify("l1", "1SDzauVmpR5uExkOv3ajxdwFnP-Buj9Uo", 12_057_920, 1_596_000_000, 80.9),
    _swiftformer_classify("l3", "1DAxMe6FlnZBBIpR-HYIDfFLWJzIgiF0Y", 28_494_736, 4_008_400_000, 83.0),
)
_MOBILEFORMERS = (
    _mobileformer_classify("26m", 1024, "15uWYzx2VWWUjacZQHB56vOHzKxQDlp5O", 3_232_788, 23_600_000, 64.0),
    _mobileformer_classify("52m", 1024, "1ekq_FPl57gjIlYX16Ll0nBuEyB0pjgGt", 3_469_092, 49_300_000, 68.7),
    _mobileformer_classify("96m", 1280, "1kMbRceswujtliCHKr-nxMFsrkvBrEfrW", 4_585_252, 92_000_000, 72.8),
    _mobileformer_classify("151m", 1280, "1w4QO-zhJ8QI1zGu7iOZ7lXxYJ5G1VXdF", 7_595_828, 146_200_000, 75.2),
    _mobileformer_classify("214m", 1600, "13MOjdIMMBJgqyq_ld-grRhBBHOFU5Ggd", 9_425_920, 208_400_000, 76.7),
    _mobileformer_classify("294m", 1920, "1JBSM7NJ60fN9TgT5sMnbhmbZwrzcBd0r", 11_422_648, 286_700_000, 77.9),
    _mobileformer_classify("508m", 1920, "1bqLIcpbCaxK-Eb4wcxk0iJpFJ1nXfGuF", 13_976_976, 498_500_000, 79.3),
)

# Small models trained here, on pictures drawn here (`model_store.demo`): they give meaningful answers without any
# download.
_DEMO_NORMALIZE = Normalize(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))


def _demo(task: Task, head: HeadSpec, output_stride: int, side_px: int, parameters: int, macs: int) -> ModelSpec:
    return ModelSpec(
        name=f"demo_{task.value}",
        task=task,
        backbone=MobileViTBackbone(variant="xxs", output_stride=output_stride),
        head=head,
        labels=LabelSet("demo_shapes_mask" if task is Task.SEGMENT else "demo_shapes"),
        input=InputSize(height=side_px, width=side_px),
        preprocess=Preprocess(mode="squash"),
        normalize=_DEMO_NORMALIZE,
        paper=_MOBILEVIT_PAPER,
        licence="",
        checkpoint_url="",
        layout="native",
        parameters=parameters,
        macs=macs,
        committed=True,
    )


_USUAL: tuple[ModelSpec, ...] = (
    _mobilevit_classify("xxs", 320, 1_272_024, 407_364_096, 69.0),
    _mobilevit_classify("xs", 384, 2_317_848, 1_025_911_808, 74.7),
    _mobilevit_classify("s", 640, 5_578_632, 2_000_831_488, 78.3),
    _mobilevit_detect("xxs", 1_755_050, 842_026_960, 19.9),
    _mobilevit_detect("xs", 2_742_042, 1_845_432_160, 24.8),
    _mobilevit_detect("s", 5_738_826, 3_426_732_960, 27.9),
    _mobilevit_segment("xxs", 1_854_853, 3_952_791_552, 72.8),
    _mobilevit_segment("xs", 2_944_069, 7_378_395_136, 77.1),
    _mobilevit_segment("s", 6_357_941, 13_693_526_016, 79.3),
    _emo_classify("1m", 1_361_168, 255_237_672, 71.498, 90.368),
    _emo_classify("2m", 2_377_472, 431_917_024, 75.134, 92.184),
    _emo_classify("5m", 5_108_848, 892_224_000, 78.422, 93.970),
    _emo_classify("6m", 6_168_496, 950_250_048, 78.988, 94.162),
    # Where windows of 7 need padding (1M and 2M at these sizes) the official code widens the padding too and counts 3
    # to 4 % more: 609_382_208, 1_009_920_576, 2_525_315_904, 3_610_692_320. The authors published no dense 6M: it
    # follows 5M, and its costs were counted here.
    _emo_detect("1m", 7, 2_311_980, 584_905_280, 22.0),
    _emo_detect("2m", 7, 3_342_716, 968_870_976, 25.2),
    _emo_detect("5m", 10, 6_076_540, 1_949_112_896, 27.9),
    _emo_detect("6m", 10, 7_129_340, 2_070_629_696),
    _emo_segment("1m", 7, 5_429_806, 2_461_751_424, 33.5),
    _emo_segment("2m", 7, 6_651_614, 3_489_426_720, 35.3),
    _emo_segment("5m", 16, 9_948_126, 6_556_951_680, 37.8),
    _emo_segment("6m", 16, 11_213_278, 6_925_452_416),
    *_SWIFTFORMERS,
    # No dense SwiftFormer or Mobile-Former was published: heads and input are our choice, costs were counted here.
    _our_detect(_SWIFTFORMERS[0], 4_211_940, 1_284_293_344),
    _our_detect(_SWIFTFORMERS[1], 6_853_780, 2_076_391_744),
    _our_detect(_SWIFTFORMERS[2], 12_638_532, 3_341_150_144),
    _our_detect(_SWIFTFORMERS[3], 28_988_660, 8_301_137_344),
    _our_segment(_SWIFTFORMERS[0], 7_657_814, 4_314_866_688),
    _our_segment(_SWIFTFORMERS[1], 10_296_406, 6_318_899_200),
    _our_segment(_SWIFTFORMERS[2], 17_130_150, 9_805_234_176),
    _our_segment(_SWIFTFORMERS[3], 34_261_590, 22_642_819_072),
    *_MOBILEFORMERS,
    _our_detect(_MOBILEFORMERS[0], 2_486_304, 74_738_880),
    _our_detect(_MOBILEFORMERS[1], 2_681_136, 123_122_880),
    _our_detect(_MOBILEFORMERS[2], 3_096_784, 210_504_704),
    _our_detect(_MOBILEFORMERS[3], 6_000_672, 304_847_872),
    _our_detect(_MOBILEFORMERS[4], 6_859_212, 430_228_544),
    _our_detect(_MOBILEFORMERS[5], 7_744_964, 585_663_424),
    _our_detect(_MOBILEFORMERS[6], 9_656_956, 1_015_201_344),
    _our_segment(_MOBILEFORMERS[0], 5_134_850, 1_036_420_096),
    _our_segment(_MOBILEFORMERS[1], 5_329_682, 1_160_283_136),
    _our_segment(_MOBILEFORMERS[2], 5_944_914, 1_421_092_352),
    _our_segment(_MOBILEFORMERS[3], 8_848_802, 1_639_207_168),
    _our_segment(_MOBILEFORMERS[4], 9_906_926, 1_997_589_760),
    _our_segment(_MOBILEFORMERS[5], 10_996_518, 2_437_379_072),
    _our_segment(_MOBILEFORMERS[6], 13_201_502, 3_585_740_800),
    _demo(Task.CLASSIFY, ClassifierHead(form="mobilevit", width=160), 32, 128, 939_192, 86_897_920),
    _demo(Task.DETECT, SSDLiteHead(form="cvnets"), 16, 160, 1_181_210, 186_291_280),
    _demo(
        Task.SEGMENT,
        DeepLabV3Head(form="cvnets", width=64, rates=(2, 4, 8), align_corners=False),
        8,
        192,
        1_095_097,
        775_301_120,
    ),
)

ENTRIES: tuple[ModelSpec, ...] = (*_USUAL, *pyramids(_USUAL))
