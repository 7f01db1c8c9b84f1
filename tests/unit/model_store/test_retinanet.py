"""RetinaNet: its anchors, its head, and its post-processing against the plain definition."""

import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from model_store.build.assemble import PaddedNetwork
from model_store.networks.boxes import MAX_LOG_SIZE, corners, decode, greedy_nms
from model_store.networks.heads.retinanet import RetinaNet
from model_store.networks.heads.retinanet_detections import (
    ANCHORS_PER_CELL,
    SIDES,
    STRIDES_PX,
    RetinaNetDetections,
    corner_anchors,
    map_sizes,
    retinanet_anchors,
    retinanet_detections,
)

# TorchScript is what TorchServe loads; torch announces its successor on every call.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")

CHANNELS = (4, 5, 6, 7)


class Strides(nn.Module):
    """A backbone of slices, so that its maps have the sizes of a real one."""

    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.ModuleList([nn.Conv2d(3, channels, 1) for channels in CHANNELS])

    def forward(self, x: Tensor) -> list[Tensor]:
        features: list[Tensor] = []
        step = 4
        for layer in self.maps:
            features.append(layer(x[:, :, ::step, ::step]))
            step *= 2
        return features


def reloaded(module: nn.Module) -> Any:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(module), buffer)
    buffer.seek(0)
    return torch.jit.load(buffer)


