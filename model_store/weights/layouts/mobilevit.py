"""MobileViT with its heads: ml-cvnets, timm, Hugging Face transformers."""

from handlers.contract.card import Preprocess
from model_store.weights.layouts.base import Layout, Rule

# ml-cvnets: backbone keys are bare in classification checkpoints and carry `encoder.` in the others. v0.1 and later
# releases differ in the DeepLabv3 classifier's name only.
_CVNETS_RULES: tuple[Rule, ...] = (
    (r"^encoder\.", ""),
    (r"^conv_1\.block\.", "backbone.stem."),
    *((rf"^layer_{i}\.", f"backbone.stages.{i - 1}.") for i in range(1, 6)),
    (r"^(backbone\..*)\.block\.exp_1x1\.block\.", r"\1.expand."),
    (r"^(backbone\..*)\.block\.conv_3x3\.block\.", r"\1.depthwise."),
    (r"^(backbone\..*)\.block\.red_1x1\.block\.", r"\1.reduce."),
    (r"\.local_rep\.conv_3x3\.block\.", ".local."),
    (r"\.local_rep\.conv_1x1\.block\.conv\.", ".to_tokens."),
    (r"\.global_rep\.(\d+)\.pre_norm_mha\.0\.", r".layers.\1.norm1."),
    (r"\.global_rep\.(\d+)\.pre_norm_mha\.1\.qkv_proj\.", r".layers.\1.qkv."),
    (r"\.global_rep\.(\d+)\.pre_norm_mha\.1\.out_proj\.", r".layers.\1.out."),
    (r"\.global_rep\.(\d+)\.pre_norm_ffn\.0\.", r".layers.\1.norm2."),
    (r"\.global_rep\.(\d+)\.pre_norm_ffn\.1\.", r".layers.\1.fc1."),
    (r"\.global_rep\.(\d+)\.pre_norm_ffn\.4\.", r".layers.\1.fc2."),
    (r"\.global_rep\.\d+\.(weight|bias)$", r".norm.\1"),
    (r"\.conv_proj\.block\.", ".from_tokens."),
    (r"\.fusion\.block\.", ".fuse."),
    (r"^conv_1x1_exp\.block\.", "head.expand."),
    (r"^classifier\.fc\.", "head.fc."),
    # SSDLite
    *((rf"^extra_layers\.os_{stride}\.", f"head.extra_levels.{i}.") for i, stride in enumerate((64, 128, 256))),
    (r"^extra_layers\.os_-1\.1\.block\.conv\.", "head.extra_levels.3.pointwise."),
    (r"^(head\.extra_levels\..*)\.dw_conv\.block\.", r"\1.depthwise."),
    (r"^(head\.extra_levels\..*)\.pw_conv\.block\.", r"\1.pointwise."),
    (r"^ssd_heads\.(\d)\.proj_layer\.block\.", r"head.predictors.\1.project."),
    (r"^ssd_heads\.(\d)\.loc_cls_layer\.dw_conv\.block\.", r"head.predictors.\1.depthwise."),
    (r"^ssd_heads\.(\d)\.loc_cls_layer\.(?:pw_conv\.)?block\.conv\.", r"head.predictors.\1.pointwise."),
    # DeepLabv3
    (r"^seg_head\.aspp\.aspp_layer\.convs\.([0-3])\.block\.", r"head.branches.\1."),
    (r"^seg_head\.aspp\.aspp_layer\.convs\.4\.aspp_pool\.conv_1x1\.block\.", "head.pool."),
    (r"^seg_head\.aspp\.aspp_layer\.project\.block\.", "head.fuse."),
    (r"^seg_head\.classifier\.(?:classifier\.)?block\.conv\.", "head.classifier."),
)

# Training-only parts of later releases of ml-cvnets.
_CVNETS_IGNORED = (r"^seg_head\.aux_head\.", r"^(encoder\.)?neural_augmentor\.")

