"""Mobile-Former classifiers: AAboys/MobileFormer."""

from model_store.weights.layouts.base import Layout, Rule

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

LAYOUTS = (Layout(name="mobileformer", summary="AAboys/MobileFormer classifiers", rules=_MOBILEFORMER_RULES),)
