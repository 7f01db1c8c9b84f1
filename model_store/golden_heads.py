"""Comparison of detection and segmentation models against golden files (`what`, `source`, `model`, `cases`).

In: the content of a golden file. Out: a list of `Check`. Weights go through the loader, as for backbones. Tolerances
are those of the README beside the files: raw outputs 2e-4 absolute, scores and boxes (fractions) 1e-4, class maps equal
in 99.9 % of pixels. Detections and class maps are judged on `lively` cases: with the gain of the others the outputs
hardly depend on the picture, so that the winner is a matter of rounding.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from model_store import assemble, boxes, layouts, weights, zoo
from model_store.golden import Array, Check, GoldenError, distance, fill, parameters_check, random_state
from model_store.heads.anchors import cvnets_levels, make_anchors, map_sizes
from model_store.heads.deeplabv3 import class_map, upsample
from model_store.heads.detections import cvnets_detections

RAW = 2e-4
SCORES = 1e-4
BOXES = 1e-4
ANCHORS = 1e-6
PIXELS_UNEQUAL = 1e-3
SAME_BOX_IOU = 0.99


@dataclass(frozen=True)
class Found:
    """Detections of one picture: boxes float32 [D, 4] in fractions, scores float32 [D], labels int64 [D]."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor


def check_heads(content: Mapping[str, Any]) -> list[Check]:
    """All checks of a head file. Raises `GoldenError` for a project or backbone that is not here."""
    project = content["source"].get("project", "")
    if project not in {"ml-cvnets", "transformers"}:
        raise GoldenError(f"no model of the project {project!r} is here ({content['what']})")
    if "synthetic" in content:
        return check_postprocess(content)
    backbone = str(content["model"]["backbone"])
    if content["what"].startswith("SSDLite"):
        return check_ssdlite(content, _entry(f"{backbone}_detect"))
    if content["what"].startswith("DeepLabv3"):
        return check_deeplabv3(content, _entry(f"{backbone}_segment"))
    raise GoldenError(f"no head is called {content['what']!r} here")


def _entry(name: str) -> zoo.Entry:
    try:
        return zoo.get(name)
    except zoo.UnknownModel as error:
        raise GoldenError(str(error)) from error


