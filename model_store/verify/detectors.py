"""Comparison of detectors, and of their anchors and post-processing alone, against golden files.

In: the content of a golden file and its entry. Out: a list of `Check`. The files of ml-cvnets and of EMO's mmdetection
use different names. The former keep boxes in fractions, the latter in pixels.
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model_store import zoo
from model_store.build import assemble
from model_store.networks import boxes
from model_store.networks.heads.anchors import (
    AnchorLevel,
    anchors_per_level,
    cvnets_levels,
    make_anchors,
    map_sizes,
    mmdet_levels,
)
from model_store.networks.heads.detections import Detections, cvnets_detections, mmdet_detections
from model_store.verify.golden import (
    Check,
    GoldenError,
    distance,
    fill,
    macs_check,
    parameters_check,
    picture,
    random_state,
    summary,
)
from model_store.weights import layouts
from model_store.weights import load as weights

SCORES = 1e-4
BOXES = 1e-4  # fractions
BOXES_PX = 0.05
ANCHORS = 1e-6  # fractions
ANCHORS_PX = 2e-4
DELTAS = 1e-3  # of the box coder: the stored boxes have seven digits
SAME_BOX_IOU = 0.99


@dataclass(frozen=True)
class Found:
    """Detections of one picture: boxes float32 [D, 4] in the unit of the file, scores float32 [D], labels int64 [D]."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor


def check_ssdlite(content: Mapping[str, Any], entry: zoo.ModelSpec) -> list[Check]:
    """Parameters, MACs, maps, raw outputs, anchors and detections."""
    model = content["model"]
    network = assemble.build(entry)
    checks = [parameters_check(content, network), macs_check(content, network, entry)]
    if "window_sizes" in model:
        named = zoo.EMOBackbone(variant=entry.variant, window=model["window_sizes"][-1])
        checks.append(Check("window of the zoo", float(named != entry.backbone), 0))
    for case in content["cases"]:
        state = fill(content["keys"], content["salt"], case["gain"])
        weights.load(network, state, layouts.get(entry.layout))
        x = picture(case["input"])
        with torch.inference_mode():
            maps = network.backbone(x)[2:]
            logits, deltas = network.head([*maps, *maps])  # the head looks at the last two only
            for level in network.head.get_submodule("extra_levels").children():
                maps.append(level(maps[-1]))
        label, size = case["name"], (x.shape[2], x.shape[3])
        stored = case["levels"]
        levels = list(enumerate(stored)) if isinstance(stored, list) else [(0, stored["os_16"]), (1, stored["os_32"])]
        checks += [summary(f"{label}: map {index}", maps[index], level) for index, level in levels]
        checks += [
            summary(f"{label}: class logits", logits, case["class_logits"]),
            summary(f"{label}: box deltas", deltas, case["box_deltas"]),
        ]
        if "anchors" in case:
            checks.append(anchors_check(f"{label}: anchors", case["anchors"], size))
        else:
            checks.append(pixel_anchors_check(f"{label}: anchors", case["anchors_xyxy_pixels"], size))
        if label != "lively":
            continue
        if "anchors" in case:
            for result in case["detections"]:
                found = detect(content["source"]["flavour"], result["settings"], logits, deltas, size)
                checks += compare_detections(f"{label}: {_text(result['settings'])}", found, result, BOXES)
        else:
            found = detect_mmdet(model, logits, deltas, size, case["scale_factor_w_h"])
            checks += compare_detections(f"{label}: detections", found, case["detections"], BOXES_PX)
    return checks


def check_postprocess(content: Mapping[str, Any]) -> list[Check]:
    """Anchors and detections on synthetic head outputs; no network."""
    checks = []
    if "network_input" in content:
        width, height = content["network_input"]
        for case in content["cases"]:
            logits, deltas = synthetic(case)
            found = detect_mmdet(content["settings"], logits, deltas, (height, width), content["scale_factor_w_h"])
            checks += compare_detections(f"{case['kind']}: detections", found, case, BOXES_PX)
        return checks
    for stored in content["anchors"]:
        name = f"anchors for {stored['image']}"
        checks.append(anchors_check(name, stored, tuple(stored["image"]), maps=stored["grids"]))
    size = tuple(content["image"])
    for result in content["results"]:
        for case in result["cases"]:
            logits, deltas = synthetic(case)
            found = detect(content["source"]["flavour"], result["settings"], logits, deltas, size)
            checks += compare_detections(f"{case['kind']}: {_text(result['settings'])}", found, case, BOXES)
    return checks


