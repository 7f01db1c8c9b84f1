"""Weights: reading checkpoint files, loading them strictly, seeded random ones, and the digest that names them.

In: a file of any origin, or a state dict. Out: a network that holds exactly those weights, or a `CheckpointError`
that lists everything that does not fit. Never executes code from a file (`weights_only`), and never loads in part.
"""

import argparse
import hashlib
import pickle
import re
import warnings
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from model_store import layouts
from model_store.errors import CheckpointError

# Where training tools keep the weights inside a larger dict: OpenMMLab and many others, timm, EMO (whose averaged
# weights, the ones it publishes, stand beside the last ones).
_CONTAINER_KEYS = ("state_dict", "state_dict_ema", "model", "net_E", "net", "model_state_dict")
_LISTED = 8  # names shown per kind of mismatch


def read_file(path: Path) -> dict[str, Tensor]:
    """Read a `.safetensors`, or a `.pt`, `.pth` or `.bin` file, onto the CPU.

    A dict that keeps the weights under one of the usual keys (`state_dict`, ...) is unwrapped, and a leading `module.`
    on every key (DistributedDataParallel) removed. Raises `CheckpointError` for everything else.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError, ValueError) as error:
            raise CheckpointError(f"{path}: not a readable safetensors file ({error})") from error
    if path.suffix not in {".pt", ".pth", ".bin"}:
        raise CheckpointError(f"{path}: unknown kind of file; .safetensors, .pt, .pth and .bin are read")
    try:
        # Training scripts keep their options, a plain Namespace, beside the weights.
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore")  # about pickle protocols
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a dozen unrelated types for broken files; all mean the same to us
        raise CheckpointError(f"{path}: {_unreadable(error)}") from error
    return _state_of(content, path)


def _unreadable(error: Exception) -> str:
    """What torch could not read, in one line, and never its advice to load the file unsafely."""
    if isinstance(error, pickle.UnpicklingError):
        wanted = re.search(r"\bGLOBAL ([\w.]+)", str(error))
        if wanted:
            return f"would run code when loaded ({wanted[1]}); only files of plain tensors are read"
        return "not a file of plain tensors"
    message = str(error).strip().partition("\n")[0].partition(". ")[0]
    return f"truncated or damaged ({type(error).__name__}{f': {message}' if message else ''})"


def _state_of(content: Any, path: Path) -> dict[str, Tensor]:
    for key in _CONTAINER_KEYS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    if not isinstance(content, dict) or not content:
        raise CheckpointError(f"{path}: holds {type(content).__name__}, not a dict of tensors")
    strangers = [str(key) for key, value in content.items() if not (isinstance(key, str) and isinstance(value, Tensor))]
    if strangers:
        raise CheckpointError(f"{path}: these entries are not named tensors: {_shown(strangers)}")
    if all(key.startswith("module.") for key in content):
        return {key.removeprefix("module."): value for key, value in content.items()}
    return dict(content)


def _shown(names: list[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def _is_counter(name: str) -> bool:
    return name.endswith(".num_batches_tracked")  # read in training only; some projects do not store it


def load(network: nn.Module, state_dict: Mapping[str, Tensor], layout: layouts.Layout) -> None:
    """Load a checkpoint under the names of `layout` into `network`, all of it or nothing.

    Raises `CheckpointError` with every missing name, unexpected name, wrong shape and non-finite tensor.
    """
    try:
        native = layouts.to_native(state_dict, layout)
    except ValueError as error:
        raise CheckpointError(f"the checkpoint does not follow layout {layout.name!r}: {error}") from error
    own = network.state_dict()
    missing = tuple(name for name in own if name not in native and not _is_counter(name))
    unexpected = tuple(name for name in native if name not in own)
    shapes = tuple(
        (name, tuple(native[name].shape), tuple(own[name].shape))
        for name in own
        if name in native and native[name].shape != own[name].shape
    )
    infinite = [name for name in native if not bool(torch.isfinite(native[name]).all())]
    faults = []
    if missing:
        faults.append(f"{len(missing)} missing: {_shown(list(missing))}")
    if unexpected:
        faults.append(f"{len(unexpected)} unexpected: {_shown(list(unexpected))}")
    if shapes:
        listed = [f"{name} is {list(theirs)}, needs {list(ours)}" for name, theirs, ours in shapes]
        faults.append(f"{len(shapes)} of wrong shape: {_shown(listed)}")
    if infinite:
        faults.append(f"{len(infinite)} hold NaN or infinity: {_shown(infinite)}")
    if faults:
        message = f"the checkpoint (layout {layout.name!r}) does not fit: " + "; ".join(faults)
        raise CheckpointError(message, missing=missing, unexpected=unexpected, shapes=shapes)
    with torch.no_grad():
        for name, value in own.items():
            if name in native:
                value.copy_(native[name])


def random_(network: nn.Module, seed: int) -> None:
    """Fill `network` with reproducible random weights that keep a signal alive from the first layer to the last.

    Each tensor depends on the seed and its own name only, and is drawn by numpy's frozen legacy generator, so that a
    seed means the same weights on every machine. The scheme (fan-in scaling, norms near identity) is that of the
    `lively` cases of tests/parity/golden with gain 1.4 instead of 1.5, at which the scores of the smallest detector
    are all 1: outputs depend on the picture, and spread. Two families add up more than their norms take back, so that
    with 1.4 numbers grow by orders of magnitude: SwiftFormer's layer scales (`scale...`) are drawn small, and the
    blocks of Mobile-Former (`blocks`), whose activations multiply by up to 2, with gain 1.1.
    """
    state = network.state_dict()
    with torch.no_grad():
        for name, value in state.items():
            if not value.is_floating_point():
                value.zero_()
                continue
            shape = tuple(value.shape)
            noise = np.random.RandomState(zlib.crc32(f"{seed}/{name}".encode())).standard_normal(shape)
            leaf = name.rpartition(".")[2]
            if leaf == "running_var":
                drawn = 1.0 + 0.1 * np.abs(noise)
            elif leaf in {"running_mean", "bias"}:
                drawn = 0.1 * noise
            elif leaf.startswith("scale"):
                drawn = 0.2 + 0.02 * noise
            elif len(shape) >= 2:
                gain = 1.1 if name.startswith("backbone.blocks.") else 1.4
                drawn = gain * noise / np.sqrt(np.prod(shape[1:]))
            else:
                drawn = 1.0 + 0.1 * noise
            value.copy_(torch.from_numpy(np.asarray(drawn, dtype=np.float32)))


def digest(state_dict: Mapping[str, Tensor]) -> str:
    """Sha256 (hex) over names, dtypes, shapes and bytes of all tensors, whatever their order and device."""
    total = hashlib.sha256()
    for name in sorted(state_dict):
        value = state_dict[name].detach().cpu().contiguous()
        total.update(f"{name}\n{value.dtype}\n{list(value.shape)}\n".encode())
        total.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()
