"""Key layouts of published checkpoints, as ordered rename rules from their names to ours.

In: the state dict of a checkpoint, under its project's names. Out: the same tensors under the names of
`model_store.assemble.Network`. Never looks at the network: whether the result fits is the business of
`model_store.weights`. A key that no rule touches keeps its name, and is then reported there as unexpected.

A rule is (pattern, replacement) as for `re.sub`; all rules run over each key in order. Where a project keeps what is
one tensor of ours in several, the renamed keys end in `#0`, `#1`, ... and the parts are joined along dimension 0.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor

from model_store.card import Preprocess

Rule = tuple[str, str]


class UnknownLayout(LookupError):
    """No layout has this name."""


@dataclass(frozen=True)
class Layout:
    """One project's names, and what its weights expect where that is not what the entry in the zoo says.

    Keys that match a pattern of `ignored` are dropped (training-only parts). `channel_order` and `preprocess`, where
    given, replace those of the entry: the same architecture was published for RGB and for BGR input. So does
    `attention`: SwiftFormer was published with two forms of it, which the weights do not tell apart.
    """

    name: str
    summary: str
    rules: tuple[Rule, ...]
    ignored: tuple[str, ...] = ()
    channel_order: Literal["RGB", "BGR"] | None = None
    preprocess: Preprocess | None = None
    attention: Literal["l2", "ones"] | None = None


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
    (r"^(head\..*)\.bn\.", r"\1.norm."),
)

_EMO_MMSEGMENTATION_RULES: tuple[Rule, ...] = (
    *_EMO_BACKBONE_RULES,
    (r"^decode_head\.aspp_modules\.([0-3])\.", r"head.branches.\1."),
    (r"^decode_head\.image_pool\.1\.", "head.pool."),
    (r"^decode_head\.bottleneck\.", "head.fuse."),
    (r"^decode_head\.conv_seg\.", "head.classifier."),
    (r"^(head\..*)\.bn\.", r"\1.norm."),
)

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

_MOBILEFORMER_RULES: tuple[Rule, ...] = (
    (r"^tokens\.weight$", "backbone.tokens"),
    (r"^stem\.0\.", "backbone.stem.conv."),
    (r"^stem\.1\.", "backbone.stem.norm."),
    (r"^features\.(\d+)\.", r"backbone.blocks.\1."),
    (r"^(backbone\.blocks\.\d+)\.conv\.0\.", r"\1.depthwise.conv."),
    (r"^(backbone\.blocks\.\d+)\.conv\.1\.", r"\1.depthwise.norm."),
    (r"^(backbone\.blocks\.\d+)\.conv\.4\.", r"\1.reduce.conv."),
    (r"^(backbone\.blocks\.\d+)\.conv\.5\.", r"\1.reduce.norm."),
    (r"\.(conv[1-4])\.0\.", r".\1.conv."),
    (r"\.(conv[1-4])\.1\.", r".\1.norm."),
    (r"\.hyper([1-3])\.hyper\.0\.", r".act\1.fc1."),
    (r"\.hyper([1-3])\.hyper\.2\.", r".act\1.fc2."),
    (r"^local_global\.", "backbone.closing."),
    (r"\.local_global\.", ".local_to_global."),
    (r"\.(closing|local_to_global)\.q\.", r".\1.query."),
    (r"\.(closing|local_to_global)\.alpha\.0\.", r".\1.gate."),
    (r"\.(closing|local_to_global)\.proj\.", r".\1.project."),
    (r"\.(closing|local_to_global)\.layer_norm\.", r".\1.norm."),
    (r"\.global_block\.q\.", ".token_layer.query."),
    (r"\.global_block\.channel_mlp\.", ".token_layer.project."),
    (r"\.global_block\.layer_norm\.", ".token_layer.norm1."),
    (r"\.global_block\.ffn\.0\.", ".token_layer.fc1."),
    (r"\.global_block\.ffn\.2\.", ".token_layer.fc2."),
    (r"\.global_block\.ffn_norm\.", ".token_layer.norm2."),
    (r"\.global_local\.k\.", ".global_to_local.key."),
    (r"\.global_local\.proj\.", ".global_to_local.value."),
    (r"^classifier\.conv\.1\.", "head.expand.conv."),
    (r"^classifier\.conv\.2\.", "head.expand.norm."),
    (r"^classifier\.fc\.0\.", "head.hidden."),
    (r"^classifier\.fc\.1\.", "head.norm."),
    (r"^classifier\.classifier\.1\.", "head.fc."),
)

# Training-only parts of later releases of ml-cvnets.
_CVNETS_IGNORED = (r"^seg_head\.aux_head\.", r"^(encoder\.)?neural_augmentor\.")

LAYOUTS: Mapping[str, Layout] = MappingProxyType(
    {
        layout.name: layout
        for layout in (
            Layout(name="native", summary="our own names", rules=()),
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
            Layout(name="emo", summary="zhangzjn/EMO classifiers, `net.pth`", rules=_EMO_RULES),
            Layout(
                name="emo_mmdetection",
                summary="EMO's fork of mmdetection: SSDLite",
                rules=_EMO_MMDETECTION_RULES,
            ),
            Layout(
                name="emo_mmsegmentation",
                summary="EMO's fork of mmsegmentation: DeepLabv3",
                rules=_EMO_MMSEGMENTATION_RULES,
                ignored=(r"^auxiliary_head\.",),  # training only
            ),
            Layout(
                name="swiftformer",
                summary="Amshaker/SwiftFormer classifiers, the files linked since 26 July 2023",
                rules=_SWIFTFORMER_RULES,
                attention="l2",
            ),
            Layout(
                name="swiftformer_first",
                summary="Amshaker/SwiftFormer classifiers, the files of March to July 2023: another form of attention",
                rules=_SWIFTFORMER_RULES,
                attention="ones",
            ),
            Layout(
                name="swiftformer_timm",
                summary="timm's SwiftFormer classifiers (crop 0.95)",
                rules=_SWIFTFORMER_TIMM_RULES,
                # 224 / 0.95, rounded down as timm does
                preprocess=Preprocess(mode="crop", shorter_side_px=235, interpolation="bicubic", crop_offset="round"),
                attention="l2",
            ),
            Layout(
                name="swiftformer_transformers",
                summary="Hugging Face transformers: SwiftFormer classifiers, made from the first files",
                rules=_SWIFTFORMER_TRANSFORMERS_RULES,
                attention="ones",
            ),
            Layout(name="mobileformer", summary="AAboys/MobileFormer classifiers", rules=_MOBILEFORMER_RULES),
        )
    }
)


def get(name: str) -> Layout:
    """The layout called `name`. Raises `UnknownLayout`."""
    if name not in LAYOUTS:
        raise UnknownLayout(f"no key layout is called {name!r}; there are {', '.join(LAYOUTS)}")
    return LAYOUTS[name]


def rename(key: str, layout: Layout) -> str | None:
    """Our name for a checkpoint's key, or None if the layout ignores it."""
    if any(re.search(pattern, key) for pattern in layout.ignored):
        return None
    for pattern, replacement in layout.rules:
        key = re.sub(pattern, replacement, key)
    return key


def to_native(state: Mapping[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """Rename all entries and join those that come in parts. Raises `ValueError` where two keys meet or a part lacks."""
    renamed: dict[str, Tensor] = {}
    parts: dict[str, dict[int, Tensor]] = {}
    for key, value in state.items():
        name = rename(key, layout)
        if name is None:
            continue
        whole, mark, index = name.partition("#")
        if mark:
            parts.setdefault(whole, {})[int(index)] = value
        elif name in renamed:
            raise ValueError(f"two keys of the checkpoint, one of them {key!r}, both mean {name!r}")
        else:
            renamed[name] = value
    for whole, pieces in parts.items():
        if whole in renamed or sorted(pieces) != [0, 1, 2]:  # query, key, value: the only split there is
            raise ValueError(f"{whole!r} needs parts 0, 1 and 2 and nothing else; found {sorted(pieces)}")
        renamed[whole] = torch.cat([pieces[i] for i in sorted(pieces)], dim=0)
    return renamed
