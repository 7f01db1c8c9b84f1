"""Comparison of DeepLabv3 models against golden files.

In: the content of a golden file and its entry. Out: a list of `Check`. The files of ml-cvnets (with transformers) and
of EMO's mmsegmentation use different names.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from model_store import zoo
from model_store.build import assemble
from model_store.networks.heads.deeplabv3 import upsample
from model_store.networks.tasks.segment import class_map
from model_store.verify.golden import Check, GoldenError, fill, macs_check, parameters_check, picture, summary
from model_store.weights import layouts
from model_store.weights import load as weights

PIXELS_UNEQUAL = 1e-3


def check_deeplabv3(content: Mapping[str, Any], entry: zoo.ModelSpec) -> list[Check]:
    """Parameters, MACs, maps, logits at both resolutions, class maps, and both at the size of an original picture."""
    model = content["model"]
    if "aspp_channels" in model:
        subject = _cvnets_variation(entry, model)
        layout = layouts.get("transformers" if content["source"]["project"] == "transformers" else "cvnets")
        elsewhere, checks = model.get("aux_parameters", 0), []
    else:
        subject = _mmseg_variation(entry, model)
        layout = layouts.get(entry.layout)
        elsewhere = content["parameters"] - content["parameters_without_aux"]
        checks = [Check("configuration of the zoo", float(subject != entry), 0)]
    network = assemble.build(subject)
    checks += [parameters_check(content, network, elsewhere), macs_check(content, network, subject)]
    for case in content["cases"]:
        state = fill(content["keys"], content["salt"], case["gain"])
        weights.load(network, state, layout)
        checks += _check_case(case, network, picture(case["input"]), subject)
    return checks


def _cvnets_variation(entry: zoo.ModelSpec, model: Mapping[str, Any]) -> zoo.ModelSpec:
    """The entry with the output stride and head of the file: later releases of ml-cvnets changed both."""
    align_corners = str(model.get("upsample", "")).endswith("align_corners true")
    head = zoo.DeepLabV3Head(
        form="cvnets", width=model["aspp_channels"], rates=tuple(model["aspp_rates"]), align_corners=align_corners
    )
    backbone = dataclasses.replace(entry.backbone, output_stride=model["output_stride"])
    return dataclasses.replace(entry, backbone=backbone, head=head)


def _mmseg_variation(entry: zoo.ModelSpec, model: Mapping[str, Any]) -> zoo.ModelSpec:
    """The entry as the file describes it; the rate of the first branch, a 1x1 convolution, is 1."""
    rates = tuple(model["dilations"][1:])
    head = zoo.DeepLabV3Head(form="mmseg", width=model["channels"], rates=rates, align_corners=False)
    backbone = zoo.EMOBackbone(
        variant=entry.variant, output_stride=model["output_stride"], window=model["window_sizes"][-1]
    )
    return dataclasses.replace(entry, backbone=backbone, head=head)


def _check_case(case: Mapping[str, Any], network: assemble.Network, x: Tensor, entry: zoo.ModelSpec) -> list[Check]:
    seen: list[Tensor] = []
    hook = network.head.get_submodule("fuse").register_forward_hook(lambda _m, _i, output: seen.append(output))
    with torch.inference_mode():
        features = network.backbone(x)
        low = network.head(features)
    hook.remove()
    if not isinstance(entry.head, zoo.DeepLabV3Head):
        raise GoldenError(f"this is a bug: {entry.name} has no DeepLabv3")
    align_corners = entry.head.align_corners
    label, lively = case["name"], case["name"] == "lively"
    if "backbone_out" in case:
        checks = [
            summary(f"{label}: backbone, map {index}", features[index], stored)
            for index, stored in enumerate(case["backbone_out"])
        ]
        checks.append(summary(f"{label}: pyramid", seen[0], case["bottleneck_out"]))
    else:
        checks = [
            summary(f"{label}: encoder", features[3], case["encoder_out"]),
            summary(f"{label}: pyramid", seen[0], case["aspp_out"]),
        ]
    checks.append(summary(f"{label}: logits", low, case["logits_low"]))
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
    elif original["how"].startswith("low -> network input size -> original size, both bilinear"):
        sized = upsample(up, height=height, width=width, align_corners=align_corners)
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
