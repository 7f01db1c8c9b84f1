"""The models that can be built: look one up by name, or list them. Importing this never imports torch."""

import difflib
from collections.abc import Iterator, Mapping
from types import MappingProxyType

from handlers.contract.card import Task
from model_store.zoo.backbones import (
    BackboneSpec,
    EMOBackbone,
    MobileFormerBackbone,
    MobileViTBackbone,
    SwiftFormerBackbone,
)
from model_store.zoo.entry import COMMITTED, ModelSpec, UnknownModel
from model_store.zoo.heads import (
    ClassifierHead,
    DeepLabV3Head,
    HeadSpec,
    PSPNetHead,
    RetinaNetHead,
    SemanticFPNHead,
    SSDLiteHead,
)
from model_store.zoo.table import ENTRIES

__all__ = [
    "COMMITTED",
    "ENTRIES",
    "BackboneSpec",
    "ClassifierHead",
    "DeepLabV3Head",
    "EMOBackbone",
    "HeadSpec",
    "MobileFormerBackbone",
    "MobileViTBackbone",
    "ModelSpec",
    "PSPNetHead",
    "RetinaNetHead",
    "SSDLiteHead",
    "SemanticFPNHead",
    "SwiftFormerBackbone",
    "UnknownModel",
    "entries",
    "get",
    "names",
]

_BY_NAME: Mapping[str, ModelSpec] = MappingProxyType({entry.name: entry for entry in ENTRIES})


def names() -> tuple[str, ...]:
    """Names of all entries, in the order of the list."""
    return tuple(_BY_NAME)


def entries(task: Task | None = None) -> Iterator[ModelSpec]:
    """All entries, or those of one task, in the order of the list."""
    return (entry for entry in ENTRIES if task is None or entry.task is task)


def get(name: str) -> ModelSpec:
    """The entry called `name`. Raises `UnknownModel`, which names the nearest ones."""
    if name not in _BY_NAME:
        raise UnknownModel(name, tuple(difflib.get_close_matches(name, _BY_NAME, n=3, cutoff=0.6)))
    return _BY_NAME[name]