_TIMM_RULES: tuple[Rule, ...] = (
    (r"^stem\.", "backbone.stem."),
    (r"^stages\.", "backbone.stages."),
    (r"\.bn\.", ".norm."),
    (r"\.conv1_1x1\.", ".expand."),
    (r"\.conv2_kxk\.", ".depthwise."),
    (r"\.conv3_1x1\.", ".reduce."),
    (r"\.conv_kxk\.", ".local."),
    (r"\.conv_1x1\.", ".to_tokens."),
    (r"\.transformer\.(\d+)\.", r".layers.\1."),
    (r"\.attn\.qkv\.", ".qkv."),
    (r"\.attn\.proj\.", ".out."),
    (r"\.mlp\.(fc[12])\.", r".\1."),
    (r"\.conv_proj\.", ".from_tokens."),
    (r"\.conv_fusion\.", ".fuse."),
    (r"^final_conv\.", "head.expand."),
    (r"^head\.fc\.", "head.fc."),
)

_TRANSFORMERS_RULES: tuple[Rule, ...] = (
    (r"\.convolution\.", ".conv."),
    (r"\.normalization\.", ".norm."),
    (r"^mobilevit\.conv_stem\.", "backbone.stem."),
    (r"^mobilevit\.conv_1x1_exp\.", "head.expand."),
    (r"^mobilevit\.encoder\.layer\.(\d+)\.layer\.(\d+)\.", r"backbone.stages.\1.\2."),
    (r"^mobilevit\.encoder\.layer\.(\d+)\.downsampling_layer\.", r"backbone.stages.\1.0."),
    (r"^mobilevit\.encoder\.layer\.(\d+)\.", r"backbone.stages.\1.1."),
    (r"\.expand_1x1\.", ".expand."),
    (r"^(backbone\..*)\.conv_3x3\.", r"\1.depthwise."),
    (r"\.reduce_1x1\.", ".reduce."),
    (r"^(backbone\..*)\.conv_kxk\.", r"\1.local."),
    (r"^(backbone\..*)\.conv_1x1\.conv\.", r"\1.to_tokens."),
    (r"\.transformer\.layer\.(\d+)\.", r".layers.\1."),
    (r"\.attention\.attention\.query\.(weight|bias)$", r".qkv.\1#0"),
    (r"\.attention\.attention\.key\.(weight|bias)$", r".qkv.\1#1"),
    (r"\.attention\.attention\.value\.(weight|bias)$", r".qkv.\1#2"),
    (r"\.attention\.output\.dense\.", ".out."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.intermediate\.dense\.", ".fc1."),
    (r"\.output\.dense\.", ".fc2."),
    (r"\.layernorm\.", ".norm."),
    (r"\.conv_projection\.", ".from_tokens."),
    (r"\.fusion\.", ".fuse."),
    (r"^classifier\.(weight|bias)$", r"head.fc.\1"),
    (r"^segmentation_head\.aspp\.convs\.([0-3])\.", r"head.branches.\1."),
    (r"^segmentation_head\.aspp\.convs\.4\.conv_1x1\.", "head.pool."),
    (r"^segmentation_head\.aspp\.project\.", "head.fuse."),
    (r"^segmentation_head\.classifier\.conv\.", "head.classifier."),
)

LAYOUTS = (
    Layout(
        name="cvnets",
        summary="ml-cvnets v0.1: MobileViT, SSDLite, DeepLabv3 (BGR)",
        rules=_CVNETS_RULES,
        ignored=_CVNETS_IGNORED,
    ),
    Layout(
        name="cvnets_v2",
        summary="ml-cvnets v0.2 and later: the same names, but trained on RGB read with Pillow",
        rules=_CVNETS_RULES,
        ignored=_CVNETS_IGNORED,
        channel_order="RGB",
    ),
    Layout(
        name="timm",
        summary="timm's MobileViT classifiers (RGB, crop 0.9, bicubic)",
        rules=_TIMM_RULES,
        channel_order="RGB",
        # 256 / 0.9, rounded down as timm does
        preprocess=Preprocess(mode="crop", shorter_side_px=284, interpolation="bicubic", crop_offset="round"),
    ),
    Layout(
        name="transformers",
        summary="Hugging Face transformers: MobileViT classifiers and DeepLabv3 (BGR)",
        rules=_TRANSFORMERS_RULES,
    ),
)