def drawn(anchors: int, classes: int, *, pictures: int = 2, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits with many equal values, and deltas."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(pictures, anchors, classes, generator=generator) * 2 - 1
    return (logits * 4).round() / 4, torch.randn(pictures, anchors, 4, generator=generator) * 0.5


def test_anchors_cover_the_padded_picture() -> None:
    assert map_sizes(height=800, width=1067) == [(100, 136), (50, 68), (25, 34), (13, 17), (7, 9)]
    assert map_sizes(height=33, width=32) == [(8, 4), (4, 2), (2, 1), (1, 1), (1, 1)]
    anchors, sizes = retinanet_anchors(height=250, width=314)
    assert anchors.shape == (15_354, 4)
    assert sizes == [11_520, 2_880, 720, 180, 54]


def test_anchors_stand_on_the_corners_of_cells_and_the_side_changes_fastest() -> None:
    rows = corner_anchors(strides_px=STRIDES_PX, sides=SIDES, maps=[(1, 2), (1, 1), (1, 1), (1, 1), (1, 1)])
    assert rows[:ANCHORS_PER_CELL, :2].abs().max() == 0
    assert rows[ANCHORS_PER_CELL, :2].tolist() == [8.0, 0.0]
    sides = [32.0, 32 * 2 ** (1 / 3), 32 * 2 ** (2 / 3)]
    torch.testing.assert_close(rows[3:6, 2], torch.tensor(sides, dtype=torch.float64))  # ratio 1
    torch.testing.assert_close(rows[0, 2:], torch.tensor([32 * 2**0.5, 32 / 2**0.5], dtype=torch.float64))  # wide
    torch.testing.assert_close(rows[6, 2:], torch.tensor([32 / 2**0.5, 32 * 2**0.5], dtype=torch.float64))  # tall


@pytest.mark.parametrize(("height", "width"), [(64, 96), (50, 70), (33, 97), (32, 32)])
def test_the_network_pads_and_predicts_for_every_anchor(height: int, width: int) -> None:
    torch.manual_seed(0)
    head = RetinaNet(channels=CHANNELS, classes=3)
    network = PaddedNetwork(backbone=Strides(), head=head, multiple=32).eval()
    x = torch.randn(2, 3, height, width)
    with torch.inference_mode():
        logits, deltas = network(x)
        rows, columns = -height % 32, -width % 32
        padded = network(nn.functional.pad(x, [0, columns, 0, rows]))
        scripted = reloaded(network)(x)
    anchors, _ = retinanet_anchors(height=height, width=width)
    assert logits.shape == (2, len(anchors), 3)
    assert deltas.shape == (2, len(anchors), 4)
    for found, expected in zip(scripted, padded, strict=True):
        torch.testing.assert_close(found, expected)
    torch.testing.assert_close(logits, padded[0], atol=0, rtol=0)


def test_no_activation_stands_between_the_extra_maps() -> None:
    torch.manual_seed(1)
    head = RetinaNet(channels=CHANNELS, classes=3).eval()
    features = Strides()(torch.randn(1, 3, 64, 64))
    with torch.inference_mode():
        maps = head.maps(features)
        expected = nn.functional.conv2d(
            maps[3], head.extra_levels[1].weight, head.extra_levels[1].bias, stride=2, padding=1
        )
    assert float(maps[3].min()) < 0
    torch.testing.assert_close(maps[4], expected)


def plain(module: RetinaNetDetections, logits: Tensor, deltas: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The detections of one picture by definition, with loops: logits [A, C], deltas [A, 4]."""
    anchors = module.anchor_steps.double() * 2.0**-40
    boxes = decode(
        deltas,
        anchors.float(),
        log_size_low=-MAX_LOG_SIZE,
        log_size_high=MAX_LOG_SIZE,
        centre_scale=1.0,
        size_scale=1.0,
    ).clamp(0, 1)
    scores = logits.sigmoid()
    pairs: list[Tensor] = []
    start = 0
    for size in module.level_sizes:
        flat = scores[start : start + size].flatten()
        order = torch.sort(flat, descending=True, stable=True).indices[: module.best_per_level]
        pairs.append(order[flat[order] > module.score_threshold] + start * scores.shape[1])
        start += size
    chosen = torch.cat(pairs)
    chosen_anchors, labels = chosen // scores.shape[1], chosen % scores.shape[1]
    # As the module does: of equal scores the lower class, then the earlier anchor.
    order = torch.argsort(labels * len(scores) + chosen_anchors)
    chosen_anchors, labels = chosen_anchors[order], labels[order]
    found_scores = scores[chosen_anchors, labels]
    kept = greedy_nms(boxes[chosen_anchors], found_scores, labels, iou_threshold=0.5)[: module.max_detections]
    return boxes[chosen_anchors[kept]], found_scores[kept], labels[kept]


@pytest.mark.parametrize("best_per_level", [1, 7, 40, 1000])
def test_detections_are_those_of_the_definition(best_per_level: int) -> None:
    anchors, sizes = retinanet_anchors(height=60, width=90)
    module = RetinaNetDetections(
        anchors=anchors,
        level_sizes=sizes,
        score_threshold=0.05,
        best_per_level=best_per_level,
        iou_threshold=0.5,
        max_detections=100,
    )
    logits, deltas = drawn(len(anchors), 5)
    boxes, scores, labels, counts = module(logits, deltas)
    for picture in range(2):
        expected = plain(module, logits[picture], deltas[picture])
        count = int(counts[picture])
        assert count == len(expected[1]) > 0
        for found, answer in zip((boxes, scores, labels.long()), expected, strict=True):
            assert torch.equal(found[picture, :count], answer)
            assert not bool(found[picture, count:].any())


def test_boxes_end_at_the_picture_and_not_at_the_padding() -> None:
    module = retinanet_detections(height=40, width=40)  # padded to 64
    anchors = sum(module.level_sizes)
    logits = torch.full((1, anchors, 1), -9.0)
    logits[0, 100:140] = 2.0
    boxes, _, _, counts = module(logits, torch.zeros(1, anchors, 4))
    assert int(counts) > 0
    assert float(boxes.min()) >= 0
    assert float(boxes.max()) == 1.0


def test_a_row_of_a_batch_is_the_picture_alone_in_the_scripted_module() -> None:
    module = reloaded(retinanet_detections(height=64, width=64))
    logits, deltas = drawn(sum(module.level_sizes), 4, pictures=3)
    batch = module(logits, deltas)
    for picture in range(3):
        alone = module(logits[picture : picture + 1], deltas[picture : picture + 1])
        assert all(torch.equal(part[picture], one[0]) for part, one in zip(batch, alone, strict=True))


def test_anchors_survive_a_cast_of_the_module() -> None:
    module = retinanet_detections(height=64, width=64)
    logits, deltas = drawn(sum(module.level_sizes), 4)
    expected = module(logits, deltas)
    found = module.to(torch.bfloat16)(logits, deltas)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_the_options_choose() -> None:
    """Of two boxes of one place and one of a low score, the options choose."""

    def count(**options: Any) -> int:
        module = retinanet_detections(height=64, width=64, **options)
        logits = torch.full((1, sum(module.level_sizes), 1), -20.0)
        for anchor, logit in ((13, 3.0), (14, 2.0), (500, -2.5)):  # two squares of one cell
            logits[0, anchor] = logit
        return int(module(logits, torch.zeros(1, logits.shape[1], 4))[3])

    assert count() == 2
    assert count(iou_threshold=0.99) == 3
    assert count(score_threshold=0.5, iou_threshold=0.99) == 2
    assert count(iou_threshold=0.99, max_boxes=1) == 1


def test_what_cannot_be_is_refused() -> None:
    anchors, sizes = retinanet_anchors(height=64, width=64)
    options: dict[str, Any] = {"best_per_level": 9, "iou_threshold": 0.5, "max_detections": 9}
    with pytest.raises(ValueError, match="anchors in all"):
        RetinaNetDetections(anchors=anchors[1:], level_sizes=sizes, score_threshold=0.1, **options)
    with pytest.raises(ValueError, match="score_threshold must be"):
        RetinaNetDetections(anchors=anchors, level_sizes=sizes, score_threshold=1.0, **options)


def test_corners_of_an_anchor_in_pixels() -> None:
    anchors, _ = retinanet_anchors(height=64, width=96)
    first = corners(anchors[3:4]) * torch.tensor([96.0, 64.0, 96.0, 64.0])
    torch.testing.assert_close(first, torch.tensor([[-16.0, -16.0, 16.0, 16.0]]))
