"""Comparison of RetinaNets, and of their anchors, box coder and post-processing alone, against golden files.

In: the content of a golden file and its entry. Out: a list of `Check`. Maps and raw outputs are compared as a share of
their standard deviation, boxes and anchors in pixels. The file of operations has those of Mask R-CNN too: its anchors
and its box coder are compared here, RoIAlign and the levels of RoIs are not, because no model here has them.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model_store import zoo
from model_store.build import assemble
from model_store.networks import boxes
from model_store.networks.heads.retinanet import RetinaNet
from model_store.networks.heads.retinanet_detections import (
    SIDES,
    STRIDES_PX,
    corner_anchors,
    map_sizes,
    retinanet_anchors,
    retinanet_detections,
)
from model_store.verify.detectors import ANCHORS_PX, BOXES_PX, Found, compare_anchors, compare_detections
from model_store.verify.golden import (
    Check,
    GoldenError,
    distance,
    fill,
    macs_check,
    parameters_check,
    picture,
    random_state,
    summary_of_std,
)
from model_store.weights import layouts
from model_store.weights import load as weights

_RPN_STRIDES_PX, _RPN_SIDES = (4, 8, 16, 32, 64), (8.0,)
_SHARE = 1e-6  # of decoded boxes, which reach ten thousand pixels
_ALL = 20_000  # more boxes than five levels of 1000 candidates


def check_retinanet(content: Mapping[str, Any], entry: zoo.ModelSpec) -> list[Check]:
    """Parameters, MACs, maps, raw outputs, anchors, boxes before the cut and detections.

    Raises `GoldenError` where the padded picture is not the network's input.
    """
    model = content["model"]
    network = assemble.build(entry)
    head = network.head
    if not isinstance(head, RetinaNet):
        raise GoldenError(f"this is a bug: {entry.name} has no RetinaNet")
    named = zoo.EMOBackbone(variant=entry.variant, window=model["window_sizes"][-1])
    checks = [
        parameters_check(content, network),
        macs_check(content, network, entry),
        Check("window of the zoo", float(named != entry.backbone), 0),
    ]
    for case in content["cases"]:
        state = fill(content["keys"], content["salt"], case["gain"], case.get("gains"))
        weights.load(network, state, layouts.get(entry.layout))
        x = picture(case["input"])
        with torch.inference_mode():
            features = network.backbone(x)
            maps = head.maps(features)
            logits, deltas = head(features)
        label, (height, width) = case["name"], case["image_size"]
        sizes = retinanet_anchors(height=height, width=width)[1]
        if sum(sizes) != logits.shape[1]:
            raise GoldenError(f"{label}: {case['image_size']} with padding is not the input {list(x.shape)}")
        raw = {"class_logits": logits, "box_deltas": deltas}
        parts = {f"{name}_per_level": tensor.split(sizes, dim=1) for name, tensor in raw.items()}
        for name, tensors in {"backbone_out": features, "levels": maps, **parts}.items():
            for index, stored in enumerate(case[name]):
                checks.append(summary_of_std(f"{label}: {name} {index}", tensors[index], stored))
        checks += [summary_of_std(f"{label}: {name}", tensor, case[name]) for name, tensor in raw.items()]
        checks.append(_anchors_check(f"{label}: anchors", case["anchors_xyxy_pixels"], height, width))
        if label == "lively":
            checks += _detection_checks(label, model, case, case, case["detections"], logits, deltas)
    return checks


def check_retinanet_postprocess(content: Mapping[str, Any]) -> list[Check]:
    """Detections on synthetic head outputs; no network."""
    height, width = content["image_size"]
    checks = [
        Check(
            "sizes of the maps", float([list(m) for m in map_sizes(height=height, width=width)] != content["grids"]), 0
        )
    ]
    for case in content["cases"]:
        logits, deltas = _synthetic(case)
        checks += _detection_checks(case["kind"], content["settings"], content, case, case, logits, deltas)
    return checks


def check_operations(content: Mapping[str, Any]) -> list[Check]:
    """Anchors of RetinaNet and of an RPN over a tiny grid, every row, and both box coders, with extreme deltas."""
    checks = []
    for name, strides, sides in (("retina", STRIDES_PX, SIDES), ("rpn", _RPN_STRIDES_PX, _RPN_SIDES)):
        stored = content[f"anchors_{name}"]
        maps = [(rows, columns) for rows, columns in stored["grids"]]
        anchors = boxes.corners(corner_anchors(strides_px=strides, sides=sides, maps=maps))
        checks.append(compare_anchors(f"anchors, {name}", anchors, stored, ANCHORS_PX))
    for name in ("unit", "box"):
        checks += _coder_checks(name, content[f"coder_{name}"])
    return checks


def _coder_checks(name: str, coder: Mapping[str, Any]) -> list[Check]:
    ends = torch.tensor(coder["anchors_xyxy"])
    low, high = ends[:, :2], ends[:, 2:]
    anchors = torch.cat([(low + high) / 2, high - low], dim=1)  # corners [B, 4] -> centre and size [B, 4]
    limit, (centre_scale, _, size_scale, _) = coder["limit_of_log_size"], coder["stds"]
    decoded = boxes.decode(
        torch.tensor(coder["deltas"]),
        anchors,
        log_size_low=-limit,
        log_size_high=limit,
        centre_scale=centre_scale,
        size_scale=size_scale,
    )
    height, width = coder["clip_to"]
    clipped = torch.minimum(decoded.clamp(min=0), torch.tensor([width, height] * 2))
    largest = max(abs(number) for row in coder["decoded"] for number in row)
    return [
        Check(f"decoded boxes, {name}, pixels", distance(decoded, coder["decoded"]), ANCHORS_PX + _SHARE * largest),
        Check(f"clipped boxes, {name}, pixels", distance(clipped, coder["clipped"]), ANCHORS_PX),
    ]


def _anchors_check(name: str, stored: Mapping[str, Any], height: int, width: int) -> Check:
    anchors, _ = retinanet_anchors(height=height, width=width)
    in_pixels = boxes.corners(anchors.double()) * torch.tensor([width, height] * 2)
    return compare_anchors(name, in_pixels, stored, ANCHORS_PX)


def _detection_checks(
    label: str,
    settings: Mapping[str, Any],
    sizes: Mapping[str, Any],
    case: Mapping[str, Any],
    stored: Mapping[str, Any],
    logits: Tensor,
    deltas: Tensor,
) -> list[Check]:
    """Number of boxes before the cut to the best, and the best of them in pixels of the original.

    `sizes` has the picture and its scale, `case` the number before the cut, `stored` the boxes. Raises `GoldenError`
    where the settings are not those of the post-processing.
    """
    height, width = sizes["image_size"]
    module = retinanet_detections(height=height, width=width)
    ours = (module.score_threshold, module.best_per_level, module.iou_threshold, module.max_detections)
    theirs = (
        settings["score_threshold"],
        settings["topk_per_level"],
        boxes.at_most_float32(settings["nms_iou"]),
        settings["detections_per_image"],
    )
    if ours != theirs:
        raise GoldenError(f"settings {theirs} are not those of the post-processing here, {ours}")
    found, scores, labels, counts = (part[0] for part in module(logits, deltas))
    rows = slice(0, int(counts))
    scale_x, scale_y = sizes["scale_factor_w_h"]
    to_original = torch.tensor([width / scale_x, height / scale_y] * 2)
    answer = Found(found[rows] * to_original, scores[rows], labels[rows].long())
    whole = retinanet_detections(height=height, width=width, max_boxes=_ALL)(logits, deltas)
    before = case["before_cap"]
    expected, noise = (before, 0) if isinstance(before, int) else (before["count"], before["count_noise"])
    return [
        Check(f"{label}: boxes before the cut", abs(int(whole[3][0]) - expected), noise),
        *compare_detections(f"{label}: detections", answer, stored, BOXES_PX),
    ]


def _synthetic(case: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Head outputs that need no network: logits [1, A, C], deltas [1, A, 4]; the recipe is in the file.

    Raises `GoldenError` for an unknown recipe.
    """
    anchors, classes, kind = case["anchors"], case["classes"], case["kind"]
    random = random_state(f"{case['label']}/retina/{kind}")
    logits = random.standard_normal((anchors, classes))
    deltas = random.standard_normal((anchors, 4)) * 0.5
    rows, columns = random.randint(0, anchors, 60), random.randint(0, classes, 60)
    if kind == "dense":
        logits = logits * 1.5 - 1
    elif kind == "sparse":
        logits -= 8
        np.add.at(logits, (rows, columns), 9)
    elif kind == "extreme":
        logits -= 5
        deltas *= 12
    elif kind == "empty":
        logits -= 40
    else:
        raise GoldenError(f"unknown kind of synthetic output {kind!r}")
    return torch.from_numpy(logits.astype(np.float32))[None], torch.from_numpy(deltas.astype(np.float32))[None]
