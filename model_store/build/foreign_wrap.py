"""From a TorchScript network that was not written here to a served module.

In: the network, what the user said about it, and pictures, uint8 [N, H, W, 3]. Out: a `Subject`, or `Refused` with the
remedy. The network is run to see what it returns.
"""

from typing import Any

import torch
from torch import Tensor, nn

from handlers.contract.card import Normalize, Task
from model_store.build import foreign_forms as forms
from model_store.build.foreign_detect import MOST_BOXES, FixedRows, ServedBoxes, read_boxes
from model_store.build.foreign_measure import CONTRACTS, Subject
from model_store.build.foreign_report import Report, Wish, reason
from model_store.networks.pixels import Pixels
from model_store.networks.tasks.classify import ServedClassifier
from model_store.networks.tasks.segment import ServedSegmenter

MOST_CLASSES = 256  # of a class map: one byte per pixel
_OUTPUT = "output"
_BATCH = (
    "batch size",
    "script it (torch.jit.script), or trace it with x.size(0) kept free: write flatten(1) and reshape(x.size(0), ...)",
)
# [N, K] sums to 1 up to rounding.
_PROBABILITY_SLACK = 1e-3


def wrapped(
    module: torch.jit.ScriptModule, wish: Wish, normalize: Normalize, pixels: Tensor, report: Report
) -> Subject:
    """The served module around a network, or the module itself where it is one, seen on uint8 [N, H, W, 3].

    Raises `Refused`.
    """
    network = _network(module, report)
    if network is module and _keeps_contract(module, wish.task, pixels):
        if wish.normalize_given:
            report.refuse(
                "input", "it takes uint8 pictures and normalises them itself", "leave out --mean, --std and --channels"
            )
        report.held("input", "uint8 [N, H, W, 3]: it is a served module already, with its normalisation inside")
        report.held(_OUTPUT, f"{', '.join(CONTRACTS[wish.task].outputs)}, as {wish.task.value} needs them")
        return Subject(wish.task, module, raw=False, form="served", classes=wish.classes)
    stage = Pixels(normalize=normalize)
    answer = _answer(network, stage(pixels), report)
    if wish.task is Task.DETECT:
        return _detector(network, wish, stage, pixels, answer, report)
    return _dense(network, wish, stage, pixels, answer, report)


def _network(module: torch.jit.ScriptModule, report: Report) -> nn.Module:
    """The module with one argument, float [N, 3, H, W]."""
    try:
        arguments = module._c._get_method("forward").schema.arguments[1:]
    except RuntimeError:
        report.refuse("input", "the module has no forward", "save the network itself")
    needed = [each for each in arguments if not each.has_default_value()]
    if len(needed) > 1 or not arguments:
        names = ", ".join(each.name for each in needed) or "nothing"
        report.refuse("input", f"forward takes {names}", "forward must take one tensor [N, 3, H, W]")
    kind = arguments[0].type.str()
    if kind not in {"Tensor", "Tensor[]"}:
        report.refuse("input", f"forward takes {kind}", "forward must take one tensor [N, 3, H, W]")
    return module if kind == "Tensor" else forms.AsList(module)


def _keeps_contract(module: torch.jit.ScriptModule, task: Task, pixels: Tensor) -> bool:
    """Whether the module takes uint8 [N, H, W, 3] and returns the outputs of the task."""
    try:
        with torch.inference_mode():
            answers = module(pixels)
    except Exception:  # noqa: BLE001 - torch raises many unrelated types; a float network raises here
        return False
    count, height, width = pixels.shape[:3]
    wanted: dict[Task, list[tuple[torch.dtype, int]]] = {
        Task.CLASSIFY: [(torch.float32, 2), (torch.int32, 2)],
        Task.DETECT: [(torch.float32, 3), (torch.float32, 2), (torch.int32, 2), (torch.int32, 1)],
        Task.SEGMENT: [(torch.uint8, 3), (torch.uint8, 3)],
    }
    if not isinstance(answers, tuple) or not all(isinstance(part, Tensor) for part in answers):
        return False
    if [(part.dtype, part.dim()) for part in answers] != wanted[task] or any(part.size(0) != count for part in answers):
        return False
    return task is not Task.SEGMENT or tuple(answers[0].shape[1:]) == (height, width)


def _answer(network: nn.Module, x: Tensor, report: Report) -> Any:
    """What the network returns for N pictures. Raises `Refused` where it takes another N only."""
    try:
        answer = _run(network, x)
    except Exception as error:  # noqa: BLE001 - torch raises many unrelated types
        works = [count for count in (1, 2, 4, 8, 16) if _runs(network, x, count)]
        if works:
            report.refuse(_BATCH[0], f"it runs with {_numbers(works)} pictures, not with {len(x)}", _BATCH[1])
        size = f"{x.size(3)}x{x.size(2)}"
        report.refuse(
            "input",
            f"it fails on float [N, 3, H, W] of {size} ({reason(error)})",
            "give --input as it was traced, WIDTHxHEIGHT",
        )
    report.held("input", f"float [N, 3, {x.size(2)}, {x.size(3)}]{_as_list(network)}")
    sizes = _batch_sizes(answer)
    if sizes and len(x) not in sizes:
        found = f"{len(x)} pictures give answers for {_numbers(sorted(sizes))}"
        report.refuse(_BATCH[0], f"{found}: {forms.described(answer)}", _BATCH[1])
    report.held(_BATCH[0], "free")
    return answer


