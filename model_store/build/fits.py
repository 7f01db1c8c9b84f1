"""Whether a model can be built and run at its input size, found without computing: shapes suffice.

In: an entry, before weights are read. Out: nothing, or an `ExportError` of one line that says which options or sizes
work. `model_store.build.agreement` runs the finished module on pictures, in every dtype that a worker may choose.
"""

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

import torch
from torch import nn

from handlers.contract.card import InputSize, Task
from model_store import zoo
from model_store.build import assemble
from model_store.build.agreement import BATCHES
from model_store.build.errors import ExportError
from model_store.networks.heads.detections import Detections
from model_store.networks.heads.retinanet_detections import RetinaNetDetections
from model_store.networks.tasks.detect import ServedDetector

MOST_CLASSES = {Task.SEGMENT: 256}  # a class map has bytes
_STEP_PX = 32
_NEAREST = 2  # sizes named in the message
_REACH = 2  # steps to each side that are tried


def check(entry: zoo.ModelSpec) -> None:
    """Raise `ExportError` where the options of an entry do not go together, or its input size cannot be run."""
    most = MOST_CLASSES.get(entry.task)
    if most is not None and entry.classes > most:
        raise ExportError(f"a class map has at most {most} classes, and there are {entry.classes} labels")
    try:
        with torch.device("meta"):
            network = assemble.build(entry)
    except ValueError as error:
        raise ExportError(f"{entry.name} cannot be built: {error}") from error
    reason = _fault(entry, network, entry.input)
    if reason is None:
        return
    working = (size for size in _near(entry.input) if _fault(entry, network, size) is None)
    nearest = list(islice(working, _NEAREST))
    works = " or ".join(f"{size.width}x{size.height}" for size in nearest)
    remedy = f"; what works is {works}" if works else "; no size near it works either"
    raise ExportError(f"the input {entry.input.width}x{entry.input.height} does not work: {reason}{remedy}")


def _fault(entry: zoo.ModelSpec, network: nn.Module, size: InputSize) -> str | None:
    """Why batches of this size cannot be run, None where they can."""
    try:
        for count in BATCHES:
            with torch.inference_mode():
                raw = network(torch.empty(count, 3, size.height, size.width, device="meta"))
    except (RuntimeError, ValueError) as error:
        return str(error).partition("\n")[0]
    if entry.task is not Task.DETECT:
        return None
    try:
        served = assemble.served(replace(entry, input=size), network)
    except ValueError as error:
        return str(error)
    detections = served.postprocess.detections if isinstance(served, ServedDetector) else None
    if isinstance(detections, Detections | RetinaNetDetections):
        anchors, predicted = sum(detections.level_sizes), raw[0].shape[1]
        if anchors != predicted:
            return f"the head predicts {predicted} boxes, and there are {anchors} anchors"
    return None


def _near(size: InputSize) -> Iterator[InputSize]:
    """Sizes whose sides are multiples of 32, from the nearest on."""

    def sides(length: int) -> list[int]:
        middle = round(length / _STEP_PX)
        return [_STEP_PX * step for step in range(middle - _REACH, middle + _REACH + 1) if 1 <= step <= 128]

    pairs = [(width, height) for width in sides(size.width) for height in sides(size.height)]
    for width, height in sorted(pairs, key=lambda pair: abs(pair[0] - size.width) + abs(pair[1] - size.height)):
        yield InputSize(width=width, height=height)
