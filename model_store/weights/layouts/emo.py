"""EMO with its heads: zhangzjn/EMO and its forks of OpenMMLab."""

from model_store.weights.layouts.base import Layout, Rule

# EMO's backbone, bare in `net.pth` and with `backbone.` before it in the OpenMMLab forks.
_EMO_BACKBONE_RULES: tuple[Rule, ...] = (
    (r"^(?:backbone\.)?stage0\.0\.convs\.0\.0\.", "backbone.stem.conv."),
    (r"^(?:backbone\.)?stage0\.0\.convs\.0\.1\.", "backbone.stem.norm."),
    (r"^(?:backbone\.)?stage0\.1\.", "backbone.entry."),
    *((rf"^(?:backbone\.)?stage{i}\.", f"backbone.stages.{i - 1}.") for i in range(1, 5)),
    (r"^(backbone\..*)\.se\.conv_(reduce|expand)\.", r"\1.excite.\2."),
    (r"^(backbone\..*)\.norm\.norm\.", r"\1.norm."),
    (r"^(backbone\..*)\.qk\.conv\.", r"\1.attend.qk."),
    (r"^(backbone\..*)\.v\.conv\.", r"\1.expand."),
    (r"^(backbone\..*)\.conv_local\.", r"\1.depthwise."),
    (r"^(backbone\..*)\.proj\.conv\.", r"\1.reduce."),
)

_EMO_RULES: tuple[Rule, ...] = (
    *_EMO_BACKBONE_RULES,
    (r"^norm\.norm\.", "head.norm."),
    (r"^head\.(weight|bias)$", r"head.fc.\1"),
)

_EMO_MMDETECTION_RULES: tuple[Rule, ...] = (
    *_EMO_BACKBONE_RULES,
    (r"^neck\.extra_layers\.(\d)\.0\.", r"head.extra_levels.\1.reduce."),
    (r"^neck\.extra_layers\.(\d)\.1\.(depthwise|pointwise)_conv\.", r"head.extra_levels.\1.\2."),
    (r"^bbox_head\.cls_convs\.(\d)\.0\.", r"head.predictors.\1.class_depthwise."),
    (r"^bbox_head\.cls_convs\.(\d)\.1\.", r"head.predictors.\1.class_pointwise."),
    (r"^bbox_head\.reg_convs\.(\d)\.0\.", r"head.predictors.\1.box_depthwise."),
    (r"^bbox_head\.reg_convs\.(\d)\.1\.", r"head.predictors.\1.box_pointwise."),
    # RetinaNet. Ours of the pyramid run from coarse to fine.
    *((rf"^neck\.lateral_convs\.{i}\.conv\.", f"head.fpn.laterals.{2 - i}.") for i in range(3)),
    *((rf"^neck\.fpn_convs\.{i}\.conv\.", f"head.fpn.outputs.{2 - i}.") for i in range(3)),
    *((rf"^neck\.fpn_convs\.{i}\.conv\.", f"head.extra_levels.{i - 3}.") for i in (3, 4)),
    (r"^bbox_head\.cls_convs\.(\d)\.conv\.", r"head.class_tower.\1."),
    (r"^bbox_head\.reg_convs\.(\d)\.conv\.", r"head.box_tower.\1."),
    (r"^bbox_head\.retina_cls\.", "head.class_output."),
    (r"^bbox_head\.retina_reg\.", "head.box_output."),
    (r"^(head\..*)\.bn\.", r"\1.norm."),
)

_EMO_MMSEGMENTATION_RULES: tuple[Rule, ...] = (
    *_EMO_BACKBONE_RULES,
    (r"^decode_head\.aspp_modules\.([0-3])\.", r"head.branches.\1."),
    (r"^decode_head\.image_pool\.1\.", "head.pool."),
    (r"^decode_head\.psp_modules\.([0-3])\.1\.", r"head.pools.\1."),
    (r"^decode_head\.bottleneck\.", "head.fuse."),
    (r"^decode_head\.conv_seg\.", "head.classifier."),
    (r"^(head\..*)\.bn\.", r"\1.norm."),
)

LAYOUTS = (
    Layout(name="emo", summary="zhangzjn/EMO classifiers, `net.pth`", rules=_EMO_RULES),
    Layout(
        name="emo_mmdetection",
        summary="EMO's fork of mmdetection: SSDLite, RetinaNet",
        rules=_EMO_MMDETECTION_RULES,
    ),
    Layout(
        name="emo_mmsegmentation",
        summary="EMO's fork of mmsegmentation: DeepLabv3, PSPNet",
        rules=_EMO_MMSEGMENTATION_RULES,
        ignored=(r"^auxiliary_head\.",),  # training only
    ),
)