def _dense(network: nn.Module, wish: Wish, stage: Pixels, pixels: Tensor, answer: Any, report: Report) -> Subject:
    """A classifier or a segmenter: one tensor of logits."""
    rank, shape = (2, "[N, K]") if wish.task is Task.CLASSIFY else (4, "[N, K, h, w]")
    found = [each for each in forms.dense(network, answer, rank=rank) if each[1].size(0) == len(pixels)]
    if len(found) != 1:
        told = "nothing of that form" if not found else f"{len(found)} such tensors"
        report.refuse(
            _OUTPUT,
            f"{wish.task.value} needs logits {shape}; it returns {told}: {forms.described(answer)}",
            "return the logits alone, or in a dict as 'logits' or 'out'",
        )
    form, logits = found[0]
    if wish.task is Task.SEGMENT and logits.size(1) > MOST_CLASSES:
        report.refuse(_OUTPUT, f"{logits.size(1)} classes", f"a class map has {MOST_CLASSES} at most")
    first, last = _kept_classes(logits.size(1), wish, report)
    kept = logits[:, first:last].float()
    whole = logits.float()
    sums = whole.sum(dim=1)
    probabilities = bool((whole >= 0).all()) and bool(((sums - 1).abs() < _PROBABILITY_SLACK).all())
    what = f"{'probabilities' if probabilities else 'logits'} {['N', *logits.shape[1:]]}".replace("'", "")
    report.held(_OUTPUT, f"{form.name}, {what}")
    background = "" if kept.size(1) == logits.size(1) else f", the {wish.background} one is the background, left out"
    report.held("labels", f"{wish.classes} labels for {logits.size(1)} classes{background}")
    adapted = form.network
    if probabilities or kept.size(1) != logits.size(1):
        adapted = forms.Logits(adapted, first=first, last=last, probabilities=probabilities)
    options: dict[str, str | int | float | bool] = {"output": form.name, "probabilities": probabilities}
    if wish.background:
        options["background"] = wish.background
    if wish.task is Task.CLASSIFY:
        served: nn.Module = ServedClassifier(pixels=stage, network=adapted, classes=wish.classes)
    else:
        corners = bool(wish.align_corners)
        options["align_corners"] = corners
        served = ServedSegmenter(pixels=stage, network=adapted, align_corners=corners)
    return Subject(wish.task, served.eval(), raw=True, form=what.split()[0], classes=wish.classes, options=options)


def _kept_classes(found: int, wish: Wish, report: Report) -> tuple[int, int]:
    """The first class to keep and the one behind the last."""
    extra = 0 if wish.background in (None, "none") else 1
    if found != wish.classes + extra:
        remedy = "give one label per class, in class order"
        if found == 1:
            remedy = "return two classes: torch.cat([-x, x], dim=1) / 2 for a sigmoid of x"
        elif found == wish.classes + 1 and wish.task is Task.CLASSIFY:
            remedy = "give one label per class, or say --background first or last to leave it out"
        elif found == wish.classes + 1:
            remedy = "a segmenter's background is a class: give it a label too"
        report.refuse("labels", f"it has {found} classes, and there are {wish.classes} labels", remedy)
    return (1 if wish.background == "first" else 0), (found - 1 if wish.background == "last" else found)


def _detector(network: nn.Module, wish: Wish, stage: Pixels, pixels: Tensor, answer: Any, report: Report) -> Subject:
    """A detector: boxes, scores and labels in any of the usual forms."""
    form = forms.boxes(network, answer)
    if form is None:
        report.refuse(
            _OUTPUT,
            f"detect needs boxes, scores and labels; it returns {forms.described(answer)}",
            "return a list of dicts (boxes, scores, labels) per picture, or the three as tensors [N, M, ...]",
        )
    report.held(_OUTPUT, form.name)
    noise = torch.randint(0, 256, pixels.shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    reading = read_boxes(form.network, [stage(pixels), stage(noise)], wish, report)
    rows = wish.max_boxes or MOST_BOXES
    most = f"{rows} boxes per picture, zeros behind the last"
    report.held("padding", most + (f"; it returned {reading.most}, the best are kept" if reading.most > rows else ""))
    options: dict[str, str | int | float | bool] = {
        "output": form.name,
        "boxes": "pixels" if reading.in_pixels else "unit",
        "first_label": reading.first_label,
        "max_boxes": rows,
        "score_threshold": wish.score_threshold or 0.0,
    }
    fixed = FixedRows(
        form.network,
        rows=rows,
        classes=wish.classes,
        first_label=reading.first_label,
        in_pixels=reading.in_pixels,
        threshold=wish.score_threshold or 0.0,
    )
    served = ServedBoxes(pixels=stage, network=fixed).eval()
    return Subject(wish.task, served, raw=False, form="boxes", classes=wish.classes, options=options)


def _run(network: nn.Module, x: Tensor) -> Any:
    with torch.inference_mode():
        return network(x)


def _runs(network: nn.Module, x: Tensor, count: int) -> bool:
    repeated = x[:1].repeat(count, 1, 1, 1)
    try:
        return _batch_sizes(_run(network, repeated)) <= {count}
    except Exception:  # noqa: BLE001 - torch raises many unrelated types
        return False


def _batch_sizes(answer: Any) -> set[int]:
    """How many pictures an answer is for, by each of its tensors or by its list of pictures."""
    if isinstance(answer, Tensor):
        return {answer.size(0)} if answer.dim() else set()
    if isinstance(answer, dict):
        return set().union(*(_batch_sizes(part) for part in answer.values())) if answer else set()
    if isinstance(answer, tuple):
        return set().union(*(_batch_sizes(part) for part in answer)) if answer else set()
    return {len(answer)} if isinstance(answer, list) else set()


def _numbers(values: list[int]) -> str:
    return ", ".join(map(str, values))


def _as_list(network: nn.Module) -> str:
    return ", as a list of N pictures" if isinstance(network, forms.AsList) else ""
