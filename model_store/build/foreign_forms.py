"""The form of what a network returns, and modules that bring every form to that of a task.

In: a TorchScript network for float [N, 3, H, W], and its answer for a few pictures. Out: a network that returns logits
[N, K], logits [N, K, h, w], or one tuple (boxes, scores, labels) per picture.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

_PREFERRED = ("logits", "out")  # of several entries that fit: transformers' and torchvision's names
_ROW = 6  # numbers of a box in one tensor: four corners, score, label


class AsList(nn.Module):
    """For a network that takes a list of pictures [3, H, W], as torchvision's detectors do."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor):  # type: ignore[no-untyped-def]
        """Take [N, 3, H, W]."""
        return self.network(list(x.unbind(0)))


class Element(nn.Module):
    """One element of the tuple that a network returns."""

    index: Final[int]

    def __init__(self, network: nn.Module, index: int) -> None:
        super().__init__()
        self.network = network
        self.index = index

    def forward(self, x: Tensor):  # type: ignore[no-untyped-def]
        """Take [N, 3, H, W]."""
        return self.network(x)[self.index]


class Entry(nn.Module):
    """One entry of the dict that a network returns."""

    def __init__(self, network: nn.Module, key: str) -> None:
        super().__init__()
        self.network = network
        self.key = key

    def forward(self, x: Tensor) -> Tensor:
        """Take [N, 3, H, W]."""
        found: Tensor = self.network(x)[self.key]
        return found


class Logits(nn.Module):
    """Classes first: drops the background, and turns probabilities into logits.

    `first` and `last` are the classes to keep, `last` excluded. The result is a tensor as `network` returns it,
    [N, classes, ...].
    """

    def __init__(self, network: nn.Module, *, first: int, last: int, probabilities: bool) -> None:
        super().__init__()
        self.network = network
        self.first = first
        self.last = last
        self.probabilities = probabilities

    def forward(self, x: Tensor) -> Tensor:
        """Take [N, 3, H, W]."""
        found: Tensor = self.network(x)[:, self.first : self.last]
        if self.probabilities:  # the softmax of their logarithm is the probabilities again
            found = found.float().clamp(min=1e-30).log()
        return found


class FromDicts(nn.Module):
    """A list of dicts `boxes`, `scores`, `labels`, one per picture, as torchvision's detectors return it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Take [N, 3, H, W], return one tuple per picture."""
        answer: list[tuple[Tensor, Tensor, Tensor]] = []
        for one in self.network(x):
            answer.append((one["boxes"], one["scores"], one["labels"]))
        return answer


