"""Comparison of Semantic FPN and PSPNet models against golden files.

In: the content of a golden file and its entry. Out: a list of `Check`. Maps and logits are compared as a share of their
standard deviation. Class maps are compared on the case `lively` only, as for DeepLabv3.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from model_store import zoo
from model_store.build import assemble
from model_store.networks.heads.deeplabv3 import upsample
from model_store.networks.heads.pspnet import PARTS
from model_store.verify.golden import (
    Check,
    GoldenError,
    fill,
    macs_check,
    parameters_check,
    picture,
    summary_of_std,
)
from model_store.verify.segmenters import class_map_check
from model_store.weights import layouts
from model_store.weights import load as weights

_HOW = "low -> network input size -> original size, both bilinear, align_corners false"


def check_semantic_fpn(content: Mapping[str, Any], entry: zoo.ModelSpec) -> list[Check]:
    """Parameters, MACs, the maps of every stage, logits at all resolutions, class maps."""
    model = content["model"]
    head = zoo.SemanticFPNHead(width=model["channels"], align_corners=model["align_corners"])
    attention = str(model["attention"]).partition(" ")[0]
    configured = head == entry.head and attention == getattr(entry.backbone, "attention", "")
    checks, network = _begin(content, entry, configured, elsewhere=0)
    seen: dict[str, Any] = {}
    stages = {"fpn": "fpn", "fused": "dropout", **{f"scale_heads {i}": f"branches.{i}" for i in range(4)}}
    for name, module in stages.items():
        network.head.get_submodule(module).register_forward_hook(_recorder(seen, name))
    for case in content["cases"]:
        features, low, x = _run(content, case, network, entry)
        label = case["name"]
        checks += _maps(f"{label}: backbone", features, case["backbone_out"])
        checks += _maps(f"{label}: pyramid", list(reversed(seen["fpn"])), case["fpn"])  # the file has fine to coarse
        checks += _maps(f"{label}: branch", [seen[f"scale_heads {i}"] for i in range(4)], case["scale_heads"])
        checks.append(summary_of_std(f"{label}: sum", seen["fused"], case["fused"]))
        checks += _answers(case, low, x)
    return checks


def check_pspnet(content: Mapping[str, Any], entry: zoo.ModelSpec) -> list[Check]:
    """Parameters, MACs, backbone maps, pooled maps, the fused map, logits at all resolutions, class maps."""
    model = content["model"]
    head = zoo.PSPNetHead(width=model["channels"], align_corners=model["align_corners"])
    backbone = zoo.EMOBackbone(
        variant=entry.variant, output_stride=model["output_stride"], window=model["window_sizes"][-1]
    )
    configured = (head, backbone) == (entry.head, entry.backbone) and model["pool_scales"] == list(PARTS)
    elsewhere = content["parameters"] - content["parameters_without_aux"]
    checks, network = _begin(content, entry, configured, elsewhere)
    seen: dict[str, Any] = {}
    for index in range(len(PARTS)):
        network.head.get_submodule(f"pools.{index}").register_forward_hook(_recorder(seen, f"pooled {index}"))
    network.head.get_submodule("fuse").register_forward_hook(_recorder(seen, "fuse"))
    for case in content["cases"]:
        features, low, x = _run(content, case, network, entry)
        label = case["name"]
        checks += _maps(f"{label}: backbone", features, case["backbone_out"])
        checks += _maps(f"{label}: pooled", [seen[f"pooled {index}"] for index in range(len(PARTS))], case["pooled"])
        checks.append(summary_of_std(f"{label}: fused", seen["fuse"], case["bottleneck_out"]))
        checks += _answers(case, low, x)
    return checks


def _begin(
    content: Mapping[str, Any], entry: zoo.ModelSpec, configured: bool, elsewhere: int
) -> tuple[list[Check], assemble.Network]:
    """The network of an entry, and the checks that need no run."""
    network = assemble.build(entry)
    checks = [
        Check("configuration of the zoo", float(not configured), 0),
        parameters_check(content, network, elsewhere),
        macs_check(content, network, entry),
    ]
    return checks, network


def _run(
    content: Mapping[str, Any], case: Mapping[str, Any], network: assemble.Network, entry: zoo.ModelSpec
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Load the weights of a case and run it: the backbone's maps, the logits, the input."""
    state = fill(content["keys"], content["salt"], case["gain"], case.get("gains"))
    weights.load(network, state, layouts.get(entry.layout))
    x = picture(case["input"])
    with torch.inference_mode():
        features = network.backbone(x)
        return features, network.head(features), x


def _maps(name: str, found: list[Tensor], stored: list[Mapping[str, Any]]) -> list[Check]:
    if len(found) != len(stored):
        return [Check(f"{name}: number of maps", float("inf"), 0)]
    return [summary_of_std(f"{name}, map {index}", found[index], each) for index, each in enumerate(stored)]


def _answers(case: Mapping[str, Any], low: Tensor, x: Tensor) -> list[Check]:
    """Logits at three resolutions, and the class map at that of the original picture. Raises `GoldenError`."""
    label, original = case["name"], case["at_original"]
    if not str(original["how"]).startswith(_HOW):
        raise GoldenError(f"unknown way to the original size: {original['how']!r}")
    up = upsample(low, height=x.shape[2], width=x.shape[3], align_corners=False)
    height, width = original["size"]
    sized = upsample(up, height=height, width=width, align_corners=False)
    checks = [
        summary_of_std(f"{label}: logits", low, case["logits_low"]),
        summary_of_std(f"{label}: enlarged logits", up, case["logits_up"]),
        summary_of_std(f"{label}: logits at the original size", sized, original["logits"]),
    ]
    if label == "lively":
        found = sized[0].argmax(dim=0).to(torch.uint8)
        checks.append(class_map_check(f"{label}: class map at the original size", found, original["class_map"]))
    return checks


def _recorder(seen: dict[str, Any], name: str) -> Any:
    def record(_module: nn.Module, _inputs: Any, output: Any) -> None:
        seen[name] = output

    return record
