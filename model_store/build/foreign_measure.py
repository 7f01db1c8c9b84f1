"""Run a served module that was not written here, and compare its answers: finite, repeatable, row by row.

In: a `Subject` and pictures, uint8 [N, H, W, 3]. Out: largest differences, or `Refused`.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from handlers.contract.card import Task
from model_store.build import parity
from model_store.build.foreign_report import Report, reason
from model_store.networks.tasks.base import TaskContract
from model_store.networks.tasks.classify import CLASSIFY
from model_store.networks.tasks.detect import DETECT
from model_store.networks.tasks.segment import SEGMENT

CONTRACTS: dict[Task, TaskContract] = {contract.task: contract for contract in (CLASSIFY, DETECT, SEGMENT)}
LIMIT = 1e-3  # of the largest output, and of a score
_TINY = 1e-6  # of the largest logit
LEAST_AGREEMENT = 0.99  # of answers that are in another order, because two of them are almost equal


@dataclass(frozen=True)
class Subject:
    """The module under test.

    Attributes:
        task: what it answers.
        served: takes uint8 [N, H, W, 3], returns the outputs of the task.
        raw: whether `served` has the submodules `pixels` and `network`, where `network` returns logits.
        form: the form that was found, in words.
        classes: number of labels.
        options: how the network's answers are read, by name.

    """

    task: Task
    served: nn.Module
    raw: bool
    form: str
    classes: int
    options: dict[str, str | int | float | bool] = field(default_factory=dict)


def run(module: Any, pixels: Tensor) -> list[Tensor]:
    """The outputs of a served module for uint8 [N, H, W, 3]."""
    with torch.inference_mode():
        answers = module(pixels)
    return [answers] if isinstance(answers, Tensor) else list(answers)


def check_answers(subject: Subject, pixels: Tensor, report: Report) -> None:
    """Check the answers to uint8 [N, H, W, 3]: finite, scores in 0..1, labels with a name. Raises `Refused`."""
    answers = _named(subject, run(subject.served, pixels))
    raw = parity.raw_outputs(subject.served, pixels) if subject.raw else list(answers.values())
    if not all(bool(torch.isfinite(tensor).all()) for tensor in raw):
        report.refuse("finite", "outputs are NaN or infinite", "check mean, std and the training")
    if "scores" in answers and not bool(((answers["scores"] >= 0) & (answers["scores"] <= 1)).all()):
        report.refuse("scores", "some are outside 0..1", "return probabilities, such as logits.sigmoid()")
    labels = answers["classes"] if subject.task is Task.SEGMENT else answers["labels"]
    highest = int(labels.max()) if labels.numel() else 0
    if highest >= subject.classes or int(labels.min()) < 0:
        report.refuse("labels", f"it answers class {highest}; there are {subject.classes} labels", "add the labels")
    largest = max(float(tensor.abs().max()) for tensor in raw)
    if subject.raw and largest < _TINY:
        report.note(
            "finite", f"largest output {largest:.3g}, almost nothing: is it trained, and are mean and std right?"
        )
    else:
        report.held("finite", f"largest output {largest:.3g}")


def check_determinism(subject: Subject, pixels: Tensor, report: Report) -> None:
    """Check that two runs on uint8 [N, H, W, 3] give equal bits. Raises `Refused`."""
    first, second = run(subject.served, pixels), run(subject.served, pixels)
    if not all(torch.equal(a, b) for a, b in zip(first, second, strict=True)):
        report.refuse(
            "determinism",
            "two runs on the same pictures differ",
            "save it in eval mode (model.eval() before trace or script: dropout), without random numbers",
        )
    report.held("determinism", "two runs are equal, bit for bit")


def check_rows(subject: Subject, pixels: Tensor, report: Report) -> float:
    """Check that a picture alone answers as in the batch, uint8 [N, H, W, 3]. Raises `Refused`."""
    name = "rows of a batch"
    together = _compared(subject, subject.served, pixels)
    try:
        alone = [_compared(subject, subject.served, pixels[row : row + 1]) for row in range(len(pixels))]
    except Exception as error:  # noqa: BLE001 - torch raises many unrelated types
        report.refuse(name, f"a picture alone fails ({reason(error)})", "save it in eval mode, with any batch size")
    rows = [torch.cat(parts) for parts in zip(*alone, strict=True)]
    worst = _difference(subject, together, rows)
    if worst is None:
        report.refuse(
            name,
            "a picture alone gets another answer than in a batch",
            "save it in eval mode (batch norm), and let no step mix pictures or assume a batch size",
        )
    report.held(name, f"a picture alone and in a batch differ by {worst:.2g} at most")
    return worst


def distance(subject: Subject, first: Any, second: Any, pixels: Tensor, report: Report, name: str) -> float:
    """The largest difference of two forms of the module on uint8 [N, H, W, 3]. Raises `Refused` beyond rounding."""
    worst = _difference(subject, _compared(subject, first, pixels), _compared(subject, second, pixels))
    if worst is None:
        report.refuse(name, "the answers change", "simplify the module; a script in place of a trace may help")
    return worst


def answers_distance(subject: Subject, found: list[Tensor], pixels: Tensor, report: Report, name: str) -> float:
    """The largest difference of `found` and the module's answers to uint8 [N, H, W, 3]. Raises `Refused`."""
    worst = _answers_difference(subject, run(subject.served, pixels), found)
    if worst is None:
        report.refuse(name, "the answers change", "report this; run workers in float32 meanwhile")
    return worst


def _compared(subject: Subject, module: Any, pixels: Tensor) -> list[Tensor]:
    """What is compared: logits where the module has them, because the order of classes says nothing of the size."""
    return parity.raw_outputs(module, pixels) if subject.raw else run(module, pixels)


def _difference(subject: Subject, first: list[Tensor], second: list[Tensor]) -> float | None:
    """The largest difference, None where it is more than rounding."""
    if not subject.raw:
        return _answers_difference(subject, first, second)
    if any(a.shape != b.shape for a, b in zip(first, second, strict=True)):
        return None
    worst = parity.difference(first, second)
    return worst if worst <= LIMIT * max(1.0, *(float(tensor.abs().max()) for tensor in first)) else None


def _answers_difference(subject: Subject, first: list[Tensor], second: list[Tensor]) -> float | None:
    """The largest difference of answers: in order, or where the order differs, of scores of the same things."""
    if any(a.shape != b.shape or a.dtype != b.dtype for a, b in zip(first, second, strict=True)):
        return None
    in_order = parity.difference(first, second)
    if in_order <= LIMIT:
        return in_order
    one, other = (
        {key: value.numpy() for key, value in _named(subject, answers).items()} for answers in (first, second)
    )
    found = CONTRACTS[subject.task].compare(one, other)
    # A cell's confidence has steps of 1/255.
    limit = LIMIT if subject.task is not Task.SEGMENT else 1.5 / 255
    close = found.agreement >= LEAST_AGREEMENT and found.score_max_abs_diff <= limit
    return found.score_max_abs_diff if close else None


def _named(subject: Subject, answers: list[Tensor]) -> dict[str, Tensor]:
    return dict(zip(CONTRACTS[subject.task].outputs, answers, strict=True))
