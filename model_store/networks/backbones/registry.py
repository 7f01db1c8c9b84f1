"""The list of backbones: from an entry of the zoo to the code of its backbone."""

from typing import Any

from model_store.networks.backbones import emo, mobileformer, mobilevit, swiftformer
from model_store.networks.backbones.base import RegisteredBackbone
from model_store.zoo import BackboneSpec, ModelSpec

BACKBONES: dict[type[BackboneSpec], RegisteredBackbone[Any]] = {
    backbone.spec: backbone
    for backbone in (mobilevit.BACKBONE, emo.BACKBONE, swiftformer.BACKBONE, mobileformer.BACKBONE)
}


def backbone_of(entry: ModelSpec) -> RegisteredBackbone[Any]:
    """The registered backbone of an entry. Raises `LookupError` for a backbone that is not in the list."""
    if type(entry.backbone) not in BACKBONES:
        raise LookupError(
            f"this is a bug: {entry.name} has the backbone {type(entry.backbone).__name__}, which is not registered; "
            "add it to model_store/networks/backbones/registry.py"
        )
    return BACKBONES[type(entry.backbone)]


def families() -> tuple[str, ...]:
    """Names of all families, in the order of the list."""
    return tuple(spec.family for spec in BACKBONES)