def picture(recipe: Mapping[str, Any]) -> Tensor:
    """The input that a recipe describes: float32 [N, C, H, W], as it enters the network."""
    batch, channels, height, width = recipe["shape"]
    random = random_state(recipe["label"])
    if recipe["kind"] == "uniform":
        values: Array = random.random_sample(recipe["shape"])
    elif recipe["kind"] == "blocks":
        low = random.random_sample((batch, channels, -(-height // 32), -(-width // 32)))
        fine = random.random_sample((batch, channels, height, width))
        coarse = low.repeat(32, axis=2).repeat(32, axis=3)[:, :, :height, :width]
        values = 0.75 * coarse + 0.25 * fine
    else:
        raise GoldenError(f"unknown kind of input {recipe['kind']!r}")
    x = torch.from_numpy(values.astype(np.float32))
    check = recipe["check"]
    if distance(x.reshape(-1)[: len(check["first"])], check["first"]) > 1e-6:
        raise GoldenError(f"the input {recipe['label']!r} does not begin as the file says")
    return x


def summary(name: str, found: Tensor, stored: Mapping[str, Any], tolerance: float = RAW) -> Check:
    """Compare shape, mean, largest magnitude, leading and strided values of a tensor."""
    if list(found.shape) != stored["shape"]:
        return Check(f"{name}: shape {list(found.shape)}, not {stored['shape']}", float("inf"), tolerance)
    flat = found.reshape(-1)
    worst = max(
        distance(flat[: len(stored["first"])], stored["first"]),
        distance(flat[:: stored["step"]][: len(stored["strided"])], stored["strided"]),
        abs(float(flat.double().mean()) - stored["mean"]),
        abs(float(flat.abs().max()) - stored["abs_max"]),
    )
    return Check(name, worst, tolerance)


def macs_check(content: Mapping[str, Any], network: assemble.Network) -> Check:
    """Multiply-adds against the file, relative: within 2 %, since implementations may count attention differently."""
    _, _, height, width = content["macs"]["shape"]
    expected = content["macs"]["total"]
    return Check("macs, relative", abs(assemble.count_macs(network, height, width) - expected) / expected, 0.02)


# SSDLite


def check_ssdlite(content: Mapping[str, Any], entry: zoo.Entry) -> list[Check]:
    """Parameters, MACs, maps, raw outputs, anchors and detections."""
    network = assemble.build(entry)
    checks = [parameters_check(content, network), macs_check(content, network)]
    for case in content["cases"]:
        state = fill(content["keys"], content["salt"], case["gain"])
        weights.load(network, state, layouts.get("cvnets"))
        x = picture(case["input"])
        with torch.inference_mode():
            features = network.backbone(x)
            logits, deltas = network.head(features)
        label = case["name"]
        checks += [
            summary(f"{label}: stride 16", features[2], case["levels"]["os_16"]),
            summary(f"{label}: stride 32", features[3], case["levels"]["os_32"]),
            summary(f"{label}: class logits", logits, case["class_logits"]),
            summary(f"{label}: box deltas", deltas, case["box_deltas"]),
            anchors_check(f"{label}: anchors", case["anchors"], (x.shape[2], x.shape[3])),
        ]
        if label == "lively":
            for stored in case["detections"]:
                found = detect(
                    content["source"]["flavour"], stored["settings"], logits, deltas, (x.shape[2], x.shape[3])
                )
                checks += compare_detections(f"{label}: {_text(stored['settings'])}", found, stored)
    return checks


def check_postprocess(content: Mapping[str, Any]) -> list[Check]:
    """Anchors and detections on synthetic head outputs; no network."""
    if content["source"]["project"] != "ml-cvnets":
        raise GoldenError(f"no post-processing of {content['source']['project']} is here")
    checks = [
        anchors_check(f"anchors for {stored['image']}", stored, tuple(stored["image"]), maps=stored["grids"])
        for stored in content["anchors"]
    ]
    size = tuple(content["image"])
    for result in content["results"]:
        for case in result["cases"]:
            logits, deltas = synthetic(case)
            found = detect(content["source"]["flavour"], result["settings"], logits, deltas, size)
            checks += compare_detections(f"{case['kind']}: {_text(result['settings'])}", found, case)
    return checks


def synthetic(case: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Head outputs that need no network: logits [1, A, C], deltas [1, A, 4]; the recipe is in the files."""
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
    if list(found.shape) != stored["shape"]:
        return Check(f"{name}: shape", float("inf"), ANCHORS)
    if "all" in stored:
        return Check(name, distance(found, stored["all"]), ANCHORS)
    worst = max(
        distance(found[: len(stored["first"])], stored["first"]),
        distance(found[-len(stored["last"]) :], stored["last"]),
        distance(found[:: stored["step"]][: len(stored["strided"])], stored["strided"]),
        distance(found.double().sum(dim=0) / found.shape[0], np.asarray(stored["sum"]) / found.shape[0]),
    )
    return Check(name, worst, ANCHORS)


def detect(flavour: str, settings: Mapping[str, Any], logits: Tensor, deltas: Tensor, size: tuple[int, ...]) -> Found:
    """Detections of the first picture, by the policy of the flavour; labels count the background as 0."""
    height, width = size
    if flavour == "v01":  # unbounded, hence not part of an archive; the definition the fixed-shape one rests on
        maps = map_sizes(height=height, width=width, pooled_last=True)
        anchors = make_anchors(levels=cvnets_levels(), maps=maps, height=height, width=width, clamp=True)
        found, scores, labels = boxes.detections_by_class(
            boxes.decode(deltas[0], anchors, log_size_low=-math.inf, log_size_high=math.inf),
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


def _text(settings: Mapping[str, Any]) -> str:
    return "detections above " + str(settings["conf_threshold"])


def compare_detections(name: str, found: Found, stored: Mapping[str, Any]) -> list[Check]:
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
    possible = (overlap > SAME_BOX_IOU) & (expected_labels[:, None] == found.labels[None, :])
    gap = (expected_scores[:, None] - found.scores[None, :]).abs().masked_fill(~possible, float("inf"))
    best, partner = gap.min(dim=1)
    matched = torch.isfinite(best)
    box_gap = (expected - found.boxes[partner]).abs()[matched]
    return [
        count,
        labels,
        Check(f"{name}: rows without partner", int((~matched).sum()), 0),
        Check(f"{name}: scores", float(best[matched].max()) if bool(matched.any()) else 0.0, SCORES),
        Check(f"{name}: boxes", float(box_gap.max()) if bool(matched.any()) else 0.0, BOXES),
    ]


# DeepLabv3


def check_deeplabv3(content: Mapping[str, Any], entry: zoo.Entry) -> list[Check]:
    """Parameters, MACs, maps, logits at both resolutions, class maps, and both at the size of an original picture."""
    model = content["model"]
    align_corners = str(model.get("upsample", "")).endswith("align_corners true")
    head = zoo.DeepLabV3Head(
        form="cvnets", width=model["aspp_channels"], rates=tuple(model["aspp_rates"]), align_corners=align_corners
    )
    network = assemble.build(dataclasses.replace(entry, output_stride=model["output_stride"], head=head))
    checks = [parameters_check(content, network, model.get("aux_parameters", 0)), macs_check(content, network)]
    layout = layouts.get("transformers" if content["source"]["project"] == "transformers" else "cvnets")
    for case in content["cases"]:
        state = fill(content["keys"], content["salt"], case["gain"])
        weights.load(network, state, layout)
        x = picture(case["input"])
        checks += _check_segmentation(case, network, x, align_corners)
    return checks


def _check_segmentation(
    case: Mapping[str, Any], network: assemble.Network, x: Tensor, align_corners: bool
) -> list[Check]:
    seen: list[Tensor] = []
    hook = network.head.get_submodule("fuse").register_forward_hook(lambda _m, _i, output: seen.append(output))
    with torch.inference_mode():
        features = network.backbone(x)
        low = network.head(features)
    hook.remove()
    label, lively = case["name"], case["name"] == "lively"
    checks = [
        summary(f"{label}: encoder", features[3], case["encoder_out"]),
        summary(f"{label}: pyramid", seen[0], case["aspp_out"]),
        summary(f"{label}: logits", low, case["logits_low"]),
    ]
    height, width = x.shape[2:]
    up = upsample(low, height=height, width=width, align_corners=align_corners)
    if "logits_up" in case:
        checks.append(summary(f"{label}: enlarged logits", up, case["logits_up"]))
    if "class_map" in case and lively:
        found = class_map(low, height=height, width=width, align_corners=align_corners)
        checks.append(class_map_check(f"{label}: class map", found[0], case["class_map"]))
    original = case["at_original"]
    height, width = original["size"]
    if original["how"].startswith("upsampled logits resized with nearest"):
        sized = F.interpolate(up, size=[height, width], mode="nearest")
    elif original["how"].startswith("low-resolution logits resized bilinear"):
        sized = upsample(low, height=height, width=width, align_corners=align_corners)
    else:
        raise GoldenError(f"unknown way to the original size: {original['how']!r}")
    checks.append(summary(f"{label}: logits at the original size", sized, original["logits"]))
    if lively:
        found = sized[0].argmax(dim=0).to(torch.uint8)
        checks.append(class_map_check(f"{label}: class map at the original size", found, original["class_map"]))
    return checks


def class_map_check(name: str, found: Tensor, stored: Mapping[str, Any]) -> Check:
    """Share of unequal pixels between a class map uint8 [H, W] and the stored runs (of a subsampled map if long)."""
    runs = stored.get("rle")
    if runs is None:
        row_step, column_step = stored["sample_steps"]
        found, runs = found[::row_step, ::column_step], stored["sample_rle"]
    classes, lengths = torch.tensor(runs).unbind(dim=1)
    expected = torch.repeat_interleave(classes, lengths)
    if expected.numel() != found.numel():
        return Check(f"{name}: shape", float("inf"), PIXELS_UNEQUAL)
    return Check(name, float((expected != found.reshape(-1)).float().mean()), PIXELS_UNEQUAL)
