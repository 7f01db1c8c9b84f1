"""Box arithmetic: against stored references, against plain definitions, and the shapes and edges of the contract."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from model_store.networks.boxes import (
    at_most_float32,
    box_iou,
    corners,
    decode,
    detections_by_class,
    encode,
    greedy_nms,
    keep_best,
    select_by_chunks,
    select_by_steps,
)

# TorchScript is what TorchServe loads; torch announces its successor on every call.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")

GOLDEN: dict[str, Any] = json.loads(
    (Path(__file__).parents[2] / "parity" / "golden" / "heads" / "boxops.json").read_text()
)
FORMS = [select_by_steps, select_by_chunks]


def floats(values: Any, width: int) -> Tensor:
    return torch.tensor(values, dtype=torch.float32).reshape(-1, width)


def reference(boxes: Tensor, scores: Tensor, threshold: float, most: int) -> list[tuple[int, int]]:
    """(anchor, class) of the best survivors of one picture, by loops over numpy scalars: [A, 4] and [C, A]."""
    corner = boxes.numpy()
    score = scores.numpy()
    limit = np.float32(threshold)
    order = sorted(
        (-score[c, a], c, a) for c in range(score.shape[0]) for a in range(score.shape[1]) if score[c, a] > 0
    )
    kept: list[tuple[int, int]] = []
    for _, label, anchor in order:
        removed = False
        for other, other_label in kept:
            if other_label != label:
                continue
            first, second = corner[other], corner[anchor]
            wide = max(np.float32(0), min(first[2], second[2]) - max(first[0], second[0]))
            tall = max(np.float32(0), min(first[3], second[3]) - max(first[1], second[1]))
            shared = wide * tall
            areas = (first[2] - first[0]) * (first[3] - first[1]) + (second[2] - second[0]) * (second[3] - second[1])
            with np.errstate(invalid="ignore"):
                removed = removed or bool(shared / (areas - shared) > limit)
        if not removed:
            kept.append((anchor, label))
    return kept[:most]


def check_against_reference(form: Any, boxes: Tensor, scores: Tensor, threshold: float, most: int) -> None:
    found, found_scores, labels, counts = form(boxes, scores, iou_threshold=threshold, max_detections=most)
    pictures = boxes.shape[0]
    assert (found.shape, found.dtype) == ((pictures, most, 4), torch.float32)
    assert (found_scores.shape, found_scores.dtype) == ((pictures, most), torch.float32)
    assert (labels.shape, labels.dtype) == ((pictures, most), torch.int32)
    assert (counts.shape, counts.dtype) == ((pictures,), torch.int32)
    for picture in range(pictures):
        expected = reference(boxes[picture], scores[picture], threshold, most)
        count = int(counts[picture])
        assert count == len(expected)
        assert labels[picture, :count].tolist() == [label for _, label in expected]
        for row, (anchor, label) in enumerate(expected):
            assert torch.equal(found[picture, row], boxes[picture, anchor])
            assert found_scores[picture, row] == scores[picture, label, anchor]
        for rest in (found[picture, count:], found_scores[picture, count:], labels[picture, count:]):
            assert not rest.any()


def test_iou_golden() -> None:
    case = GOLDEN["iou"]
    expected = floats(
        [[float("nan") if value is None else value for value in row] for row in case["iou"]], len(case["b"])
    )
    found = box_iou(floats(case["a"], 4), floats(case["b"], 4))
    torch.testing.assert_close(found, expected, atol=2e-7, rtol=2e-6, equal_nan=True)
    assert bool(expected.isnan().any())


@pytest.mark.parametrize("case", GOLDEN["nms"], ids=lambda case: case["name"])
def test_nms_golden(case: dict[str, Any]) -> None:
    boxes, scores = floats(case["boxes"], 4), floats(case["scores"], 1)[:, 0]
    same = torch.zeros(len(scores), dtype=torch.int64)
    for result in case["results"]:
        kept = greedy_nms(boxes, scores, same, iou_threshold=result["threshold"])
        assert kept.tolist() == result["keep"]
        # Only scores above 0 are candidates there, so lift them all by the same amount; equal ones stay equal.
        for form in FORMS if len(scores) else []:
            answer = form(
                boxes.unsqueeze(0),
                ranks(scores).reshape(1, 1, -1),
                iou_threshold=at_most_float32(result["threshold"]),
                max_detections=100,
            )
            assert torch.equal(answer[0][0, : int(answer[3])], boxes[result["keep"]])
            if "keep_float32_threshold" in result:
                answer = form(
                    boxes.unsqueeze(0),
                    ranks(scores).reshape(1, 1, -1),
                    iou_threshold=result["threshold"],
                    max_detections=100,
                )
                assert int(answer[3]) == len(result["keep_float32_threshold"])


def ranks(scores: Tensor) -> Tensor:
    """Positive stand-ins in the same order, equal where the scores are equal."""
    return torch.unique(scores, return_inverse=True)[1].to(torch.float32) + 1.0


@pytest.mark.parametrize("case", GOLDEN["per_class_nms"], ids=lambda case: case["name"])
def test_per_class_nms_golden(case: dict[str, Any]) -> None:
    boxes, scores = floats(case["boxes"], 4), floats(case["scores"], 1)[:, 0]
    labels = torch.tensor(case["labels"], dtype=torch.int64)
    for result in case["results"]:
        kept = greedy_nms(boxes, scores, labels, iou_threshold=result["threshold"])
        assert kept.tolist() == result["keep"]
        if not len(scores):
            continue
        table = torch.zeros(int(labels.max()) + 1, len(scores))
        table[labels, torch.arange(len(scores))] = ranks(scores)
        for form in FORMS:
            answer = form(
                boxes.unsqueeze(0),
                table.unsqueeze(0),
                iou_threshold=at_most_float32(result["threshold"]),
                max_detections=100,
            )
            count = int(answer[3])
            # Equal scores of different classes come class by class here, in input order there.
            found = sorted(zip(answer[2][0, :count].tolist(), answer[0][0, :count].tolist(), strict=True))
            assert found == sorted((int(labels[index]), boxes[index].tolist()) for index in result["keep"])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", GOLDEN["pipeline"], ids=lambda case: case["name"])
def test_pipeline_golden(case: dict[str, Any], form: Any) -> None:
    boxes = floats(case["boxes"], 4)
    scores = torch.tensor(case["scores"], dtype=torch.float32).t().contiguous()  # [A, C] -> [C, A]
    scores = torch.where(scores > case["score_threshold"], scores, 0.0)
    scores[case["background"]] = 0.0
    scores = keep_best(scores, case["topk_per_class"])
    found, found_scores, labels, counts = form(
        boxes.unsqueeze(0), scores.unsqueeze(0), iou_threshold=case["nms"], max_detections=case["cap"]
    )
    expected = case["result_index_and_class"]
    count = int(counts)
    assert count == len(expected)
    assert labels[0, :count].tolist() == [label for _, label in expected]
    assert torch.equal(found[0, :count], boxes[[anchor for anchor, _ in expected]])
    assert found_scores[0, :count].tolist() == [float(scores[label, anchor]) for anchor, label in expected]


@st.composite
def pictures(draw: st.DrawFn) -> tuple[Tensor, Tensor, float, int]:
    """Coarse grids of coordinates and scores, so that ties, equal boxes, no area and exact thresholds are common."""
    seed = draw(st.integers(0, 2**32 - 1))
    generator = torch.Generator().manual_seed(seed)
    count, classes, anchors = draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.integers(1, 24))
    grid, steps = draw(st.sampled_from([3, 8, 1000])), draw(st.sampled_from([1, 3, 1000]))
    low = torch.randint(0, grid, (count, anchors, 2), generator=generator)
    size = torch.randint(0, grid, (count, anchors, 2), generator=generator)
    boxes = torch.cat([low, low + size], dim=2).float() / grid
    scores = torch.randint(0, steps + 1, (count, classes, anchors), generator=generator).float() / steps
    threshold = draw(st.sampled_from([0.0, 0.25, 0.45, 0.5, 1.0]))
    return boxes, scores, at_most_float32(threshold), draw(st.integers(1, 30))


@pytest.mark.parametrize("form", FORMS)
@given(case=pictures())
@settings(max_examples=150)
def test_selection_is_greedy_suppression(form: Any, case: tuple[Tensor, Tensor, float, int]) -> None:
    check_against_reference(form, *case)


@pytest.mark.parametrize("form", FORMS)
def test_more_candidates_than_a_chunk(form: Any) -> None:
    generator = torch.Generator().manual_seed(5)
    low = torch.rand(2, 900, 2, generator=generator)
    boxes = torch.cat([low, low + 0.3], dim=2)
    scores = torch.rand(2, 3, 900, generator=generator)
    scores[1, :, 30:] = 0.0  # one picture ends long before the other
    check_against_reference(form, boxes, scores, 0.5, 120)


@pytest.mark.parametrize("steps", [1, 7, 10**6])
def test_both_forms_agree_on_many_candidates(steps: int) -> None:
    # Nearly the same boxes everywhere, so that a few of thousands survive: every chunk and wave is looked at.
    generator = torch.Generator().manual_seed(6)
    low = torch.rand(1, 1500, 2, generator=generator) * 0.02
    boxes = torch.cat([low, low + 1.0], dim=2)
    scores = torch.randint(1, steps + 1, (1, 4, 1500), generator=generator).float()
    answers = [form(boxes, scores, iou_threshold=0.9, max_detections=50) for form in FORMS]
    assert 4 <= int(answers[0][3]) < 50
    for first, second in zip(*answers, strict=True):
        assert torch.equal(first, second)


def test_a_long_chain_is_settled_link_by_link() -> None:
    # Each box overlaps only its neighbours, so every second one stays.
    start = torch.arange(301) * 0.5
    boxes = torch.stack([start, torch.zeros(301), start + 1, torch.ones(301)], dim=1).unsqueeze(0)
    scores = torch.linspace(0.9, 0.1, 301).reshape(1, 1, 301)
    for form in FORMS:
        found, _, _, counts = form(boxes, scores, iou_threshold=0.3, max_detections=200)
        assert int(counts) == 151
        assert torch.equal(found[0, :151], boxes[0, ::2])


@pytest.mark.parametrize("form", FORMS)
def test_rows_do_not_depend_on_the_batch(form: Any) -> None:
    generator = torch.Generator().manual_seed(7)
    low = torch.rand(4, 60, 2, generator=generator)
    boxes = torch.cat([low, low + 0.4], dim=2)
    scores = torch.rand(4, 5, 60, generator=generator)
    scores[2] = 0.0
    whole = form(boxes, scores, iou_threshold=0.5, max_detections=40)
    padded = form(
        torch.cat([boxes, torch.zeros(3, 60, 4)]),
        torch.cat([scores, torch.zeros(3, 5, 60)]),
        iou_threshold=0.5,
        max_detections=40,
    )
    for picture in range(4):
        alone = form(boxes[picture : picture + 1], scores[picture : picture + 1], iou_threshold=0.5, max_detections=40)
        for in_batch, in_padded, single in zip(whole, padded, alone, strict=True):
            assert torch.equal(in_batch[picture], single[0])
            assert torch.equal(in_padded[picture], single[0])
    assert whole[3].tolist()[2] == 0
    assert padded[3].tolist()[4:] == [0, 0, 0]


@pytest.mark.parametrize("form", FORMS)
def test_overflowed_boxes_remove_nothing(form: Any) -> None:
    boxes = torch.tensor([[[-torch.inf, -torch.inf, torch.inf, torch.inf]] * 2 + [[0.0, 0.0, 1.0, 1.0]] * 2])
    scores = torch.tensor([[[0.9, 0.8, 0.7, 0.6]]])
    answer = form(boxes, scores, iou_threshold=0.5, max_detections=5)
    assert answer[1][0, :3].tolist() == torch.tensor([0.9, 0.8, 0.7]).tolist()
    assert int(answer[3]) == 3


def test_selection_never_changes_its_input() -> None:
    boxes, scores = torch.rand(1, 9, 4), torch.rand(1, 2, 9)
    before = scores.clone()
    for form in FORMS:
        form(boxes, scores, iou_threshold=0.1, max_detections=9)
    assert torch.equal(scores, before)


@given(st.lists(st.sampled_from([0.0, 0.1, 0.2, 0.3]), min_size=1, max_size=12), st.integers(1, 13))
def test_keep_best_keeps_the_earlier_of_equals(values: list[float], count: int) -> None:
    order = sorted(range(len(values)), key=lambda index: (-values[index], index))[:count]
    expected = torch.tensor([value if index in order else 0.0 for index, value in enumerate(values)])
    assert torch.equal(keep_best(torch.tensor([values, [0.0] * len(values)]), count)[0], expected)


def test_thresholds_compare_as_double() -> None:
    eleven_twentieths = torch.tensor(11.0) / torch.tensor(20.0)
    assert not bool(eleven_twentieths > 0.55)  # torch rounds 0.55 up to the same float32
    assert bool(eleven_twentieths > at_most_float32(0.55))
    for value in (0.0, 0.5, 1.0):
        assert at_most_float32(value) == value


def test_decode_inverts_encode() -> None:
    generator = torch.Generator().manual_seed(8)
    anchors = torch.rand(50, 4, generator=generator) + 0.1
    low = torch.rand(2, 50, 2, generator=generator)
    boxes = torch.cat([low, low + 0.05 + torch.rand(2, 50, 2, generator=generator)], dim=2)
    again = decode(
        encode(boxes, anchors),
        anchors,
        log_size_low=-torch.inf,
        log_size_high=torch.inf,
        centre_scale=0.1,
        size_scale=0.2,
    )
    torch.testing.assert_close(again, boxes, atol=1e-6, rtol=1e-6)
    nothing = decode(
        torch.zeros(50, 4), anchors, log_size_low=-torch.inf, log_size_high=torch.inf, centre_scale=0.1, size_scale=0.2
    )
    torch.testing.assert_close(nothing, corners(anchors), atol=1e-6, rtol=0)


def test_decode_bounds_the_size() -> None:
    anchor = torch.tensor([[0.5, 0.5, 0.1, 0.1]])
    deltas = torch.tensor([[0.0, 0.0, 100.0, -100.0]])
    both = decode(deltas, anchor, log_size_low=-1.0, log_size_high=1.0, centre_scale=0.1, size_scale=0.2)
    upper = decode(deltas, anchor, log_size_low=-torch.inf, log_size_high=1.0, centre_scale=0.1, size_scale=0.2)
    e = 2.718281828
    torch.testing.assert_close(both[0, 2:] - both[0, :2], torch.tensor([0.1 * e, 0.1 / e]), atol=1e-6, rtol=0)
    torch.testing.assert_close(upper[0, 2:] - upper[0, :2], torch.tensor([0.1 * e, 0.0]), atol=1e-6, rtol=0)


def test_detections_by_class_are_capped_and_ordered_by_class() -> None:
    boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0], [2.0, 0.0, 3.0, 1.0], [4.0, 0.0, 5.0, 1.0]])
    scores = torch.tensor([[0.2, 0.9], [0.3, 0.0], [0.4, 0.8]])
    found, found_scores, labels = detections_by_class(
        boxes, scores, score_threshold=0.05, iou_threshold=0.5, keep_per_class=2
    )
    assert labels.tolist() == [0, 0, 1, 1]
    assert torch.equal(found, boxes[[2, 1, 0, 2]])
    torch.testing.assert_close(found_scores, torch.tensor([0.4, 0.3, 0.9, 0.8]))


class _Steps(nn.Module):
    def forward(self, boxes: Tensor, scores: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return select_by_steps(boxes, scores, iou_threshold=0.5, max_detections=20)


class _Chunks(nn.Module):
    def forward(self, boxes: Tensor, scores: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return select_by_chunks(boxes, scores, iou_threshold=0.5, max_detections=20)


@pytest.mark.parametrize("module", [_Steps(), _Chunks()], ids=["steps", "chunks"])
def test_scripted_and_reloaded_equal_eager(module: nn.Module) -> None:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(module), buffer)
    buffer.seek(0)
    reloaded = torch.jit.load(buffer)
    generator = torch.Generator().manual_seed(9)
    for count in (1, 3, 2):
        low = torch.rand(count, 40, 2, generator=generator)
        boxes = torch.cat([low, low + 0.4], dim=2)
        scores = torch.rand(count, 3, 40, generator=generator)
        for expected, found in zip(module(boxes, scores), reloaded(boxes, scores), strict=True):
            assert torch.equal(expected, found)
