"""Comparison of the box arithmetic, without any head or network, against the golden file `boxops`.

In: the content of the file: boxes, scores and thresholds with ties, no area, touching edges and exact thresholds, and
the results of plain loops. Out: a list of `Check` that count wrong results. Both forms of selection in archives, and
the plain definition behind them, go through every case.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from model_store.networks.boxes import (
    at_most_float32,
    box_iou,
    greedy_nms,
    keep_best,
    select_by_chunks,
    select_by_steps,
)
from model_store.verify.golden import Check

IOU = 2e-6  # the stored ones have seven digits
_FORMS = (select_by_steps, select_by_chunks)
_ALL = 100  # more detections than any case has


def check_boxops(content: Mapping[str, Any]) -> list[Check]:
    """Overlap, suppression in one class and in many, and whole chains of threshold, best of class, suppression, cap."""
    checks = [_iou(content["iou"])]
    for case in content["nms"]:
        wrong = sum(_wrong_in_one_class(case, result) for result in case["results"])
        checks.append(Check(f"suppression, {case['name']}: wrong answers", wrong, 0))
    for case in content["per_class_nms"]:
        wrong = sum(_wrong_per_class(case, result) for result in case["results"])
        checks.append(Check(f"suppression per class, {case['name']}: wrong answers", wrong, 0))
    for case in content["pipeline"]:
        checks.append(Check(f"whole chain, {case['name']}: wrong answers", _wrong_chains(case), 0))
    return checks


def _iou(case: Mapping[str, Any]) -> Check:
    expected = torch.tensor([[float("nan") if value is None else value for value in row] for row in case["iou"]])
    found = box_iou(_corners(case["a"]), _corners(case["b"]))
    undefined = expected.isnan()
    if found.shape != expected.shape or not torch.equal(found.isnan(), undefined):
        return Check("overlap", float("inf"), IOU)
    return Check("overlap", float((found - expected)[~undefined].abs().max()), IOU)


def _wrong_in_one_class(case: Mapping[str, Any], result: Mapping[str, Any]) -> int:
    """How many of the three implementations keep other boxes than the file, or in another order."""
    boxes, scores = _corners(case["boxes"]), torch.tensor(case["scores"], dtype=torch.float32)
    keep, threshold = result["keep"], result["threshold"]
    kept = greedy_nms(boxes, scores, torch.zeros(len(scores), dtype=torch.int64), iou_threshold=threshold)
    wrong = int(kept.tolist() != keep)
    if not len(scores):
        return wrong
    asked = [(at_most_float32(threshold), keep)]
    if "keep_float32_threshold" in result:
        asked.append((threshold, result["keep_float32_threshold"]))
    for form in _FORMS:
        for limit, expected in asked:
            found, _, _, counts = form(
                boxes[None], _ranks(scores)[None, None], iou_threshold=limit, max_detections=_ALL
            )
            wrong += int(not torch.equal(found[0, : int(counts)], boxes[expected]))
    return wrong


def _wrong_per_class(case: Mapping[str, Any], result: Mapping[str, Any]) -> int:
    boxes, scores = _corners(case["boxes"]), torch.tensor(case["scores"], dtype=torch.float32)
    labels = torch.tensor(case["labels"], dtype=torch.int64)
    keep, threshold = result["keep"], result["threshold"]
    wrong = int(greedy_nms(boxes, scores, labels, iou_threshold=threshold).tolist() != keep)
    if not len(scores):
        return wrong
    table = torch.zeros(int(labels.max()) + 1, len(scores))  # [C, A]
    table[labels, torch.arange(len(scores))] = _ranks(scores)
    # Equal scores of different classes: ordered by class here, in input order in the file.
    expected = sorted((int(labels[index]), boxes[index].tolist()) for index in keep)
    for form in _FORMS:
        found, _, classes, counts = form(
            boxes[None], table[None], iou_threshold=at_most_float32(threshold), max_detections=_ALL
        )
        count = int(counts)
        answered = sorted(zip(classes[0, :count].tolist(), found[0, :count].tolist(), strict=True))
        wrong += int(answered != expected)
    return wrong


def _wrong_chains(case: Mapping[str, Any]) -> int:
    boxes = _corners(case["boxes"])
    scores = torch.tensor(case["scores"], dtype=torch.float32).t().contiguous()  # [A, C] -> [C, A]
    scores = torch.where(scores > case["score_threshold"], scores, torch.zeros_like(scores))
    scores[case["background"]] = 0.0
    scores = keep_best(scores, case["topk_per_class"])
    stored = torch.tensor(case["result_index_and_class"], dtype=torch.int64).reshape(-1, 2)
    anchors, classes = stored[:, 0], stored[:, 1]
    wrong = 0
    for form in _FORMS:
        found, found_scores, labels, counts = form(
            boxes[None], scores[None], iou_threshold=case["nms"], max_detections=case["cap"]
        )
        rows = slice(0, int(counts))
        same = (
            torch.equal(labels[0, rows].long(), classes)
            and torch.equal(found[0, rows], boxes[anchors])
            and torch.equal(found_scores[0, rows], scores[classes, anchors])
        )
        wrong += int(not same)
    return wrong


def _corners(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float32).reshape(-1, 4)


def _ranks(scores: Tensor) -> Tensor:
    """Positive numbers in the same order, because only scores above 0 are candidates of the selections."""
    positions: Tensor = torch.unique(scores, return_inverse=True)[1]
    return positions.to(torch.float32) + 1.0
