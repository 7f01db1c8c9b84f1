"""SSDLite: both forms of the head, and its post-processing as a module of an archive."""

import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from model_store.networks.heads.anchors import anchors_per_level, cvnets_levels, make_anchors, map_sizes, mmdet_levels
from model_store.networks.heads.detections import Detections, cvnets_detections, mmdet_detections
from model_store.networks.heads.ssdlite import SSDLite, cvnets_ssdlite, mmdet_ssdlite

# TorchScript is what TorchServe loads; torch announces its successor on every call.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")

FORMS = [(cvnets_ssdlite, cvnets_detections), (mmdet_ssdlite, mmdet_detections)]


def features(pictures: int, height: int, width: int) -> list[Tensor]:
    """Maps at strides 4 to 32 with 8 channels; heads use the last two."""
    return [torch.randn(pictures, 8, height // stride, width // stride) for stride in (4, 8, 16, 32)]


def reloaded(module: nn.Module) -> Any:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(module), buffer)
    buffer.seek(0)
    return torch.jit.load(buffer)


class Detector(nn.Module):
    """A head and its post-processing as an archive holds them."""

    def __init__(self, head: SSDLite, detections: Detections) -> None:
        super().__init__()
        self.head = head
        self.detections = detections

    def forward(self, features: list[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        class_logits, box_deltas = self.head(features)
        return self.detections(class_logits, box_deltas)


@pytest.mark.parametrize(
    ("c4", "c5", "parameters"),
    # specs/heads.md 3.3: EMO-1M, EMO-5M, SwiftFormer XS, Mobile-Former 26M
    [(80, 168, 1_120_148), (160, 288, 1_257_268), (112, 220, 1_178_148), (64, 96, 1_054_900)],
)
def test_mmdet_parameter_count(c4: int, c5: int, parameters: int) -> None:
    head = mmdet_ssdlite(channels=(8, 8, c4, c5))
    assert sum(parameter.numel() for parameter in head.parameters()) == parameters


@pytest.mark.parametrize(("c4", "c5", "projections"), [(64, 80, [0, 1]), (512, 256, [])])
def test_cvnets_projects_only_where_widths_differ(c4: int, c5: int, projections: list[int]) -> None:
    names = cvnets_ssdlite(channels=(8, 8, c4, c5)).state_dict()
    assert [level for level in range(6) if f"predictors.{level}.project.conv.weight" in names] == projections
    assert not any("-" in name for name in names)


@pytest.mark.parametrize(("build_head", "build_detections"), FORMS)
@pytest.mark.parametrize(("height", "width"), [(320, 320), (64, 96)])
def test_head_rows_match_the_anchors(build_head: Any, build_detections: Any, height: int, width: int) -> None:
    head = build_head(channels=(8, 8, 8, 8), classes=3).eval()
    detections = build_detections(height=height, width=width)
    class_logits, box_deltas = head(features(2, height, width))
    anchors = sum(detections.level_sizes)
    assert class_logits.shape == (2, anchors, 4)
    assert box_deltas.shape == (2, anchors, 4)


def test_joint_predictor_reads_boxes_before_scores_anchor_by_anchor() -> None:
    head = cvnets_ssdlite(channels=(8, 8, 8, 8), classes=2).eval()
    predictor: Any = head.predictors[5]
    nn.init.zeros_(predictor.pointwise.weight)
    predictor.pointwise.bias.data = torch.arange(4 * (4 + 3), dtype=torch.float32)
    class_logits, box_deltas = predictor(torch.zeros(1, 64, 1, 1))
    assert box_deltas[0].tolist() == [[7.0 * row + number for number in range(4)] for row in range(4)]
    assert class_logits[0].tolist() == [[7.0 * row + 4 + number for number in range(3)] for row in range(4)]


@pytest.mark.parametrize(("build_head", "build_detections"), FORMS)
def test_scripted_and_reloaded_equal_eager(build_head: Any, build_detections: Any) -> None:
    torch.manual_seed(1)
    detector = Detector(build_head(channels=(8, 8, 8, 8), classes=5), build_detections(height=96, width=96)).eval()
    again = reloaded(detector)
    for pictures in (1, 3, 2):
        inputs = features(pictures, 96, 96)
        with torch.inference_mode():
            for expected, found in zip(detector(inputs), again(inputs), strict=True):
                torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("build", [cvnets_detections, mmdet_detections])
def test_picture_alone_equals_picture_in_a_padded_batch(build: Any) -> None:
    detections = build(height=96, width=96)
    generator = torch.Generator().manual_seed(2)
    anchors = sum(detections.level_sizes)
    class_logits = torch.randn(5, anchors, 6, generator=generator) * 3
    box_deltas = torch.randn(5, anchors, 4, generator=generator)
    class_logits[3:], box_deltas[3:] = 0.0, 0.0  # padding
    whole = detections(class_logits, box_deltas)
    for picture in range(3):
        alone = detections(class_logits[picture : picture + 1], box_deltas[picture : picture + 1])
        for in_batch, single in zip(whole, alone, strict=True):
            assert torch.equal(in_batch[picture], single[0])


@pytest.mark.parametrize("build", [cvnets_detections, mmdet_detections])
def test_leaving_out_background_anchors_changes_nothing(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    detections = build(height=96, width=96)
    generator = torch.Generator().manual_seed(3)
    anchors = sum(detections.level_sizes)
    class_logits = torch.randn(2, anchors, 6, generator=generator) * 2
    class_logits[:, :, 0 if detections.background_first else 5] += 7.0
    box_deltas = torch.randn(2, anchors, 4, generator=generator)
    quick = detections(class_logits, box_deltas)
    assert int(quick[3].min()) > 0
    assert len(detections._plausible(class_logits[0])) < anchors / 2
    every = torch.arange(anchors)
    monkeypatch.setattr(detections, "_plausible", lambda _logits: every)
    for expected, found in zip(detections(class_logits, box_deltas), quick, strict=True):
        assert torch.equal(expected, found)


@pytest.mark.parametrize("build", [cvnets_detections, mmdet_detections])
def test_empty_and_undefined_outputs_give_no_detection(build: Any) -> None:
    detections = build(height=96, width=96)
    anchors = sum(detections.level_sizes)
    class_logits = torch.zeros(2, anchors, 6)
    class_logits[0, :, 0 if detections.background_first else 5] = 40.0
    class_logits[1] = torch.nan
    boxes, scores, labels, counts = detections(class_logits, torch.zeros(2, anchors, 4))
    assert counts.tolist() == [0, 0]
    assert not boxes.any()
    assert not scores.any()
    assert not labels.any()


@pytest.mark.parametrize(
    ("levels", "pooled_last", "build"),
    [(cvnets_levels(), True, cvnets_detections), (mmdet_levels(), False, mmdet_detections)],
)
def test_anchors_survive_a_cast_of_the_module(levels: Any, pooled_last: bool, build: Any) -> None:
    maps = map_sizes(height=320, width=320, pooled_last=pooled_last)
    expected = make_anchors(levels=levels, maps=maps, height=320, width=320, clamp=pooled_last)
    again = reloaded(build(height=320, width=320)).to(torch.bfloat16)
    assert torch.equal(again.anchor_steps.float() * 2.0**-40, expected)
    logits = torch.randn(1, len(expected), 81).to(torch.bfloat16)
    boxes, scores, _, _ = again(logits, torch.zeros(1, len(expected), 4, dtype=torch.bfloat16))
    assert boxes.dtype == torch.float32
    assert scores.dtype == torch.float32


def test_best_per_level_is_counted_over_all_classes_of_a_level() -> None:
    anchors = torch.tensor([[0.1, 0.1, 0.1, 0.1], [0.4, 0.4, 0.1, 0.1], [0.8, 0.8, 0.1, 0.1]])
    options: dict[str, Any] = {
        "background_first": False,
        "score_threshold": 0.02,
        "best_per_class": 0,
        "iou_threshold": 0.45,
        "max_detections": 5,
        "log_size_bound": 1.0,
        "clip_before": True,
        "clip_after": False,
    }
    class_logits = torch.tensor([[[4.0, 3.0, 0.0], [3.5, 0.0, 3.0], [0.0, 2.0, 2.0]]])
    limited = Detections(anchors=anchors, level_sizes=[2, 1], best_per_level=1, **options)
    counts = limited(class_logits, torch.zeros(1, 3, 4))[3]
    assert counts.tolist() == [2]  # the best of each level
    free = Detections(anchors=anchors, level_sizes=[2, 1], best_per_level=0, **options)
    assert free(class_logits, torch.zeros(1, 3, 4))[3].tolist() == [5]
    with pytest.raises(ValueError, match="levels of 4 anchors"):
        Detections(anchors=anchors, level_sizes=[3, 1], best_per_level=0, **options)


def test_anchor_counts() -> None:
    for levels, pooled_last, anchors in ((cvnets_levels(), True, 3232), (mmdet_levels(), False, 3234)):
        maps = map_sizes(height=320, width=320, pooled_last=pooled_last)
        assert sum(anchors_per_level(levels=levels, maps=maps)) == anchors
