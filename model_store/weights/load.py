"""Weights: load a state dict strictly, draw random weights, compute the digest.

In: named tensors, as `container` reads them from a file. Out: a network that holds exactly those weights, or a
`CheckpointError` that lists everything that does not fit. Never loads in part.
"""

import hashlib
import zlib
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from model_store.weights import layouts
from model_store.weights.errors import CheckpointError, listed

_LISTED = 8  # names shown per kind of mismatch
_GAINS = {"backbone.blocks.": 1.1, "head.fpn.": 0.5}  # of random weights, by the beginning of the name; see `random_`


def is_counter(name: str) -> bool:
    """Whether a tensor is a counter of batches: checkpoints may lack it."""
    return name.endswith(".num_batches_tracked")  # used in training only; some projects do not store it


def to_native(state: Mapping[str, Tensor], layout: layouts.Layout) -> dict[str, Tensor]:
    """A checkpoint under our names, its parts joined. Raises `ValueError` where two keys meet or a part is missing."""
    renamed: dict[str, Tensor] = {}
    parts: dict[str, dict[int, Tensor]] = {}
    for key, value in state.items():
        name = layouts.rename(key, layout)
        if name is None:
            continue
        whole, mark, index = name.partition("#")
        if mark:
            parts.setdefault(whole, {})[int(index)] = value
        elif name in renamed:
            raise ValueError(f"two keys of the checkpoint, one of them {key!r}, both mean {name!r}")
        else:
            renamed[name] = value
    for whole, pieces in parts.items():
        if whole in renamed or sorted(pieces) != [0, 1, 2]:  # query, key, value: the only split there is
            raise ValueError(f"{whole!r} needs parts 0, 1 and 2 and nothing else; found {sorted(pieces)}")
        renamed[whole] = torch.cat([pieces[i] for i in sorted(pieces)], dim=0)
    return renamed


def load(network: nn.Module, state_dict: Mapping[str, Tensor], layout: layouts.Layout) -> None:
    """Load a checkpoint under the names of `layout` into `network`, all of it or nothing.

    Raises `CheckpointError` with every missing name, unexpected name, wrong shape and non-finite tensor.
    """
    try:
        native = to_native(state_dict, layout)
    except ValueError as error:
        raise CheckpointError(f"the checkpoint does not follow layout {layout.name!r}: {error}") from error
    own = network.state_dict()
    missing = tuple(name for name in own if name not in native and not is_counter(name))
    unexpected = tuple(name for name in native if name not in own)
    shapes = tuple(
        (name, tuple(native[name].shape), tuple(own[name].shape))
        for name in own
        if name in native and native[name].shape != own[name].shape
    )
    kinds = [
        f"{name} is {str(native[name].dtype).removeprefix('torch.')}"
        for name in own
        if name in native and own[name].is_floating_point() and not native[name].is_floating_point()
    ]
    # Not of other shapes: a few bytes may state a tensor of terabytes, with strides of zero.
    fitting = [name for name in native if name in own and native[name].shape == own[name].shape]
    infinite = [name for name in fitting if not bool(torch.isfinite(native[name]).all())]
    faults = []
    if missing:
        faults.append(f"{len(missing)} missing: {listed(missing, _LISTED)}")
    if unexpected:
        faults.append(f"{len(unexpected)} unexpected: {listed(unexpected, _LISTED)}")
    if shapes:
        wrong = [f"{name} is {list(theirs)}, needs {list(ours)}" for name, theirs, ours in shapes]
        faults.append(f"{len(shapes)} of wrong shape: {listed(wrong, _LISTED)}")
    if kinds:
        faults.append(f"{len(kinds)} of wrong dtype, needs floating point: {listed(kinds, _LISTED)}")
    if infinite:
        faults.append(f"{len(infinite)} hold NaN or infinity: {listed(infinite, _LISTED)}")
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
    `lively` cases of tests/parity/golden with gain 1.4: outputs depend on the picture, and spread. With gain 1.5 the
    scores of the smallest detector would all be 1. In two families, sums of residuals grow faster than the norms shrink
    them, so that with 1.4 numbers would grow by orders of magnitude. Therefore SwiftFormer's layer scales (`scale...`)
    are drawn small, and the blocks of Mobile-Former (`blocks`), whose activations multiply by up to 2, have gain 1.1. A
    feature pyramid (`fpn`) has no activation and adds levels up, so it has gain 0.5.
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
                gain = next((own for start, own in _GAINS.items() if name.startswith(start)), 1.4)
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
