"""What every task defines, so that the build path treats all tasks alike.

A served module is the whole TorchScript module of an archive. It takes uint8 [N, H, W, 3] RGB at the model's input size
and returns a tuple of tensors with N rows each, in the order of `TaskContract.outputs`. It is made of three submodules,
and its `forward` is nothing but `postprocess(pixels, *network(pixels_module(pixels)))`:

* `pixels` (`networks.pixels.Pixels`): uint8 [N, H, W, 3] to the network's input, float [N, 3, H, W];
* `network` (backbone and head): that input to one tensor or a tuple of tensors, the raw outputs, N rows each;
* `postprocess`: the uint8 pictures (for their size alone) and the raw outputs, as separate arguments, to the outputs.

The parity figures need the first two. A worker runs the three by themselves where another engine than TorchScript
computes `network` (`handlers.openvino_network`); it runs a module without `postprocess` as a whole, in TorchScript.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from handlers.contract.card import Agreement, Task

Answers = dict[str, NDArray[Any]]  # the outputs of a served module by name


@dataclass(frozen=True)
class TaskContract:
    """The outputs of a task's served module, and how their agreement between two dtypes is measured.

    Attributes:
        task: the task.
        outputs: names of the outputs, as the model card declares them.
        compared_pictures: how many pictures the agreement is measured on.
        compare: (outputs in float32, outputs in bfloat16) to the agreement.

    """

    task: Task
    outputs: tuple[str, ...]
    compared_pictures: int
    compare: Callable[[Answers, Answers], Agreement]
