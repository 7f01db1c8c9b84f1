"""A head or a backbone is added in one file: this one adds both, and the build path takes them without any change."""

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from handlers.contract.card import InputSize
from model_store import zoo
from model_store.build import agreement, assemble, export, parity, torchscript
from model_store.networks.backbones.base import Backbone, Channels, OfficialCode, RegisteredBackbone
from model_store.networks.backbones.registry import BACKBONES
from model_store.networks.heads.base import RegisteredHead
from model_store.networks.heads.registry import HEADS, head_of
from model_store.networks.pixels import Pixels
from model_store.networks.tasks.segment import SEGMENT, ServedSegmenter

# `agreement.measure` prepares the module as a worker does, which calls functions that torch deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")


@dataclass(frozen=True, slots=True)
class CellHead(zoo.HeadSpec):
    """One convolution that names the class of each cell."""

    name: ClassVar[str] = "cells"
    kernel_size: int


class Cells(nn.Module):
    def __init__(self, *, in_channels: int, classes: int, kernel_size: int) -> None:
        super().__init__()
        self.classifier = nn.Conv2d(in_channels, classes, kernel_size, padding=kernel_size // 2)

    def forward(self, features: list[Tensor]) -> Tensor:
        logits: Tensor = self.classifier(features[3])
        return logits


def _build(spec: CellHead, entry: zoo.ModelSpec, channels: Channels) -> nn.Module:
    return Cells(in_channels=channels[3], classes=entry.classes, kernel_size=spec.kernel_size)


def _serve(_spec: CellHead, _entry: zoo.ModelSpec, pixels: Pixels, network: nn.Module) -> nn.Module:
    return ServedSegmenter(pixels=pixels, network=network, align_corners=False)


HEAD = RegisteredHead(spec=CellHead, contract=SEGMENT, build=_build, serve=_serve)


@dataclass(frozen=True, slots=True, kw_only=True)
class StridesBackbone(zoo.BackboneSpec):
    """Five strided convolutions."""

    family: ClassVar[str] = "strides"


class Strides(Backbone):
    def __init__(self, *, width: int) -> None:
        super().__init__()
        self.channels = (width, width, width, width)
        self.stem = nn.Conv2d(3, width, 3, stride=2, padding=1)
        self.stages = nn.ModuleList([nn.Conv2d(width, width, 3, stride=2, padding=1) for _ in range(4)])

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.stem(x)
        features: list[Tensor] = []
        for stage in self.stages:
            x = stage(x).relu()
            features.append(x)
        return features


BACKBONE = RegisteredBackbone(
    spec=StridesBackbone,
    build=lambda spec, _dense: Strides(width=int(spec.variant)),
    official=OfficialCode(layout="native", taps={}),
)


@pytest.fixture
def entry(monkeypatch: pytest.MonkeyPatch) -> zoo.ModelSpec:
    """A model of both, registered for the time of a test."""
    monkeypatch.setitem(HEADS, CellHead, HEAD)
    monkeypatch.setitem(BACKBONES, StridesBackbone, BACKBONE)
    return replace(
        zoo.get("demo_segment"),
        name="strides_8_segment",
        backbone=StridesBackbone(variant="8"),
        head=CellHead(kernel_size=3),
        input=InputSize(height=64, width=96),
    )


def test_a_new_head_and_backbone_are_built_scripted_and_run(entry: zoo.ModelSpec) -> None:
    torch.manual_seed(0)
    network = assemble.build(entry)
    eager = assemble.served(entry, network)
    scripted = torchscript.script(eager)
    module_bytes = torchscript.save(scripted)
    pixels = parity.sample_pixels(entry, 2)
    found = parity.measure(eager, scripted, torchscript.load(module_bytes), pixels)
    assert found.reloaded_max_abs_diff == 0
    outputs = export.describe_outputs(entry, eager, pixels)
    assert [(output.name, output.dtype, output.shape) for output in outputs] == [
        ("classes", "uint8", (64, 96)),
        ("confidence", "uint8", (2, 3)),
    ]
    measured = agreement.measure(head_of(entry).contract, lambda: torchscript.load(module_bytes), size=entry.input)
    assert (measured.metric, measured.pictures) == ("class_map", 2)
    assert assemble.count_macs(network, 64, 96) > 0


def test_a_head_or_backbone_that_is_not_in_its_list_is_named(entry: zoo.ModelSpec) -> None:
    del HEADS[CellHead]
    with pytest.raises(LookupError, match=r"CellHead.*heads/registry"):
        assemble.build(entry)
    del BACKBONES[StridesBackbone]
    with pytest.raises(LookupError, match=r"StridesBackbone.*backbones/registry"):
        assemble.build(entry)


def test_every_entry_of_the_zoo_has_a_registered_head_and_backbone() -> None:
    for entry in zoo.ENTRIES:
        assert type(entry.backbone) in BACKBONES
        assert head_of(entry).contract.task is entry.task
