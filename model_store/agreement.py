"""Agreement: how far a module's answers in bfloat16 are those in float32, on pictures drawn here.

In: a module as it is saved in an archive. Out: an `Agreement` for its card. The module is cast, laid out and frozen as
`handlers.runtime` does it in a worker, and no picture is read from disk: the scenes of `model_store.demo.dataset` need
no file beside this package.

Convolutions and matrix products of the bfloat16 run are done as units for bfloat16 do them: exact products, sums in
float32, one rounding of the result. Processors without such units would take up to ten times as long, and the figures,
which are part of the card, would depend on the processor.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from handlers import runtime
from model_store.boxes import box_iou
from model_store.card import Agreement, InputSize, Task
from model_store.demo import dataset

# A picture of a classifier is one comparison, one of a segmenter many thousands, and costs ten times as much.
PICTURES: Mapping[Task, int] = MappingProxyType({Task.CLASSIFY: 8, Task.DETECT: 4, Task.SEGMENT: 2})
SAME_BOX_IOU = 0.5
_SEED = 16

Answers = dict[str, NDArray[Any]]  # the module's outputs by name, as its card declares them


def pictures(size: InputSize, count: int) -> NDArray[np.uint8]:
    """Drawn scenes, squashed to a model's input: uint8 [count, H, W, 3]; the same on every call."""
    scenes = [dataset.draw(seed=_SEED, split="held_out", index=index, kind="scene") for index in range(count)]
    wanted = (size.width, size.height)
    return np.stack([np.asarray(scene.picture().resize(wanted, Image.Resampling.BILINEAR)) for scene in scenes])


def measure(
    task: Task, load: Callable[[], torch.jit.ScriptModule], *, names: tuple[str, ...], size: InputSize
) -> Agreement:
    """Run a module in both dtypes and compare what it answers; `load` gives it anew on every call.

    `names` are those of its outputs.
    """
    pixels = torch.from_numpy(pictures(size, PICTURES[task]))
    full = answer(_as_served(load(), torch.float32), pixels, names)
    with _Bfloat16Units():  # type: ignore[no-untyped-call]
        half = answer(_as_served(load(), torch.bfloat16), pixels, names)
    return compare(task, full, half)


def answer(module: torch.jit.ScriptModule, pixels: Tensor, names: tuple[str, ...]) -> Answers:
    """Run a frozen module once, uint8 [N, H, W, 3] in."""
    # The optimising executor would compile twice for this one call.
    with torch.inference_mode(), torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
        return {name: output.numpy() for name, output in zip(names, module(pixels), strict=True)}


def compare(task: Task, full: Answers, half: Answers) -> Agreement:
    """Compare the answers to some pictures in float32, `full`, with those in bfloat16."""
    if task is Task.CLASSIFY:
        return _labels(full, half)
    return _boxes(full, half) if task is Task.DETECT else _class_maps(full, half)


def _as_served(module: torch.jit.ScriptModule, dtype: torch.dtype) -> Any:
    """As a worker prepares it on a CPU."""
    frozen: Any = runtime.prepare(module, torch.device("cpu"), dtype)
    torch._C._jit_pass_inline(frozen.graph)  # the plain executor finds no methods in a frozen module
    return frozen


def _labels(full: Answers, half: Answers) -> Agreement:
    best = full["labels"][:, :1]  # [N, 1]
    again = np.where(half["labels"] == best, half["scores"], 0.0).max(axis=1)  # [N]; 0 where it is not answered
    return Agreement(
        metric="top1",
        pictures=len(best),
        agreement=float((half["labels"][:, :1] == best).mean()),
        score_max_abs_diff=float(np.abs(again - full["scores"][:, 0]).max()),
    )


def _boxes(full: Answers, half: Answers) -> Agreement:
    found = total = worst = 0.0
    for picture, count in enumerate(full["counts"]):
        rows, others = slice(0, int(count)), slice(0, int(half["counts"][picture]))
        scores, other_scores = full["scores"][picture, rows], half["scores"][picture, others]
        corners = [torch.from_numpy(answers["boxes"][picture]) for answers in (full, half)]
        overlap = box_iou(corners[0][rows], corners[1][others]).numpy()  # [rows, others]
        same_label = full["labels"][picture, rows, None] == half["labels"][picture, others]
        left = np.where(same_label & (overlap >= SAME_BOX_IOU), overlap, 0.0)
        for row, score in enumerate(scores.tolist()):  # best first; each box of the other answer is a partner once
            total += score  # one by one, as `found`: sums rounded otherwise would make a share above 1
            partner = int(left[row].argmax()) if left.shape[1] else -1
            if partner >= 0 and left[row, partner] > 0:
                left[:, partner] = 0.0
                found += score
                worst = max(worst, abs(score - float(other_scores[partner])))
    agreement = found / total if total else float(not half["counts"].any())
    return Agreement(metric="boxes", pictures=len(full["counts"]), agreement=agreement, score_max_abs_diff=worst)


def _class_maps(full: Answers, half: Answers) -> Agreement:
    confidence = np.abs(full["confidence"].astype(np.int16) - half["confidence"].astype(np.int16))
    return Agreement(
        metric="class_map",
        pictures=len(full["classes"]),
        agreement=float((full["classes"] == half["classes"]).mean()),
        score_max_abs_diff=float(confidence.max()) / 255.0,
    )


_aten = torch.ops.aten
_PRODUCTS = {
    _aten.conv2d.default, _aten.convolution.default, _aten.linear.default, _aten.matmul.default, _aten.mm.default,
    _aten.addmm.default, _aten.bmm.default,
}  # fmt: skip


class _Bfloat16Units(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Compute products of bfloat16 tensors in float32, and round the result once."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Answer no: to be told to skip it, torch would import its compiler, which takes seconds."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """See the class."""
        if func not in _PRODUCTS or args[0].dtype is not torch.bfloat16:
            return func(*args, **(kwargs or {}))
        wide = [value.float() if isinstance(value, Tensor) else value for value in args]
        return func(*wide, **(kwargs or {})).to(torch.bfloat16)
