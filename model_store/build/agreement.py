"""Agreement: how far a module's answers in bfloat16 are those in float32, on pictures drawn here.

In: a module as it is saved in an archive. Out: an `Agreement` for its card, or an `ExportError` where the module cannot
be run: it is tried in both dtypes, with one picture and with several. The module is cast, laid out and frozen as
`handlers.torchscript` does it in a worker. The pictures are the scenes of `model_store.demo.dataset`, so no picture is
read from disk. The task compares two sets of answers (`TaskContract.compare`).

Convolutions and matrix products of the bfloat16 run are computed as units for bfloat16 compute them: exact products,
sums in float32, one rounding of the result. Processors without such units would take up to ten times as long, and the
figures, which are part of the card, would depend on the processor.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from handlers import torchscript
from handlers.contract.card import Agreement, InputSize
from model_store.build.errors import ExportError
from model_store.demo import dataset
from model_store.networks.tasks.base import Answers, TaskContract

BATCHES = (1, 2, 3)  # a batch of one takes other ways through a network than one of several
_SEED = 16


def pictures(size: InputSize, count: int) -> NDArray[np.uint8]:
    """Drawn scenes, squashed to a model's input: uint8 [count, H, W, 3]; the same on every call."""
    scenes = [dataset.draw(seed=_SEED, split="held_out", index=index, kind="scene") for index in range(count)]
    wanted = (size.width, size.height)
    return np.stack([np.asarray(scene.picture().resize(wanted, Image.Resampling.BILINEAR)) for scene in scenes])


def measure(contract: TaskContract, load: Callable[[], torch.jit.ScriptModule], *, size: InputSize) -> Agreement:
    """Run a module in both dtypes and compare the answers. `load` returns the module anew on every call.

    Raises `ExportError` where it cannot be run, or where a batch has not one row per picture.
    """
    pixels = torch.from_numpy(pictures(size, max(contract.compared_pictures, *BATCHES)))
    full = _tried(_as_served(load(), torch.float32), pixels, contract)
    with _Bfloat16Units():  # type: ignore[no-untyped-call]
        half = _tried(_as_served(load(), torch.bfloat16), pixels, contract)
    return contract.compare(full, half)


def _tried(module: torch.jit.ScriptModule, pixels: Tensor, contract: TaskContract) -> Answers:
    """Run batches of several sizes; the answers to the pictures that are compared. Raises `ExportError`."""
    answers: Answers = {}
    for count in sorted({*BATCHES, contract.compared_pictures}):
        try:
            answers = answer(module, pixels[:count], contract.outputs)
        except RuntimeError as error:
            height, width = pixels.shape[1:3]
            reason = [line.strip() for line in str(error).splitlines() if line.strip()][-1:]
            raise ExportError(
                f"the module cannot run a batch of {count} at {width}x{height}: {''.join(reason)}"
            ) from error
        rows = {len(output) for output in answers.values()}
        if rows != {count}:
            raise ExportError(f"the module answers a batch of {count} with {sorted(rows)} rows")
    return {name: output[: contract.compared_pictures] for name, output in answers.items()}


def answer(module: torch.jit.ScriptModule, pixels: Tensor, names: tuple[str, ...]) -> Answers:
    """Run a frozen module once on uint8 [N, H, W, 3]; its outputs by name, N rows each."""
    # The optimising executor would compile twice for this one call.
    with torch.inference_mode(), torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
        return {name: output.numpy() for name, output in zip(names, module(pixels), strict=True)}


def _as_served(module: torch.jit.ScriptModule, dtype: torch.dtype) -> Any:
    """The module as a worker prepares it on a CPU."""
    frozen: Any = torchscript.prepare(module, torch.device("cpu"), dtype)
    torch._C._jit_pass_inline(frozen.graph)  # the plain executor finds no methods in a frozen module
    return frozen


_aten = torch.ops.aten
_PRODUCTS = {
    _aten.conv2d.default, _aten.convolution.default, _aten.linear.default, _aten.matmul.default, _aten.mm.default,
    _aten.addmm.default, _aten.bmm.default,
}  # fmt: skip


class _Bfloat16Units(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Compute products of bfloat16 tensors in float32, and round the result once."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Return False. To skip this mode, torch would import its compiler, which takes seconds."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Compute one operation of the run."""
        if func not in _PRODUCTS or args[0].dtype is not torch.bfloat16:
            return func(*args, **(kwargs or {}))
        wide = [value.float() if isinstance(value, Tensor) else value for value in args]
        return func(*wide, **(kwargs or {})).to(torch.bfloat16)
