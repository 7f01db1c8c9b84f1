"""Networks of timm and transformers as TorchScript files, and their own answers. Runs as a program of its own.

`python foreign_frameworks.py FOLDER` reads `FOLDER/NAME.npy` of the networks below, float32 [N, 3, H, W], and writes
`NAME_HOW.pt` for each way to save, and `NAME_logits.npy`. Weights are random, with a fixed seed.
"""

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

CLASSES = 7
TIMM = ("mobilenetv3_small_100", "edgenext_xx_small", "mobilevitv2_050")
TRANSFORMERS = {"mobilevit": "MobileViTForImageClassification", "deeplabv3": "MobileViTForSemanticSegmentation"}
# timm's MobileViTv2 has a method that torch.jit.script cannot save; transformers' models cannot be scripted.
WAYS = {
    "mobilenetv3_small_100": ("trace", "script"),
    "edgenext_xx_small": ("trace", "script"),
    "mobilevitv2_050": ("trace",),
    "mobilevit": ("trace", "trace_dict"),
    "deeplabv3": ("trace", "trace_dict"),
}
SIZES = {"mobilevit": (256, 256), "deeplabv3": (256, 256)}  # width, height; others 256 x 192


def main(folder: Path) -> None:
    # torchvision's own operators do not load beside a torch for the CPU; only their names are needed.
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    for name, ways in WAYS.items():
        x = torch.from_numpy(np.load(folder / f"{name}.npy"))
        network = prepared(timm_network(name) if name in TIMM else transformers_network(TRANSFORMERS[name]), x)
        with torch.inference_mode():
            answer = network(x)
        np.save(folder / f"{name}_logits.npy", getattr(answer, "logits", answer).numpy())
        for way in ways:
            save(network, x, way, folder / f"{name}_{way}.pt")


def timm_network(name: str) -> nn.Module:
    import timm  # noqa: PLC0415 - an environment of its own has it

    torch.manual_seed(0)
    return timm.create_model(name, pretrained=False, num_classes=CLASSES)


def transformers_network(name: str) -> nn.Module:
    import transformers  # noqa: PLC0415 - an environment of its own has it

    torch.manual_seed(0)
    sizes = {"hidden_sizes": [64, 80, 96], "neck_hidden_sizes": [16, 16, 24, 48, 64, 80, 320]}  # MobileViT-XXS
    config = transformers.MobileViTConfig(num_labels=CLASSES, expand_ratio=2.0, **sizes)
    return getattr(transformers, name)(config)


def prepared(network: nn.Module, x: torch.Tensor) -> nn.Module:
    """Random weights whose answers differ between pictures: fresh networks of transformers answer almost nothing."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the mean of all batches, here of one
    network.train()
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.eval()
    with torch.no_grad():
        network(x)
    return network.eval()


def save(network: Any, x: torch.Tensor, way: str, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if hasattr(network, "config"):
            network.config.return_dict = way == "trace_dict"
        make: Callable[[], Any] = {
            "trace": lambda: torch.jit.trace(network, x),
            "trace_dict": lambda: torch.jit.trace(network, x, strict=False),
            "script": lambda: torch.jit.script(network),
        }[way]
        torch.jit.save(make(), path)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