def check_box_coder(content: Mapping[str, Any]) -> list[Check]:
    """Anchors of EMO's detectors over a tiny grid, every row, and the box coder alone, in pixels of any picture."""
    grid, limit = content["grid_small"], boxes.MAX_LOG_SIZE
    grids = [(rows, columns) for rows, columns in grid["grids"]]
    return [
        pixel_anchors_check("anchors", grid, (200, 300), maps=grids),
        *_coder_checks(content["coder"], log_size_low=-limit, log_size_high=limit),
    ]


def _coder_checks(coder: Mapping[str, Any], *, log_size_low: float, log_size_high: float) -> list[Check]:
    ends = torch.tensor(coder["anchors_xyxy"])
    low, high = ends[:, :2], ends[:, 2:]
    anchors = torch.cat([(low + high) / 2, high - low], dim=1)  # corners [B, 4] -> centre and size [B, 4]
    decoded = boxes.decode(
        torch.tensor(coder["deltas"]),
        anchors,
        log_size_low=log_size_low,
        log_size_high=log_size_high,
        centre_scale=0.1,
        size_scale=0.2,
    )
    clipped, rows = torch.tensor(coder["clipped_320"]), torch.tensor(coder["encoded_rows"])
    return [
        Check("decoded boxes, pixels", distance(decoded, coder["decoded"]), BOXES_PX),
        Check("clipped boxes, pixels", distance(decoded.clamp(0, 320), coder["clipped_320"]), BOXES_PX),
        Check("encoded boxes", distance(boxes.encode(clipped[rows], anchors[rows]), coder["encoded"]), DELTAS),
    ]


def check_torchvision_boxes(content: Mapping[str, Any]) -> list[Check]:
    """Anchors of torchvision's SSDLite at 320 pixels and over a tiny grid, and its box coder, all in pixels."""
    small, coder = content["grid_small"], content["coder"]
    checks = []
    for name, stored, size in (("320 x 320", content["grid_320"], (320, 320)), ("tiny", small, tuple(small["image"]))):
        height, width = size
        found = _torchvision_anchors(size, stored.get("grids"))
        in_pixels = boxes.corners(found) * torch.tensor([width, height] * 2)
        checks.append(compare_anchors(f"anchors, {name}", in_pixels, stored, ANCHORS_PX))
    return checks + _coder_checks(coder, log_size_low=-math.inf, log_size_high=coder["delta_clip"])


def check_torchvision_postprocess(content: Mapping[str, Any]) -> list[Check]:
    """Detections of torchvision's policy, in pixels. `Detections` can be set to it, but no model is served with it."""
    settings, (height, width) = content["settings"], content["image"]
    maps = map_sizes(height=height, width=width, pooled_last=False)
    module = Detections(
        anchors=_torchvision_anchors((height, width)),
        level_sizes=anchors_per_level(levels=_torchvision_levels(), maps=maps),
        background_first=True,
        score_threshold=settings["score_threshold"],
        best_per_class=settings["topk_per_class"],
        best_per_level=0,
        iou_threshold=settings["nms_iou"],
        max_detections=settings["detections_per_image"],
        log_size_bound=boxes.MAX_LOG_SIZE,  # torchvision has the upper bound only; no delta comes near the lower
        clip_before=True,
        clip_after=False,
    )
    checks = []
    for case in content["cases"]:
        found, scores, labels, counts = (part[0] for part in module(*synthetic(case)))
        rows = slice(0, int(counts))
        in_pixels = found[rows] * torch.tensor([width, height] * 2)
        answer = Found(in_pixels, scores[rows], labels[rows].long() + 1)
        checks += compare_detections(f"{case['kind']}: detections", answer, case, BOXES_PX)
    return checks


def _torchvision_levels() -> tuple[AnchorLevel, ...]:
    sides = [0.2 + 0.15 * index for index in range(6)] + [1.0]
    return tuple(AnchorLevel(small=sides[index], large=sides[index + 1], ratios=(2, 3)) for index in range(6))


