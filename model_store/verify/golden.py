"""Golden files: outputs of the official code for weights that are regenerated from the names of its tensors.

This module holds what all formats share: reading, the recipes that fill weights and inputs, and the `Check` that every
comparison ends in. `model_store.verify.backbones`, `model_store.verify.detectors` and `model_store.verify.segmenters`
compare. `model_store.verify.heads` and `model_store.verify.run` choose between them. tests/parity/golden describes the
formats.
"""

import json
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from model_store import zoo
from model_store.build import assemble
from model_store.networks.backbones.registry import backbone_of

Array = npt.NDArray[np.float64]
RAW = 2e-4  # head files: largest absolute difference of raw outputs
SHARE_OF_STD = 5e-5  # largest difference allowed, as a share of the stored standard deviation


class GoldenError(Exception):
    """A golden file cannot be used: unreadable, of an unknown format, or of a model that is not in the zoo."""


@dataclass(frozen=True)
class Check:
    """One comparison. `difference` is the worst one found, in the unit of `tolerance`; infinity where shapes differ."""

    name: str
    difference: float
    tolerance: float

    @property
    def ok(self) -> bool:
        """Whether the difference is within the tolerance (NaN is not)."""
        return self.difference <= self.tolerance


def read(path: Path) -> dict[str, Any]:
    """Read a golden file. Raises `GoldenError`."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise GoldenError(f"{path}: not a readable JSON file ({error})") from error
    if not isinstance(content, dict):
        raise GoldenError(f"{path}: not a golden file")
    return content


def random_state(text: str) -> np.random.RandomState:
    """The generator named by `text`: the recipe of all golden files."""
    return np.random.RandomState(zlib.crc32(text.encode()))


def draw(text: str, shape: list[int]) -> Array:
    """Standard normal numbers of any shape, named by `text`."""
    numbers: Array = random_state(text).standard_normal(shape)
    return numbers


# Role of a tensor -> its value from the normal draw n, the gain, and the shape. The first group belongs to the backbone
# files, the second to the head files; `keep` (counters) is left out.
ROLES: Mapping[str, Callable[[Array, float, list[int]], Array]] = MappingProxyType(
    {
        "bnvar": lambda n, _gain, _shape: 0.01 * (1 + 0.1 * np.abs(n)),
        "small": lambda n, _gain, _shape: 0.1 * n,
        "scale": lambda n, _gain, _shape: 0.5 + 0.1 * n,
        "unit": lambda n, _gain, _shape: n,
        "fan": lambda n, gain, shape: n * np.sqrt(gain / np.prod(shape[1:])),
        "bnw": lambda n, _gain, _shape: 0.1 * (1 + 0.1 * n),
        "one": lambda n, _gain, _shape: 1 + 0.1 * n,
        "weight": lambda n, gain, shape: gain * n * np.sqrt(1.0 / (np.prod(shape) // shape[0])),
        "norm": lambda n, _gain, _shape: 1 + 0.1 * n,
        "bias": lambda n, _gain, _shape: 0.1 * n,
        "mean": lambda n, _gain, _shape: 0.1 * n,
        "var": lambda n, _gain, _shape: 1 + 0.1 * np.abs(n),
    }
)


def fill(
    rows: Iterable[tuple[str, list[int], str]], salt: str, gain: float, gains: Mapping[str, float] | None = None
) -> dict[str, Tensor]:
    """The state dict, under the official names, that `rows` of (key, shape, role) describe.

    `gains` maps beginnings of keys to a gain of their own; of several the longest counts. Raises `GoldenError` for an
    unknown role.
    """
    state = {}
    longest_first = sorted((gains or {}).items(), key=lambda item: -len(item[0]))
    for key, shape, role in rows:
        if role == "keep":
            state[key] = torch.zeros(shape, dtype=torch.int64)
        elif role in ROLES:
            own = next((value for beginning, value in longest_first if key.startswith(beginning)), gain)
            value = ROLES[role](draw(salt + key, shape), own, shape)
            state[key] = torch.from_numpy(np.asarray(value, dtype=np.float32))
        else:
            raise GoldenError(f"unknown fill rule {role!r} for {key}")
    return state


def parameters_check(content: Mapping[str, Any], network: nn.Module, elsewhere: int = 0) -> Check:
    """Learnable scalars against the file; `elsewhere` counts those of training-only parts that are not built here."""
    found = sum(p.numel() for p in network.parameters()) + elsewhere
    return Check("parameters", abs(found - int(content["parameters"])), 0)


def distance(found: Tensor, expected: object) -> float:
    """Largest absolute difference of tensors of any shape; infinity where the number of elements differs."""
    numbers = np.asarray(expected, dtype=np.float64).reshape(-1)
    ours: Array = found.detach().double().reshape(-1).numpy()
    if ours.shape != numbers.shape:
        return float("inf")
    return float(np.abs(ours - numbers).max()) if ours.size else 0.0


def picture(recipe: Mapping[str, Any]) -> Tensor:
    """The input that a recipe of a head file describes: float32 [N, C, H, W], as it enters the network.

    Raises `GoldenError` for an unknown recipe, or where the input does not begin as the file says.
    """
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
    if "mean" in recipe:  # per channel, in steps of 1/255
        mean, std = (torch.tensor(recipe[name]).view(1, -1, 1, 1) for name in ("mean", "std"))
        x = (x * 255 - mean) / std
    if "pad_to" in recipe:  # after that, with zeros at the bottom and right
        rows, columns = recipe["pad_to"]
        x = nn.functional.pad(x, [0, columns - width, 0, rows - height])
    check = recipe["check"]
    if distance(x.reshape(-1)[: len(check["first"])], check["first"]) > 1e-6:
        raise GoldenError(f"the input {recipe['label']!r} does not begin as the file says")
    return x


def summary(name: str, found: Tensor, stored: Mapping[str, Any], tolerance: float = RAW) -> Check:
    """Compare shape, mean, largest magnitude, leading and strided values of a tensor of any shape."""
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


def summary_of_std(name: str, found: Tensor, stored: Mapping[str, Any]) -> Check:
    """The comparison of `summary`, of a tensor [...] of any shape, as a share of the stored standard deviation."""
    check = summary(name, found, stored)
    return Check(f"{check.name}, share of std", check.difference / stored["std"], SHARE_OF_STD)


def macs_check(content: Mapping[str, Any], network: assemble.Network, entry: zoo.ModelSpec) -> Check:
    """Multiply-adds against the file, relative: within 2 %, since implementations may count attention differently."""
    _, _, height, width = content["macs"]["shape"]
    expected = content["macs"]["total"]
    extra = backbone_of(entry).official.extra_macs(network.backbone, height, width)
    found = assemble.count_macs(network, height, width) + extra
    return Check("macs, relative", abs(found - expected) / expected, 0.02)
