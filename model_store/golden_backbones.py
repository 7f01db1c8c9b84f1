"""Comparison of a backbone with its classifier against a golden file (`family`, `variant`, `cases`).

In: the content of a golden file. Out: a list of `Check`. The weights are filled in under the official names and go
through `model_store.layouts` and `model_store.weights`, so that the loader is tested too. A file of a family or with a
case that is not here is a `GoldenError`, never skipped.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from model_store import assemble, layouts, weights, zoo
from model_store.golden import Check, GoldenError, distance, draw, fill, parameters_check

SHARE_OF_STD = 5e-5  # backbones: largest difference allowed, as a share of the stored standard deviation
DOUBLE_RELATIVE = 1e-9  # backbones in float64, relative to the largest value


@dataclass(frozen=True)
class Family:
    """How the golden files of one backbone family name things: key layout, and official module path -> ours.

    Taps named in `token_first` are stored as (token, picture, width), where ours are (picture, token, width).
    """

    layout: str
    taps: Mapping[str, str]
    token_first: frozenset[str] = frozenset()


FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "mobilevit": Family(
            layout="cvnets",
            taps={
                "conv_1": "backbone.stem",
                **{f"layer_{i}": f"backbone.stages.{i - 1}" for i in range(1, 6)},
                "conv_1x1_exp": "head.expand",
            },
        ),
        "emo": Family(
            layout="emo",
            taps={
                "stage0.1": "backbone.entry",
                **{f"stage{i}.{j}": f"backbone.stages.{i - 1}.{j}" for i in range(1, 5) for j in range(9)},
                "norm": "head.norm",
            },
        ),
        "swiftformer": Family(
            layout="swiftformer",
            taps={
                "patch_embed": "backbone.stem",
                **{f"network.{2 * i}": f"backbone.stages.{i}" for i in range(4)},
                "norm": "head.norm",
            },
        ),
        "mobileformer": Family(
            layout="mobileformer",
            taps={
                "stem": "backbone.stem",
                **{f"features.{i}": f"backbone.blocks.{i}" for i in range(12)},
                "local_global": "backbone.closing",
            },
            token_first=frozenset({"tokens", "tokens_final"}),
        ),
    }
)


def check_backbone(content: Mapping[str, Any]) -> list[Check]:
    """Parameters, logits, float64 logits and taps of every case of a backbone file."""
    name, variant = str(content["family"]), str(content["variant"])
    if name not in FAMILIES:
        raise GoldenError(f"no backbone family is called {name!r} here; there are {', '.join(FAMILIES)}")
    try:
        entry = zoo.get(f"{name}_{variant.lower()}_classify")
    except zoo.UnknownModel as error:
        raise GoldenError(f"the family {name!r} has no variant {variant!r}: {error}") from error
    family = FAMILIES[name]
    state = fill(content["state_dict"], content["salt"], content["gain"])
    checks = [parameters_check(content, assemble.build(entry))]
    for case in content["cases"]:
        network = assemble.build(_variation(entry, case["name"]))
        weights.load(network, state, layouts.get(family.layout))
        x = torch.from_numpy(draw(case["input_seed_string"], case["input_shape"]).astype(np.float32))
        checks += _check_case(case, network, x, family)
    return checks


def _variation(entry: zoo.Entry, case: str) -> zoo.Entry:
    """The entry as the case changes it: `output_stride_16` and `window_10` say their change, the others have none."""
    if case.startswith("output_stride_"):
        return dataclasses.replace(entry, output_stride=int(case.removeprefix("output_stride_")))
    if case.startswith("window_"):
        return dataclasses.replace(entry, window=int(case.removeprefix("window_")))
    if case == "first_release":
        return dataclasses.replace(entry, attention="ones")
    if case in {"square", "wide", "odd"}:
        return entry
    raise GoldenError(f"{entry.family} has no case {case!r} here")


def _check_case(case: Mapping[str, Any], network: nn.Module, x: Tensor, family: Family) -> list[Check]:
    seen: dict[str, Tensor] = {}
    hooks = []
    for tap in case["taps"]:
        path, output = _module_and_output(tap["module"])
        module = network.get_submodule(family.taps[path])
        hooks.append(module.register_forward_hook(_recorder(seen, tap["module"], output)))
    with torch.inference_mode():
        logits = network(x)
    for hook in hooks:
        hook.remove()
    checks = []
    for tap in case["taps"]:
        found = seen[tap["module"]]
        if tap["name"] in family.token_first:
            found = found.transpose(0, 1)  # (N, T, D) -> (T, N, D)
        flat = found.reshape(-1)
        worst = float("inf")
        if list(found.shape) == tap["shape"]:
            step = max(1, flat.numel() // 64)
            worst = max(distance(flat[:64], tap["first64"]), distance(flat[::step][:64], tap["strided64"]))
        checks.append(Check(f"{case['name']}: {tap['name']}, share of std", worst / tap["std"], SHARE_OF_STD))
    if "logits" in case:
        stored = case["logits"]
        same_shape = list(logits.shape) == stored["shape"]
        worst = distance(logits, stored["values"]) if same_shape else float("inf")
        checks.append(Check(f"{case['name']}: logits, share of std", worst / stored["std"], SHARE_OF_STD))
        with torch.inference_mode():
            double = network.double()(x[:1].double()).reshape(-1)[:32]  # those stored are of the first picture
        largest = max(abs(value) for value in stored["float64_first32"])
        worst = distance(double, stored["float64_first32"]) / largest
        checks.append(Check(f"{case['name']}: logits in float64, relative", worst, DOUBLE_RELATIVE))
    return checks


def _module_and_output(text: str) -> tuple[str, int]:
    """Path of the official module, and which of its outputs is meant: `features.8 (output 1)` -> (features.8, 1)."""
    path, _, output = text.removesuffix(")").partition(" (output ")
    return path, int(output or 0)


def _recorder(seen: dict[str, Tensor], name: str, output: int) -> Callable[[nn.Module, Any, Any], None]:
    def record(_module: nn.Module, _inputs: Any, answer: Any) -> None:
        tensor: Tensor = answer[output] if isinstance(answer, tuple) else answer
        seen[name] = tensor.clone()  # an in-place activation further on must not change what was seen

    return record
