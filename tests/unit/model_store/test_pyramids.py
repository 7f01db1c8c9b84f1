"""PSPNet and Semantic FPN: against plain interpolation and pooling, for maps of even and odd sides; every backbone."""

import io
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model_store import zoo
from model_store.build import assemble
from model_store.networks.heads.fpn import FPN
from model_store.networks.heads.pspnet import PARTS, PSPNet
from model_store.networks.heads.semantic_fpn import SemanticFPN

# TorchScript is what TorchServe loads; torch announces its successor on every call.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")

CHANNELS = (4, 5, 6, 7)
SIZES = [(64, 96), (58, 75), (33, 32), (8, 8)]  # of the finest map
FAMILIES = ("mobilevit_xxs", "emo_1m", "swiftformer_xs", "mobileformer_26m")


def features(height: int, width: int, pictures: int = 2) -> list[Tensor]:
    """Maps of a backbone that rounds up, the finest with these sides."""
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(pictures, channels, math.ceil(height / 2**index), math.ceil(width / 2**index), generator=generator)
        for index, channels in enumerate(CHANNELS)
    ]


def reloaded(module: nn.Module) -> Any:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(module), buffer)
    buffer.seek(0)
    return torch.jit.load(buffer)


@pytest.mark.parametrize("levels", [3, 4])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_a_pyramid_adds_what_is_coarser(levels: int, height: int, width: int) -> None:
    torch.manual_seed(0)
    fpn = FPN(in_channels=tuple(reversed(CHANNELS))[:levels], width=8).eval()
    maps = features(height, width)
    with torch.inference_mode():
        found = fpn(maps)
        total: Tensor | None = None
        for index, (convolution, output) in enumerate(zip(fpn.laterals, fpn.outputs, strict=True)):
            lateral = convolution(maps[3 - index])
            above = 0 if total is None else F.interpolate(total, size=lateral.shape[2:], mode="nearest")
            total = lateral + above
            torch.testing.assert_close(found[index], output(total))
    assert len(found) == levels


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_semantic_fpn_is_the_sum_of_its_branches(height: int, width: int) -> None:
    torch.manual_seed(1)
    head = SemanticFPN(channels=CHANNELS, classes=5, width=8).eval()
    maps = features(height, width)
    with torch.inference_mode():
        expected = torch.zeros(())
        for index, level in enumerate(reversed(head.fpn(maps))):
            y = level
            for step in head.branches[index]:
                double = type(step).__name__ == "Double"
                y = F.interpolate(y, scale_factor=2, mode="bilinear", align_corners=False) if double else step(y)
            expected = expected + F.interpolate(y, size=[height, width], mode="bilinear", align_corners=False)
        expected = head.classifier(expected)
        found, scripted = head(maps), reloaded(head)(maps)
    assert found.shape == (2, 5, height, width)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(scripted, found, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("height", "width"), [(8, 11), (5, 7), (6, 6), (1, 3)])
def test_pspnet_averages_over_parts_that_may_overlap(height: int, width: int) -> None:
    torch.manual_seed(2)
    head = PSPNet(in_channels=7, classes=5, width=8).eval()
    x = torch.randn(2, 7, height, width)
    joined = [x]
    with torch.inference_mode():
        for index, parts in enumerate(PARTS):
            means = torch.stack(
                [torch.stack([_mean(x, parts, i, j) for j in range(parts)], -1) for i in range(parts)], -2
            )
            pooled = head.pools[index](means)
            joined.append(F.interpolate(pooled, size=[height, width], mode="bilinear", align_corners=False))
        expected = head.classifier(head.fuse(torch.cat(joined, dim=1)))
        maps = [torch.zeros(0)] * 3 + [x]  # strides 4, 8, 16 are not looked at
        found, scripted = head(maps), reloaded(head)(maps)
    assert found.shape == (2, 5, height, width)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(scripted, found, atol=1e-6, rtol=0)


def _mean(x: Tensor, parts: int, row: int, column: int) -> Tensor:
    def ends(side: int, index: int) -> slice:
        return slice(index * side // parts, math.ceil((index + 1) * side / parts))

    return x[:, :, ends(x.shape[2], row), ends(x.shape[3], column)].mean(dim=[2, 3])


@pytest.mark.parametrize("head", [zoo.RetinaNetHead(), zoo.PSPNetHead(), zoo.SemanticFPNHead()], ids=lambda h: h.name)
@pytest.mark.parametrize("backbone", FAMILIES)
def test_every_family_takes_every_head(backbone: str, head: zoo.HeadSpec) -> None:
    task = "detect" if head.name == "retinanet" else "segment"
    entry = replace(zoo.get(f"{backbone}_{task}"), head=head)
    entry = replace(entry, backbone=replace(entry.backbone, output_stride=32))
    with torch.device("meta"):
        raw = assemble.build(entry)(torch.zeros(2, 3, 160, 224))
    shapes = [tuple(part.shape) for part in (raw if isinstance(raw, tuple) else (raw,))]
    anchors = 9 * (20 * 28 + 10 * 14 + 5 * 7 + 3 * 4 + 2 * 2)
    expected = {
        "retinanet": [(2, anchors, entry.classes), (2, anchors, 4)],
        "pspnet": [(2, entry.classes, 5, 7)],
        "semantic_fpn": [(2, entry.classes, 40, 56)],
    }
    assert shapes == expected[head.name]
