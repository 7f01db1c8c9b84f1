"""What a backbone registers: how it is built, and how the official code names its parts.

A backbone file defines one `RegisteredBackbone`; `model_store.networks.backbones.registry` lists all of them. Nothing
else in the build path depends on which backbone a model has.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from torch import nn

from model_store.zoo import BackboneSpec

Channels = tuple[int, int, int, int]  # of the maps at strides 4, 8, 16 and 32
Spec = TypeVar("Spec", bound=BackboneSpec)


class Backbone(nn.Module):
    """Base of all backbones: float [N, 3, H, W] to a list of feature maps at strides 4, 8, 16, 32.

    An output stride below 32 makes the last maps finer. `channels` are those of the four maps.
    """

    # Hidden from TorchScript: an annotation here would take the place of nn.Module's own, and change the archives.
    if TYPE_CHECKING:
        channels: Channels


@dataclass(frozen=True)
class OfficialCode:
    """The official code of a backbone with its classifier, as its golden files describe it.

    Attributes:
        layout: key layout of its checkpoints, see `model_store.weights.layouts`.
        taps: path of an official module to the path of ours in `assemble.Network`.
        token_first: taps stored as (token, picture, width), where ours are (picture, token, width).
        arguments: argument of the official constructor to the option of the backbone, where the names differ.
        notes: part of the note of a case to the options of the backbone that such a case changes.
        extra_macs: (backbone, height, width) to the multiply-adds that the official code spends beyond ours.

    """

    layout: str
    taps: Mapping[str, str]
    token_first: frozenset[str] = frozenset()
    arguments: Mapping[str, str] = field(default_factory=dict)
    notes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    extra_macs: Callable[[Any, int, int], int] = lambda _backbone, _height, _width: 0


@dataclass(frozen=True)
class RegisteredBackbone(Generic[Spec]):
    """One family of backbones.

    Attributes:
        spec: the class by which entries of the zoo state this backbone and its options.
        build: (options, dense) to the backbone with fresh weights. `dense` is that of the head,
            see `HeadSpec.dense`.
        official: how the official code names its parts.

    """

    spec: type[Spec]
    build: Callable[[Spec, bool], Backbone]
    official: OfficialCode
