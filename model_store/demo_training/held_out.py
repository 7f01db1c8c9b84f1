"""Scores on held-out pictures, measured in this process, as a training run prints them.

In: an entry and a network with its weights in place. Out: scores in 0..1. Pictures are drawn from the held-out split,
decoded from their JPEG, and squashed as the gateway does it. The exported module answers them, and the answers are
mapped back to each picture's own pixels. `mobilevision eval` measures the same through a running service.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import nn

from model_store import zoo
from model_store.build import assemble
from model_store.demo import dataset
from model_store.demo_training.pool import squash
from model_store.demo_training.scores import Answer
from model_store.demo_training.tasks import DEMO_TASKS

_BATCH = 8


def measure(
    entry: zoo.ModelSpec,
    network: assemble.Network,
    *,
    pictures: int,
    seed: int,
    advance: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Score a network on the first `pictures` held-out pictures; `advance` is called after each.

    Returns:
        top1 and top5 (classify), map and map50 (detect; needs pycocotools), miou and pixel_accuracy (segment).

    """
    module = assemble.served(entry, network)
    return DEMO_TASKS[entry.task].score(_answers(entry, module, pictures, seed, advance))


def _answers(
    entry: zoo.ModelSpec, module: nn.Module, pictures: int, seed: int, advance: Callable[[], None]
) -> Iterator[Answer]:
    kind = DEMO_TASKS[entry.task].kind
    for start in range(0, pictures, _BATCH):
        indices = range(start, min(start + _BATCH, pictures))
        scenes = [dataset.draw(seed=seed, split="held_out", index=index, kind=kind) for index in indices]
        pixels = torch.from_numpy(np.stack([squash(scene.picture(), entry.input.width) for scene in scenes]))
        with torch.inference_mode():
            outputs = [output.numpy() for output in module(pixels)]
        for position, scene in enumerate(scenes):
            yield scene, [output[position] for output in outputs]
            advance()