def _torchvision_anchors(size: tuple[int, ...], grids: list[list[int]] | None = None) -> Tensor:
    height, width = size
    own = map_sizes(height=height, width=width, pooled_last=False)
    maps = own if grids is None else [(rows, columns) for rows, columns in grids]
    return make_anchors(levels=_torchvision_levels(), maps=maps, height=height, width=width, clamp=True)


def synthetic(case: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Head outputs that need no network: logits [1, A, C], deltas [1, A, 4]; the recipe is in the files.

    Raises `GoldenError` for an unknown recipe.
    """
    anchors, classes, background = case["anchors"], case["classes"], case["background"]
    random = random_state(f"{case['label']}/{case['kind']}")
    logits = random.standard_normal((anchors, classes))
    deltas = random.standard_normal((anchors, 4)) * 1.5
    rows, columns = random.randint(0, anchors, 40), random.randint(0, classes - 1, 40)
    foreground = [index for index in range(classes) if index != background]
    if case["kind"] == "dense":
        logits *= 3
    elif case["kind"] == "sparse":
        logits[:, background] += 5
        for row, column in zip(rows, columns, strict=True):
            logits[row, foreground[column]] += 9
    elif case["kind"] == "empty":
        logits[:, background] += 40
    else:
        raise GoldenError(f"unknown kind of synthetic output {case['kind']!r}")
    return (
        torch.from_numpy(logits.astype(np.float32)).unsqueeze(0),
        torch.from_numpy(deltas.astype(np.float32)).unsqueeze(0),
    )


def anchors_check(
    name: str, stored: Mapping[str, Any], size: tuple[int, ...], maps: list[list[int]] | None = None
) -> Check:
    """Anchors of cvnets for an input of `size` (height, width), over the maps given or those of a backbone."""
    height, width = size
    grids = map_sizes(height=height, width=width, pooled_last=True) if maps is None else [(r, c) for r, c in maps]
    found = make_anchors(levels=cvnets_levels(), maps=grids, height=height, width=width, clamp=True)
    return compare_anchors(name, found, stored, ANCHORS)


def pixel_anchors_check(
    name: str, stored: Mapping[str, Any], size: tuple[int, int], maps: list[tuple[int, int]] | None = None
) -> Check:
    """Anchors of EMO's detectors as corners in pixels, likewise."""
    height, width = size
    grids = maps or map_sizes(height=height, width=width, pooled_last=False)
    found = make_anchors(levels=mmdet_levels(), maps=grids, height=height, width=width, clamp=False)
    return compare_anchors(name, boxes.corners(found) * torch.tensor([width, height] * 2), stored, ANCHORS_PX)


def compare_anchors(name: str, found: Tensor, stored: Mapping[str, Any], tolerance: float) -> Check:
    """Anchors [A, 4] against all stored rows, or against the sums, the first, the last and the strided ones."""
    if list(found.shape) != stored["shape"]:
        return Check(f"{name}: shape", float("inf"), tolerance)
    if "all" in stored:
        return Check(name, distance(found, stored["all"]), tolerance)
    worst = max(
        distance(found[: len(stored["first"])], stored["first"]),
        distance(found[-len(stored["last"]) :], stored["last"]),
        distance(found[:: stored["step"]][: len(stored["strided"])], stored["strided"]),
        distance(found.double().sum(dim=0) / found.shape[0], np.asarray(stored["sum"]) / found.shape[0]),
    )
    return Check(name, worst, tolerance)


def detect(flavour: str, settings: Mapping[str, Any], logits: Tensor, deltas: Tensor, size: tuple[int, ...]) -> Found:
    """Detections of the first picture from logits [N, A, C+1] and deltas [N, A, 4], by the policy of the flavour.

    Labels count the background as 0. Raises `GoldenError` where the settings are not those of the post-processing.
    """
    height, width = size
    if flavour == "v01":  # unbounded, hence not part of an archive; the definition the fixed-shape one rests on
        maps = map_sizes(height=height, width=width, pooled_last=True)
        anchors = make_anchors(levels=cvnets_levels(), maps=maps, height=height, width=width, clamp=True)
        found, scores, labels = boxes.detections_by_class(
            boxes.decode(
                deltas[0], anchors, log_size_low=-math.inf, log_size_high=math.inf, centre_scale=0.1, size_scale=0.2
            ),
            logits[0].softmax(dim=-1)[:, 1:],
            score_threshold=settings["conf_threshold"],
            iou_threshold=settings["nms_iou"],
            keep_per_class=settings["keep_per_class"],
        )
        return Found(found, scores, labels + 1)
    module = cvnets_detections(height=height, width=width)
    module.clip_after = False  # stored boxes are unclipped; the source clips when it scales to pixels
    ours = (module.score_threshold, module.best_per_class, module.max_detections)
    theirs = (settings["conf_threshold"], settings["topk_per_class"], settings["objects_per_image"])
    if ours != theirs:
        raise GoldenError(f"settings {theirs} are not those of the post-processing here, {ours}")
    found, scores, labels, counts = module(logits, deltas)
    count = int(counts[0])
    return Found(found[0, :count], scores[0, :count], labels[0, :count].long() + 1)


def detect_mmdet(
    settings: Mapping[str, Any],
    logits: Tensor,
    deltas: Tensor,
    size: tuple[int, int],
    scale: list[float],
) -> Found:
    """Detections of the first picture from logits [N, A, C+1] and deltas [N, A, 4], in pixels of the original.

    The original was scaled by (width, height) `scale`. Raises `GoldenError` as `detect` does.
    """
    height, width = size
    module = mmdet_detections(height=height, width=width)
    ours = (
        module.score_threshold,
        module.best_per_level,
        module.iou_threshold,
        module.max_detections,
    )
    theirs = (
        settings["score_threshold"],
        settings["topk_per_level"],
        boxes.at_most_float32(settings["nms_iou"]),
        settings["detections_per_image"],
    )
    if ours != theirs:
        raise GoldenError(f"settings {theirs} are not those of the post-processing here, {ours}")
    found, scores, labels, counts = module(logits, deltas)
    count = int(counts[0])
    to_original = torch.tensor([width / scale[0], height / scale[1]] * 2)
    return Found(found[0, :count] * to_original, scores[0, :count], labels[0, :count].long())


def _text(settings: Mapping[str, Any]) -> str:
    return "detections above " + str(settings["conf_threshold"])


def compare_detections(name: str, found: Found, stored: Mapping[str, Any], box_tolerance: float) -> list[Check]:
    """Count, labels, and every stored row that is not a near-tie: same label, same box, same score."""
    count = Check(f"{name}: count", abs(len(found.scores) - stored["count"]), 0)
    histogram = Counter({int(label): number for label, number in stored["label_histogram"].items()})
    ours = Counter(found.labels.tolist())
    labels = Check(f"{name}: labels", sum(((histogram - ours) + (ours - histogram)).values()), 0)
    rows = [row for row in range(stored["stored"]) if row not in set(stored["unstable"])]
    if not rows or not len(found.scores):
        return [count, labels]
    expected = torch.tensor(stored["boxes"])[rows]
    expected_scores, expected_labels = torch.tensor(stored["scores"])[rows], torch.tensor(stored["labels"])[rows]
    overlap = boxes.box_iou(expected, found.boxes)  # [rows, D]
    # A box without area overlaps nothing: it is the same if its corners are.
    corners_gap = (expected[:, None] - found.boxes[None]).abs().amax(dim=2)  # [rows, D]
    same_box = (overlap > SAME_BOX_IOU) | (corners_gap <= box_tolerance)
    possible = same_box & (expected_labels[:, None] == found.labels[None, :])
    gap = (expected_scores[:, None] - found.scores[None, :]).abs().masked_fill(~possible, float("inf"))
    best, partner = gap.min(dim=1)
    matched = torch.isfinite(best)
    box_gap = (expected - found.boxes[partner]).abs()[matched]
    return [
        count,
        labels,
        Check(f"{name}: rows without partner", int((~matched).sum()), 0),
        Check(f"{name}: scores", float(best[matched].max()) if bool(matched.any()) else 0.0, SCORES),
        Check(f"{name}: boxes", float(box_gap.max()) if bool(matched.any()) else 0.0, box_tolerance),
    ]
