"""Anchors, box coding and post-processing against what ml-cvnets and EMO's mmdetection fork answered.

The golden files hold outputs of the original programs for head outputs that are drawn again here; no network is run.
Their format and the suggested tolerances are those of the files' own fields and of `golden/heads/README.md`.
"""

import json
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from model_store.networks.boxes import MAX_LOG_SIZE, box_iou, corners, decode, detections_by_class, encode
from model_store.networks.heads.anchors import cvnets_levels, make_anchors, map_sizes, mmdet_levels
from model_store.networks.heads.detections import cvnets_detections, mmdet_detections

GOLDEN_DIRECTORY = Path(__file__).parent / "golden" / "heads"
SCORE_TOLERANCE = 1e-4
BOX_TOLERANCE = 1e-4  # fractions
BOX_TOLERANCE_PX = 0.05


def golden(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((GOLDEN_DIRECTORY / f"{name}.json").read_text())
    return content


MAIN, V01, EMO, EMO_BOXES = (
    golden(name)
    for name in ("cvnets_main_ssd_postprocess", "cvnets_v01_ssd_postprocess", "emo_ssd_postprocess", "emo_boxes")
)


def head_outputs(case: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Draw logits [1, A, C+1] and deltas [1, A, 4] as the field `synthetic` of the golden files says."""
    anchors, classes, background = case["anchors"], case["classes"], case["background"]
    random = np.random.RandomState(zlib.crc32(f"{case['label']}/{case['kind']}".encode()))
    logits = random.standard_normal((anchors, classes))
    deltas = random.standard_normal((anchors, 4)) * 1.5
    rows = random.randint(0, anchors, 40)
    columns = random.randint(0, classes - 1, 40)
    if case["kind"] == "dense":
        logits *= 3
    elif case["kind"] == "sparse":
        logits[:, background] += 5
        foreground = [column for column in range(classes) if column != background]
        for row, column in zip(rows, columns, strict=True):
            logits[row, foreground[column]] += 9
    else:
        assert case["kind"] == "empty"
        logits[:, background] += 40
    return torch.tensor(logits, dtype=torch.float32)[None], torch.tensor(deltas, dtype=torch.float32)[None]


def check_detections(case: dict[str, Any], boxes: Tensor, scores: Tensor, labels: Tensor, box_tolerance: float) -> None:
    """Every stored row must stand at its place; equal scores may have changed places."""
    assert len(scores) == case["count"]
    histogram = {int(key): count for key, count in case["label_histogram"].items()}
    found_histogram = {int(label): int(count) for label, count in zip(*labels.unique(return_counts=True), strict=True)}
    assert found_histogram == histogram
    assert float(scores.double().sum()) == pytest.approx(case["score_sum"], abs=1e-6 * max(1, case["count"]))
    stored = case["stored"]
    positions = torch.tensor(case.get("positions", list(range(stored))), dtype=torch.int64)
    expected_labels = torch.tensor(case["labels"], dtype=torch.int64)
    expected_scores = torch.tensor(case["scores"], dtype=torch.float32)
    expected_boxes = torch.tensor(case["boxes"], dtype=torch.float32).reshape(-1, 4)
    stable = torch.tensor([row for row in range(stored) if row not in set(case["unstable"])], dtype=torch.int64)
    assert len(stable) >= 0.95 * stored
    positions = positions[stable]
    torch.testing.assert_close(scores[positions], expected_scores[stable], atol=SCORE_TOLERANCE, rtol=0)
    torch.testing.assert_close(boxes[positions], expected_boxes[stable], atol=box_tolerance, rtol=0)
    assert torch.equal(labels[positions].long(), expected_labels[stable])


@pytest.mark.parametrize("content", [MAIN, V01], ids=["main", "v01"])
@pytest.mark.parametrize("index", range(3))
def test_cvnets_anchors(content: dict[str, Any], index: int) -> None:
    case = content["anchors"][index]
    height, width = case["image"]
    maps = map_sizes(height=height, width=width, pooled_last=True)
    assert [list(size) for size in maps] == case["grids"]
    anchors = make_anchors(levels=cvnets_levels(), maps=maps, height=height, width=width, clamp=True)
    check_anchors(case, anchors, 1e-6)


def test_emo_anchors() -> None:
    case = EMO_BOXES["grid_small"]
    maps = [(rows, columns) for rows, columns in case["grids"]]
    anchors = make_anchors(levels=mmdet_levels(), maps=maps, height=200, width=300, clamp=False)
    check_anchors(case, corners(anchors) * torch.tensor([300.0, 200.0, 300.0, 200.0]), 2e-4)  # pixels
    assert map_sizes(height=320, width=320, pooled_last=False) == [(20, 20), (10, 10), (5, 5), (3, 3), (2, 2), (1, 1)]


def check_anchors(case: dict[str, Any], anchors: Tensor, tolerance: float) -> None:
    assert list(anchors.shape) == case["shape"]
    expected_sum = torch.tensor(case["sum"], dtype=torch.float64)
    torch.testing.assert_close(anchors.double().sum(dim=0), expected_sum, atol=1e-3, rtol=1e-6)
    if "all" in case:
        sampled, found = case["all"], anchors
    else:  # at most 64 rows were stored
        sampled, found = case["strided"], anchors[:: case["step"]][: len(case["strided"])]
        assert len(sampled) >= 60
        last = torch.tensor(case["last"], dtype=torch.float32)
        torch.testing.assert_close(anchors[-len(last) :], last, atol=tolerance, rtol=0)
    torch.testing.assert_close(found, torch.tensor(sampled, dtype=torch.float32), atol=tolerance, rtol=0)


def test_emo_box_coder() -> None:
    coder = EMO_BOXES["coder"]
    anchors = torch.tensor(coder["anchors_xyxy"], dtype=torch.float32)
    anchors = torch.cat([(anchors[:, :2] + anchors[:, 2:]) / 2, anchors[:, 2:] - anchors[:, :2]], dim=1)
    deltas = torch.tensor(coder["deltas"], dtype=torch.float32)
    boxes = decode(
        deltas, anchors, log_size_low=-MAX_LOG_SIZE, log_size_high=MAX_LOG_SIZE, centre_scale=0.1, size_scale=0.2
    )
    expected = torch.tensor(coder["decoded"], dtype=torch.float32)
    torch.testing.assert_close(boxes, expected, atol=2e-4, rtol=2e-6)  # pixels, up to some thousands
    clipped = torch.tensor(coder["clipped_320"], dtype=torch.float32)
    torch.testing.assert_close(boxes.clamp(0, 320), clipped, atol=2e-4, rtol=2e-6)
    rows = torch.tensor(coder["encoded_rows"])
    again = encode(clipped[rows], anchors[rows])
    torch.testing.assert_close(again, torch.tensor(coder["encoded"], dtype=torch.float32), atol=1e-3, rtol=1e-5)


@pytest.mark.parametrize("case", MAIN["results"][0]["cases"], ids=lambda case: case["kind"])
def test_cvnets_main_detections(case: dict[str, Any]) -> None:
    height, width = MAIN["image"]
    served = cvnets_detections(height=height, width=width)
    clipped = served(*head_outputs(case))
    served.clip_after = False  # the golden boxes are those before clipping
    boxes, scores, labels, counts = (part[0] for part in served(*head_outputs(case)))
    count = int(counts)
    check_detections(case, boxes[:count], scores[:count], labels[:count] + 1, BOX_TOLERANCE)  # 0 was the background
    assert torch.equal(clipped[0][0], boxes.clamp(0.0, 1.0))


@pytest.mark.parametrize("settings", range(len(V01["results"])))
@pytest.mark.parametrize("index", range(3))
def test_cvnets_v01_detections(settings: int, index: int) -> None:
    height, width = V01["image"]
    policy = V01["results"][settings]["settings"]
    case = V01["results"][settings]["cases"][index]
    logits, deltas = head_outputs(case)
    maps = map_sizes(height=height, width=width, pooled_last=True)
    anchors = make_anchors(levels=cvnets_levels(), maps=maps, height=height, width=width, clamp=True)
    boxes, scores, labels = detections_by_class(
        decode(deltas[0], anchors, log_size_low=-math.inf, log_size_high=math.inf, centre_scale=0.1, size_scale=0.2),
        logits[0].softmax(dim=1)[:, 1:],
        score_threshold=policy["conf_threshold"],
        iou_threshold=policy["nms_iou"],
        keep_per_class=policy["keep_per_class"],
    )
    check_detections(case, boxes, scores, labels + 1, BOX_TOLERANCE)


@pytest.mark.parametrize("case", EMO["cases"], ids=lambda case: case["kind"])
def test_emo_detections(case: dict[str, Any]) -> None:
    width, height = EMO["network_input"]
    boxes, scores, labels, counts = (
        part[0] for part in mmdet_detections(height=height, width=width)(*head_outputs(case))
    )
    count = int(counts)
    scale_x, scale_y = EMO["scale_factor_w_h"]  # of the network input to the picture
    to_picture = torch.tensor([width / scale_x, height / scale_y] * 2)
    check_detections(case, boxes[:count] * to_picture, scores[:count], labels[:count], BOX_TOLERANCE_PX)


@pytest.mark.parametrize("build", [cvnets_detections, mmdet_detections])
def test_no_answer_overlaps_its_class(build: Any) -> None:
    case = {"anchors": 3232 if build is cvnets_detections else 3234, "classes": 81, "label": "overlap", "kind": "dense"}
    case["background"] = 0 if build is cvnets_detections else 80
    served = build(height=320, width=320)
    served.clip_after = False
    boxes, _, labels, counts = (part[0] for part in served(*head_outputs(case)))
    same = labels[: int(counts), None] == labels[None, : int(counts)]
    overlap = box_iou(boxes[: int(counts)], boxes[: int(counts)])
    assert bool((overlap[same.triu(1)] <= 0.5).all())
