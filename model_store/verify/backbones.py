"""Comparison of a backbone with its classifier against a golden file (`family`, `variant`, `cases`).

In: the content of a golden file. Out: a list of `Check`. The weights are filled in under the official names and go
through `model_store.weights`, so that the loader is tested too. The registered backbone has the names that the official
code gives to its parts (`OfficialCode`). What a case changes of the network is read from its fields: arguments of the
official constructor, or a known note. The name of a case means nothing. A file of an unknown family, or an argument
that is not known here, is a `GoldenError`, never skipped.
"""

import dataclasses
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from model_store import zoo
from model_store.build import assemble
from model_store.networks.backbones.base import OfficialCode
from model_store.networks.backbones.registry import backbone_of, families
from model_store.verify.golden import SHARE_OF_STD, Check, GoldenError, distance, draw, fill, parameters_check
from model_store.weights import layouts
from model_store.weights import load as weights

DOUBLE_RELATIVE = 1e-9  # the same in float64, relative to the largest value

_ARGUMENT = re.compile(r"constructor argument (\w+)=(\[[\d, ]+\]|\d+)")  # in the note of a case


def check_backbone(content: Mapping[str, Any]) -> list[Check]:
    """Parameters, logits, float64 logits and taps of every case of a backbone file.

    Raises `GoldenError` for an unknown family, variant or constructor argument.
    """
    name, variant = str(content["family"]), str(content["variant"])
    if name not in families():
        raise GoldenError(f"no backbone family is called {name!r} here; there are {', '.join(families())}")
    try:
        entry = zoo.get(f"{name}_{variant.lower()}_classify")
    except zoo.UnknownModel as error:
        raise GoldenError(f"the family {name!r} has no variant {variant!r}: {error}") from error
    official = backbone_of(entry).official
    state = fill(content["state_dict"], content["salt"], content["gain"])
    checks = [parameters_check(content, assemble.build(entry))]
    for case in content["cases"]:
        network = _build(_variation(entry, official, case), case)
        weights.load(network, state, layouts.get(official.layout))
        x = torch.from_numpy(draw(case["input_seed_string"], case["input_shape"]).astype(np.float32))
        checks += _check_case(case, network, x, official)
    return checks


def _variation(entry: zoo.ModelSpec, official: OfficialCode, case: Mapping[str, Any]) -> zoo.ModelSpec:
    """The entry with the options of the backbone that the fields of a case change."""
    options = {field.name for field in dataclasses.fields(entry.backbone)}
    note = str(case.get("note", ""))
    arguments = {name: json.loads(value) for name, value in _ARGUMENT.findall(note)}
    arguments |= case.get("constructor", {})
    changed: dict[str, Any] = {}
    for text, meant in official.notes.items():
        if text in note:
            changed |= meant
    for name, value in arguments.items():
        option = official.arguments.get(name, name)
        if option not in options:
            raise GoldenError(f"case {case['name']!r}: {entry.family} has no constructor argument {name!r} here")
        changed[option] = value[-1] if isinstance(value, list) else value  # one for each stage: the last has attention
    try:
        return dataclasses.replace(entry, backbone=dataclasses.replace(entry.backbone, **changed))
    except TypeError as error:
        raise GoldenError(f"case {case['name']!r}: {error}") from error


def _build(entry: zoo.ModelSpec, case: Mapping[str, Any]) -> assemble.Network:
    try:
        return assemble.build(entry)
    except ValueError as error:
        raise GoldenError(f"case {case['name']!r}: {error}") from error


def _check_case(case: Mapping[str, Any], network: nn.Module, x: Tensor, official: OfficialCode) -> list[Check]:
    seen: dict[str, Tensor] = {}
    hooks = []
    for tap in case["taps"]:
        path, output = _module_and_output(tap["module"])
        module = network.get_submodule(official.taps[path])
        hooks.append(module.register_forward_hook(_recorder(seen, tap["module"], output)))
    with torch.inference_mode():
        logits = network(x)
    for hook in hooks:
        hook.remove()
    checks = []
    for tap in case["taps"]:
        found = seen[tap["module"]]
        if tap["name"] in official.token_first:
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
    """Path of the official module, and the number of its output: `features.8 (output 1)` -> (features.8, 1)."""
    path, _, output = text.removesuffix(")").partition(" (output ")
    return path, int(output or 0)


def _recorder(seen: dict[str, Tensor], name: str, output: int) -> Callable[[nn.Module, Any, Any], None]:
    def record(_module: nn.Module, _inputs: Any, answer: Any) -> None:
        tensor: Tensor = answer[output] if isinstance(answer, tuple) else answer
        seen[name] = tensor.clone()  # an in-place activation further on must not change what was seen

    return record
