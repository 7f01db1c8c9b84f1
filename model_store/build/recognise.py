"""Which model a checkpoint belongs to: its names and shapes in, an entry of the zoo, a layout and a class count out.

A network has tensors whose shape follows from the number of classes, and others whose shape does not. Each entry is
built twice without memory, with two numbers of classes. So the shapes that belong to the classes are known, and the
number of classes of a checkpoint follows from its own shapes. An SSD head counts its background and anchors in the same
shapes: 84 = 6 x (13 + 1) are 13 classes.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

from model_store import zoo
from model_store.build import assemble
from model_store.labels import LabelSet
from model_store.weights import layouts
from model_store.weights import load as weights

_FEW, _MORE = 3, 7  # numbers of classes that entries are built with
_NATIVE = "native"

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Found:
    """A checkpoint fits this entry in this layout, with so many classes (labels; an SSD head's background is none).

    `alike` names layouts with the same tensor names: the tensors do not tell them apart.
    """

    entry: zoo.ModelSpec
    layout: layouts.Layout
    classes: int
    alike: tuple[str, ...]

    def __str__(self) -> str:
        """Return the model, in the words of an error message."""
        return f"{self.entry.name} with {self.classes} classes in the layout {self.layout.name}"


@dataclass(frozen=True, slots=True)
class _Signature:
    """Names and shapes of a network with `_FEW` and with `_MORE` classes."""

    few: Mapping[str, Shape]
    more: Mapping[str, Shape]

    def classes_of(self, shapes: Mapping[str, Shape]) -> int | None:
        """The number of classes with which the network has exactly these names and shapes, None if there is none."""
        if any(name not in shapes and not weights.is_counter(name) for name in self.few) or any(
            name not in self.few for name in shapes
        ):
            return None
        classes: set[int] = set()
        for name, shape in shapes.items():
            found = _solved(shape, self.few[name], self.more[name])
            if found is None:
                return None
            if found:
                classes.add(found)
        return classes.pop() if len(classes) == 1 else None


def recognise(
    state: Mapping[str, Tensor], entries: Iterable[zoo.ModelSpec], candidates: Iterable[layouts.Layout]
) -> Found | None:
    """Find the first entry that a checkpoint fits, and the first layout; None where it fits none.

    Layouts that give the same names are `Found.alike`.
    """
    renamed = {layout.name: shapes for layout in candidates if (shapes := _renamed(state, layout)) is not None}
    for entry in entries:
        signature = _signature(entry.name, entry.backbone, entry.head)
        fitting = [(name, classes) for name, shapes in renamed.items() if (classes := signature.classes_of(shapes))]
        if fitting:
            name, count = fitting[0]
            # Rules of other projects may leave our own names as they are. No project has all of them.
            alike = () if name == _NATIVE else tuple(other for other, _ in fitting[1:])
            return Found(entry, layouts.get(name), count, alike)
    return None


def layouts_for(entry: zoo.ModelSpec) -> list[layouts.Layout]:
    """All layouts: our own, then that of the entry's official checkpoint, since the names of some are the same."""
    first = list(dict.fromkeys((_NATIVE, entry.layout)))
    others = [layout for layout in layouts.LAYOUTS.values() if layout.name not in first]
    return [*(layouts.get(name) for name in first), *others]


def _solved(shape: Shape, few: Shape, more: Shape) -> int | None:
    """The number of classes of one tensor: 0 where its shape does not depend on it, None where the shape is wrong."""
    if len(shape) != len(few):
        return None
    classes = 0
    for size, at_few, at_more in zip(shape, few, more, strict=True):
        per_class, rest = divmod(at_more - at_few, _MORE - _FEW)
        if rest or (not per_class and size != at_few):
            return None
        if per_class:
            found, rest = divmod(size - (at_few - per_class * _FEW), per_class)
            if rest or found < 1 or (classes and found != classes):
                return None
            classes = found
    return classes


def _renamed(state: Mapping[str, Tensor], layout: layouts.Layout) -> dict[str, Shape] | None:
    """The shapes of a checkpoint under our names; None where it does not follow the layout."""
    try:
        native = weights.to_native({name: value.to("meta") for name, value in state.items()}, layout)
    except (ValueError, RuntimeError):
        return None
    return {name: tuple(value.shape) for name, value in native.items()}


@cache
def _signature(name: str, backbone: zoo.BackboneSpec, head: zoo.HeadSpec) -> _Signature:
    entry = replace(zoo.get(name), backbone=backbone, head=head)
    return _Signature(few=_shapes(entry, _FEW), more=_shapes(entry, _MORE))


def _shapes(entry: zoo.ModelSpec, classes: int) -> dict[str, Shape]:
    labels = LabelSet(name="", own=tuple(map(str, range(classes))))
    with torch.device("meta"):
        network = assemble.build(replace(entry, labels=labels))
    return {name: tuple(value.shape) for name, value in network.state_dict().items()}
