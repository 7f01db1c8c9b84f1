"""SwiftFormer: classifiers of Amshaker/SwiftFormer, timm, Hugging Face transformers; Semantic FPN in mmsegmentation."""

from handlers.contract.card import Preprocess
from model_store.weights.layouts.base import Layout, Rule

# SwiftFormer's own names. `norm0`, `norm2`, `norm4` and `norm6` exist in its dense mode only.
_SWIFTFORMER_RULES: tuple[Rule, ...] = (
    *((rf"^patch_embed\.{3 * i}\.", f"backbone.stem.{i}.conv.") for i in range(2)),
    *((rf"^patch_embed\.{3 * i + 1}\.", f"backbone.stem.{i}.norm.") for i in range(2)),
    *((rf"^network\.{2 * i}\.", f"backbone.stages.{i}.") for i in range(4)),
    *((rf"^network\.{2 * i - 1}\.proj\.", f"backbone.downsamples.{i}.conv.") for i in range(1, 4)),
    *((rf"^network\.{2 * i - 1}\.norm\.", f"backbone.downsamples.{i}.norm.") for i in range(1, 4)),
    *((rf"^norm{2 * i}\.", f"backbone.norms.{i}.") for i in range(4)),
    (r"\.local_representation\.", ".local."),
    (r"\.dwconv\.", ".depthwise."),
    (r"\.pwconv([12])\.", r".feed_forward.fc\1."),
    (r"\.layer_scale$", ".scale"),
    (r"\.layer_scale_([12])$", r".scale\1"),
    (r"\.attn\.to_(query|key)\.", r".attention.\1."),
    (r"\.attn\.[Pp]roj\.", ".attention.project."),
    (r"\.attn\.final\.", ".attention.out."),
    (r"\.attn\.w_g$", ".attention.weight"),
    (r"\.linear\.norm1\.", ".norm."),
    (r"\.linear\.(fc[12])\.", r".feed_forward.\1."),
    (r"^norm\.", "head.norm."),
    (r"^head\.(weight|bias)$", r"head.fc.\1"),
    (r"^dist_head\.", "head.fc_distilled."),
)

# The backbone in its dense mode under OpenMMLab's names, with the heads of mmsegmentation.
_SWIFTFORMER_MMSEGMENTATION_RULES: tuple[Rule, ...] = (
    (r"^backbone\.(patch_embed|network|norm)", r"\1"),
    *_SWIFTFORMER_RULES,
    # Ours run from coarse to fine.
    *((rf"^neck\.lateral_convs\.{i}\.conv\.", f"head.fpn.laterals.{3 - i}.") for i in range(4)),
    *((rf"^neck\.fpn_convs\.{i}\.conv\.", f"head.fpn.outputs.{3 - i}.") for i in range(4)),
    (r"^decode_head\.scale_heads\.", "head.branches."),
    (r"^decode_head\.conv_seg\.", "head.classifier."),
    (r"^(head\..*)\.bn\.", r"\1.norm."),
)

_SWIFTFORMER_TIMM_RULES: tuple[Rule, ...] = (
    (r"^stem\.", "patch_embed."),
    *((rf"^stages\.{i}\.blocks\.", f"network.{2 * i}.") for i in range(4)),
    *((rf"^stages\.{i}\.downsample\.", f"network.{2 * i - 1}.") for i in range(1, 4)),
    (r"\.(layer_scale(?:_[12])?)\.gamma$", r".\1"),
    (r"^head_dist\.", "dist_head."),
    *_SWIFTFORMER_RULES,
)

_SWIFTFORMER_TRANSFORMERS_RULES: tuple[Rule, ...] = (
    (r"^swiftformer\.patch_embed\.patch_embedding\.", "patch_embed."),
    (r"^swiftformer\.encoder\.network\.(\d)\.(?:blocks\.)?", r"network.\1."),
    (r"\.depth_wise_conv\.", ".dwconv."),
    (r"\.point_wise_conv([12])\.", r".pwconv\1."),
    *_SWIFTFORMER_RULES,
)

LAYOUTS = (
    Layout(
        name="swiftformer",
        summary="Amshaker/SwiftFormer classifiers, the files linked since 26 July 2023",
        rules=_SWIFTFORMER_RULES,
        backbone_options={"attention": "l2"},
    ),
    Layout(
        name="swiftformer_first",
        summary="Amshaker/SwiftFormer classifiers, the files of March to July 2023: another form of attention",
        rules=_SWIFTFORMER_RULES,
        backbone_options={"attention": "ones"},
    ),
    Layout(
        name="swiftformer_mmsegmentation",
        summary="Amshaker/SwiftFormer in mmsegmentation: Semantic FPN",
        rules=_SWIFTFORMER_MMSEGMENTATION_RULES,
        backbone_options={"attention": "l2"},
    ),
    Layout(
        name="swiftformer_mmsegmentation_first",
        summary="the same with the attention of March to July 2023, which the models of the paper may have",
        rules=_SWIFTFORMER_MMSEGMENTATION_RULES,
        backbone_options={"attention": "ones"},
    ),
    Layout(
        name="swiftformer_timm",
        summary="timm's SwiftFormer classifiers (crop 0.95)",
        rules=_SWIFTFORMER_TIMM_RULES,
        # 224 / 0.95, rounded down as timm does
        preprocess=Preprocess(mode="crop", shorter_side_px=235, interpolation="bicubic", crop_offset="round"),
        backbone_options={"attention": "l2"},
    ),
    Layout(
        name="swiftformer_transformers",
        summary="Hugging Face transformers: SwiftFormer classifiers, made from the first files",
        rules=_SWIFTFORMER_TRANSFORMERS_RULES,
        backbone_options={"attention": "ones"},
    ),
)