class FromTuples(nn.Module):
    """A list of tuples, one per picture."""

    boxes: Final[int]
    scores: Final[int]
    labels: Final[int]

    def __init__(self, network: nn.Module, *, boxes: int, scores: int, labels: int) -> None:
        super().__init__()
        self.network = network
        self.boxes = boxes
        self.scores = scores
        self.labels = labels

    def forward(self, x: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Take [N, 3, H, W], return one tuple per picture."""
        answer: list[tuple[Tensor, Tensor, Tensor]] = []
        for one in self.network(x):
            answer.append((one[self.boxes], one[self.scores], one[self.labels]))
        return answer


class FromBatch(nn.Module):
    """A tuple of tensors for all pictures: boxes [N, M, 4], scores [N, M], labels [N, M]."""

    boxes: Final[int]
    scores: Final[int]
    labels: Final[int]

    def __init__(self, network: nn.Module, *, boxes: int, scores: int, labels: int) -> None:
        super().__init__()
        self.network = network
        self.boxes = boxes
        self.scores = scores
        self.labels = labels

    def forward(self, x: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Take [N, 3, H, W], return one tuple per picture."""
        found = self.network(x)
        boxes, scores, labels = found[self.boxes], found[self.scores], found[self.labels]
        answer: list[tuple[Tensor, Tensor, Tensor]] = []
        for row in range(boxes.size(0)):
            answer.append((boxes[row], scores[row], labels[row]))
        return answer


class FromCountedBatch(nn.Module):
    """As `FromBatch`, with the number of boxes of each picture, [N] or [N, 1], in another tensor."""

    boxes: Final[int]
    scores: Final[int]
    labels: Final[int]
    counts: Final[int]

    def __init__(self, network: nn.Module, *, boxes: int, scores: int, labels: int, counts: int) -> None:
        super().__init__()
        self.network = network
        self.boxes = boxes
        self.scores = scores
        self.labels = labels
        self.counts = counts

    def forward(self, x: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Take [N, 3, H, W], return one tuple per picture."""
        found = self.network(x)
        boxes, scores, labels = found[self.boxes], found[self.scores], found[self.labels]
        counts = found[self.counts].reshape(-1)
        answer: list[tuple[Tensor, Tensor, Tensor]] = []
        for row in range(boxes.size(0)):
            count = int(counts[row].item())
            answer.append((boxes[row, :count], scores[row, :count], labels[row, :count]))
        return answer


class FromBatchDict(nn.Module):
    """A dict of tensors for all pictures: boxes [N, M, 4], scores [N, M], labels [N, M]."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Take [N, 3, H, W], return one tuple per picture."""
        found = self.network(x)
        boxes, scores, labels = found["boxes"], found["scores"], found["labels"]
        answer: list[tuple[Tensor, Tensor, Tensor]] = []
        for row in range(boxes.size(0)):
            answer.append((boxes[row], scores[row], labels[row]))
        return answer


class FromRows(nn.Module):
    """One tensor for all pictures, [N, M, 6]: four corners, score, label."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Take [N, 3, H, W], return one tuple per picture."""
        found: Tensor = self.network(x)
        answer: list[tuple[Tensor, Tensor, Tensor]] = []
        for row in range(found.size(0)):
            answer.append((found[row, :, :4], found[row, :, 4], found[row, :, 5]))
        return answer


@dataclass(frozen=True)
class Form:
    """A form that fits the task. `network` returns it; `name` says in words what was found."""

    name: str
    network: nn.Module


def dense(network: nn.Module, answer: Any, *, rank: int) -> list[tuple[Form, Tensor]]:
    """The tensors [N, K, ...] of this rank in an answer, each with the network that returns it alone.

    Of several entries of a dict, those with a usual name come alone.
    """
    found = [
        (Form(name, made), tensor)
        for name, made, tensor in _tensors(network, answer)
        if tensor.dim() == rank and tensor.is_floating_point()
    ]
    preferred = [(form, tensor) for form, tensor in found if form.name.strip("'") in _PREFERRED]
    return preferred[:1] or found


def _tensors(network: nn.Module, answer: Any) -> Iterator[tuple[str, nn.Module, Tensor]]:
    if isinstance(answer, Tensor):
        yield "a tensor", network, answer
    elif isinstance(answer, tuple):
        for index, part in enumerate(answer):
            if isinstance(part, Tensor):
                yield f"element {index}", Element(network, index), part
    elif isinstance(answer, dict):
        for key, part in answer.items():
            if isinstance(key, str) and isinstance(part, Tensor):
                yield repr(key), Entry(network, key), part


def boxes(network: nn.Module, answer: Any) -> Form | None:
    """The network that returns (boxes, scores, labels) per picture; None where the answer has no such form."""
    if isinstance(answer, Tensor):
        fits = answer.dim() == 3 and answer.size(2) == _ROW
        return Form("rows of 6: corners, score, label", FromRows(network)) if fits else None
    if isinstance(answer, dict):
        fits = {"boxes", "scores", "labels"} <= set(answer)
        return Form("a dict of boxes, scores, labels for all pictures", FromBatchDict(network)) if fits else None
    if isinstance(answer, tuple):
        return _of_tuple(network, answer)
    return _per_picture(network, answer) if isinstance(answer, list) else None


def _of_tuple(network: nn.Module, answer: tuple[Any, ...]) -> Form | None:
    places = _places(answer, more=1)
    if places is not None and "counts" in places:
        return Form("boxes, scores, labels, counts for all pictures", FromCountedBatch(network, **places))
    if places is not None:
        return Form("boxes, scores, labels for all pictures", FromBatch(network, **places))
    # torchvision's detectors, scripted, return their losses, then the detections.
    lists = [index for index, part in enumerate(answer) if isinstance(part, list)]
    return _per_picture(Element(network, lists[0]), answer[lists[0]]) if len(lists) == 1 else None


def _per_picture(network: nn.Module, answer: list[Any]) -> Form | None:
    if answer and all(isinstance(one, dict) and {"boxes", "scores", "labels"} <= set(one) for one in answer):
        return Form("a dict of boxes, scores, labels per picture", FromDicts(network))
    if answer and all(isinstance(one, tuple) for one in answer):
        places = _places(answer[0], more=0)
        if places is not None:
            places.pop("counts", None)
            return Form("boxes, scores, labels per picture", FromTuples(network, **places))
    return None


def _places(parts: tuple[Any, ...], *, more: int) -> dict[str, int] | None:
    """Where boxes, scores, labels and, if there, counts are in a tuple. `more` is 1 where N is the first dimension.

    The shapes tell: boxes end in 4, labels are whole numbers, scores are not. None where one of them is missing or
    there twice.
    """
    places: dict[str, int] = {}
    for index, part in enumerate(parts):
        if not isinstance(part, Tensor):
            return None
        whole = not part.is_floating_point() and part.dtype is not torch.bool
        if part.dim() == 2 + more and part.size(-1) == 4 and not whole:
            role = "boxes"
        elif more and whole and (part.dim() == 1 or (part.dim() == 2 and part.size(1) == 1)):
            role = "counts"
        elif part.dim() == 1 + more:
            role = "labels" if whole else "scores"
        else:
            return None
        if role in places:
            return None
        places[role] = index
    return places if {"boxes", "scores", "labels"} <= set(places) else None


def described(answer: Any) -> str:
    """What an answer is made of, in a few words."""
    if isinstance(answer, Tensor):
        return f"{str(answer.dtype).removeprefix('torch.')} {list(answer.shape)}"
    if isinstance(answer, dict):
        return "{" + ", ".join(f"{key}: {described(part)}" for key, part in list(answer.items())[:4]) + "}"
    if isinstance(answer, list | tuple):
        inner = ", ".join(described(part) for part in answer[:4]) + (", ..." if len(answer) > 4 else "")
        return f"[{inner}]" if isinstance(answer, list) else f"({inner})"
    return type(answer).__name__
