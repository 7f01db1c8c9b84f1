"""A network to train, with the number of classes and the input of a definition. See docs/your-model.md.

In: a definition file. Out: a `Trainable` with plain PyTorch modules. What `network.state_dict()` holds after the
training is a checkpoint that the same definition builds. This module never trains.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from model_store import zoo
from model_store.build import assemble, fitting
from model_store.definition import read
from model_store.definition.errors import DefinitionError
from model_store.definition.resolve import base_of, resolve
from model_store.demo import checkpoints
from model_store.networks.pixels import Pixels
from model_store.weights import container
from model_store.weights import load as weights
from model_store.weights.errors import CheckpointError


@dataclass(frozen=True)
class Trainable:
    """What a training script needs.

    Attributes:
        network: float [N, 3, H, W] to the raw outputs of the head: logits [N, K] of a classifier, (class logits, box
            deltas) of a detector, logits [N, K, h, w] of a segmenter.
        pixels: uint8 [N, H, W, 3] RGB to the input of the network; the served module begins with it.
        labels: in class order.
        width: of the input, pixels.
        height: of the input, pixels.

    """

    network: nn.Module
    pixels: nn.Module
    labels: tuple[str, ...]
    width: int
    height: int


def trainable(definition: str | Path, *, start: str | Path | Literal["demo"] | None = None) -> Trainable:
    """Make the network of a definition file, in eval mode. The file's checkpoint need not exist yet.

    Args:
        definition: the file.
        start: weights to begin with: a checkpoint of the base with any number of classes and in any layout, such as one
            that `models pull` fetched; `demo` for those that come with the project. Tensors whose shape depends on the
            classes stay fresh. None: all are fresh (random).

    Raises `DefinitionError`, `CheckpointError`.

    """
    meant, _ = read.read(Path(definition))
    entry = resolve(meant, None).entry
    if meant.labels is None:
        raise DefinitionError(f"{definition}: give labels, so that the number of classes is known")
    network = assemble.build(entry)
    if start is not None:
        _begin(network, base_of(meant), start)
    pixels = Pixels(normalize=entry.normalize)
    return Trainable(network, pixels, entry.labels.names, entry.input.width, entry.input.height)


def _begin(network: nn.Module, base: zoo.ModelSpec, start: str | Path) -> None:
    """Copy what fits whatever the classes are."""
    native = _demo(base) if start == "demo" else _of_file(base, Path(start))
    own = network.state_dict()
    with torch.no_grad():
        for name, value in own.items():
            if name in native and native[name].shape == value.shape:
                value.copy_(native[name])


def _demo(base: zoo.ModelSpec) -> dict[str, torch.Tensor]:
    """The committed weights of the same backbone. Raises `CheckpointError` where there are none."""
    for entry in zoo.ENTRIES:
        if (
            entry.committed
            and entry.task is base.task
            and entry.family == base.family
            and entry.variant == base.variant
        ):
            return checkpoints.read(entry.name)
    have = ", ".join(f"{each.family} {each.variant} {each.task.value}" for each in zoo.ENTRIES if each.committed)
    raise CheckpointError(f"{base.name} has no demo weights; there are those of {have}")


def _of_file(base: zoo.ModelSpec, path: Path) -> dict[str, torch.Tensor]:
    state = container.read(path).state
    found = fitting.recognised(state, base, None)
    return dict(weights.to_native(state, found.layout))
