"""Agreement of bfloat16 with float32: what counts as agreeing, and that the module is run as a worker runs it."""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from handlers.archive import ModuleSpec, TensorSpec
from handlers.contract.card import InputSize
from handlers.runtime import Runner, choose_execution
from handlers.torchscript import prepare
from model_store.build import agreement
from model_store.networks.tasks import classify, detect, segment

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
SIZE = InputSize(height=48, width=64)


class Tiny(nn.Module):
    """Five classes of a picture, from a convolution, a norm and a matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 5, stride=4)
        self.norm = nn.BatchNorm2d(8)
        self.out = nn.Linear(8, 5)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        x = pixels.permute(0, 3, 1, 2).to(self.conv.weight.dtype) / 255.0
        logits = self.out(self.norm(self.conv(x)).relu().mean(dim=[2, 3]))
        scores, labels = logits.float().softmax(1).sort(1, descending=True)
        return scores, labels.to(torch.int32)


@pytest.fixture
def load() -> Callable[[], torch.jit.ScriptModule]:
    """A module with random weights, anew on every call."""
    torch.manual_seed(3)
    module = Tiny().eval()
    module.norm.running_mean.normal_(0, 0.1)  # type: ignore[union-attr, operator]
    module.out.weight.data *= 4
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(module), buffer)
    return lambda: torch.jit.load(io.BytesIO(buffer.getvalue()))


def served(load: Callable[[], torch.jit.ScriptModule], dtype: torch.dtype, pixels: Any) -> dict[str, Any]:
    """What a worker answers."""
    outputs = (TensorSpec("scores", "float32", (5,)), TensorSpec("labels", "int32", (5,)))
    spec = ModuleSpec(SIZE.height, SIZE.width, 64, outputs, "")
    device = torch.device("cpu")
    execution = choose_execution(prepare(load(), device, dtype), spec, device, capture=True)
    answer = Runner(spec, execution, device=device, dtype=dtype).run(pixels)
    return {name: array.copy() for name, array in answer.items()}


def test_the_pictures_are_the_same_every_time_and_differ() -> None:
    first, again = agreement.pictures(SIZE, 3), agreement.pictures(SIZE, 3)
    assert (first.shape, first.dtype) == ((3, 48, 64, 3), np.uint8)
    assert np.array_equal(first, again)
    assert np.abs(first[0].astype(int) - first[1]).mean() > 5


def test_both_runs_are_those_of_a_worker(load: Callable[[], torch.jit.ScriptModule]) -> None:
    pixels = agreement.pictures(SIZE, 8)
    full, half = (served(load, dtype, pixels) for dtype in (torch.float32, torch.bfloat16))
    expected = classify.compare(full, half)
    found = agreement.measure(classify.CLASSIFY, load, size=SIZE)
    assert (found.metric, found.pictures) == ("top1", 8)
    # Processors add up in other orders, and round their way to bfloat16: near, and by far not 0.
    assert 1e-5 < found.score_max_abs_diff < 0.02
    assert found.score_max_abs_diff == pytest.approx(expected.score_max_abs_diff, rel=0.7)
    assert found == agreement.measure(classify.CLASSIFY, load, size=SIZE)


def test_best_classes() -> None:
    full = {"scores": np.array([[0.6, 0.3], [0.5, 0.4]], np.float32), "labels": np.array([[7, 2], [1, 9]], np.int32)}
    half = {"scores": np.array([[0.5, 0.4], [0.5, 0.3]], np.float32), "labels": np.array([[7, 3], [9, 1]], np.int32)}
    found = classify.compare(full, half)
    assert found.agreement == 0.5
    assert found.score_max_abs_diff == pytest.approx(0.2)  # of class 1 in the second picture


def detections(*rows: tuple[list[float], float, int]) -> dict[str, Any]:
    """One picture's answer: (box, score, label) each."""
    padded = [*rows, *[([0.0] * 4, 0.0, 0)] * (4 - len(rows))]
    boxes, scores, labels = zip(*padded, strict=True)
    return {
        "boxes": np.array([boxes], np.float32),
        "scores": np.array([scores], np.float32),
        "labels": np.array([labels], np.int32),
        "counts": np.array([len(rows)], np.int32),
    }


LEFT, RIGHT = [0.0, 0.0, 0.4, 1.0], [0.5, 0.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("half", "share", "difference"),
    [
        (detections((LEFT, 0.9, 1), (RIGHT, 0.3, 2)), 1.0, 0.0),
        (
            detections((RIGHT, 0.35, 2), ([0.0, 0.0, 0.3, 1.0], 0.8, 1)),
            1.0,
            0.1,
        ),  # order is free, an overlap of 3/4 does
        (detections((LEFT, 0.9, 1), (RIGHT, 0.3, 3)), 0.75, 0.0),  # another class
        (detections((LEFT, 0.9, 1), ([0.5, 0.0, 0.7, 1.0], 0.3, 2)), 0.75, 0.0),  # an overlap of 0.4
        (detections(), 0.0, 0.0),
    ],
)
def test_boxes(half: dict[str, Any], share: float, difference: float) -> None:
    found = detect.compare(detections((LEFT, 0.9, 1), (RIGHT, 0.3, 2)), half)
    assert found.agreement == pytest.approx(share)
    assert found.score_max_abs_diff == pytest.approx(difference, abs=1e-6)


def test_a_share_is_never_above_one_however_sums_are_rounded() -> None:
    scores = np.random.default_rng(3).random(100).astype(np.float32)
    corners = np.arange(100, dtype=np.float32)
    answers = {
        "boxes": np.stack([corners, corners, corners + 1, corners + 1], axis=1)[None],
        "scores": np.sort(scores)[::-1][None],
        "labels": np.ones((1, 100), np.int32),
        "counts": np.array([100], np.int32),
    }
    assert detect.compare(answers, answers).agreement == 1.0


def test_a_box_is_the_partner_of_one_other_only() -> None:
    found = detect.compare(detections((LEFT, 0.5, 1), (LEFT, 0.5, 1)), detections((LEFT, 0.5, 1)))
    assert found.agreement == pytest.approx(0.5)


def test_nothing_found_in_either_is_agreement() -> None:
    assert detect.compare(detections(), detections()).agreement == 1
    assert detect.compare(detections(), detections((LEFT, 0.9, 1))).agreement == 0


def test_class_maps() -> None:
    full = {"classes": np.zeros((2, 4, 4), np.uint8), "confidence": np.full((2, 2, 2), 200, np.uint8)}
    half = {"classes": full["classes"].copy(), "confidence": full["confidence"].copy()}
    half["classes"][0, 0, :2] = 5
    half["confidence"][1, 0, 0] = 251
    found = segment.compare(full, half)
    assert (found.metric, found.pictures, found.agreement) == ("class_map", 2, 1 - 2 / 32)
    assert found.score_max_abs_diff == pytest.approx(0.2)
