"""Fit a checkpoint to a model, and where it does not fit say which model it is of and what to do.

In: named tensors as they are in the file, and the entry that they should fit. Out: the layout and the number of
classes, or a `CheckpointError` of one line.
"""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from model_store import zoo
from model_store.build import assemble
from model_store.build.recognise import Found, layouts_for, recognise
from model_store.weights import layouts
from model_store.weights import load as weights
from model_store.weights.errors import CheckpointError

_FEW = 8  # names that a damaged checkpoint of the same model may lack or have beyond


def recognised(state: Mapping[str, Tensor], base: zoo.ModelSpec, layout: str | None) -> Found:
    """The layout and the number of classes with which a checkpoint fits `base`. `layout` None: any.

    Raises `CheckpointError`, which says which model the checkpoint is of, if it is of one of the zoo.
    """
    candidates = layouts_for(base) if layout is None else [layouts.get(layout)]
    found = recognise(state, [base], candidates)
    if found is not None:
        return found
    elsewhere = recognise(state, zoo.ENTRIES, layouts.LAYOUTS.values())
    if elsewhere is None:
        nearest = _nearest(state, base, candidates)
        weights.load(assemble.build(base), state, nearest)  # raises, and names all that does not fit
        raise CheckpointError(f"the checkpoint does not fit {base.name}")
    if elsewhere.entry.name == base.name:
        raise CheckpointError(f"this is {elsewhere}; use layout = {elsewhere.layout.name!r}, or leave layout out")
    raise CheckpointError(f"this is {elsewhere}; use base = {elsewhere.entry.name!r}")


def layout_of(state: Mapping[str, Tensor], entry: zoo.ModelSpec) -> layouts.Layout:
    """The layout in which a checkpoint fits an entry of the zoo, and where it fits in none, the nearest one."""
    found = recognise(state, [entry], layouts_for(entry))
    return layouts.get(entry.layout) if found is None else found.layout


def load(network: nn.Module, state: Mapping[str, Tensor], layout: layouts.Layout, entry: zoo.ModelSpec) -> None:
    """Load a checkpoint into the network of an entry of the zoo. Raises `CheckpointError`, with the remedy."""
    try:
        weights.load(network, state, layout)
    except CheckpointError as error:
        if not (error.missing or error.unexpected or error.shapes):
            raise  # the names fit, the numbers do not
        found = recognise(state, [entry], layouts_for(entry))
        # A few stray names are damage, not another model; to look at all models takes seconds.
        if found is None and (error.shapes or len(error.missing) + len(error.unexpected) > _FEW):
            found = recognise(state, zoo.ENTRIES, layouts.LAYOUTS.values())
        message = f"{error}; is it another model?" if found is None else f"this is {found}; {_remedy(found, entry)}"
        raise CheckpointError(
            message,
            missing=error.missing,
            unexpected=error.unexpected,
            shapes=error.shapes,
        ) from error


def check_labels(entry: zoo.ModelSpec, found: Found, checkpoint: Path) -> None:
    """Raise `CheckpointError` where a model has not as many labels as its checkpoint has classes."""
    if entry.classes == found.classes:
        return
    background = " (its background is not counted)" if entry.head.name == "ssdlite" else ""
    given = f"{entry.labels.name or 'labels'} has {entry.classes} labels"
    raise CheckpointError(
        f"{checkpoint.name} has {found.classes} classes{background}, {given}; give one label per class, in class order"
    )


def notes(found: Found, layout: str | None) -> tuple[str, ...]:
    """What a person should know about the choice of the layout."""
    if layout is not None or not found.alike:
        return ()
    return (
        f"the layout could also be {' or '.join(found.alike)}, whose names are the same; if it is, say so with layout",
    )


def _remedy(found: Found, entry: zoo.ModelSpec) -> str:
    if found.classes != found.entry.classes:
        return (
            f"for classes of your own: mobilevision models build --base {found.entry.name} --name YOURS "
            "--checkpoint FILE --labels LABELS.txt"
        )
    if found.entry.name == entry.name:
        return f"use --layout {' or '.join((found.layout.name, *found.alike))}"
    return f"name {found.entry.name} instead"


def _nearest(state: Mapping[str, Tensor], base: zoo.ModelSpec, candidates: list[layouts.Layout]) -> layouts.Layout:
    """The layout that renames most of the checkpoint's names to names of the network."""
    own = set(assemble.build(base).state_dict())

    def known(layout: layouts.Layout) -> int:
        renamed = (layouts.rename(name, layout) for name in state)
        return sum(name is not None and name.partition("#")[0] in own for name in renamed)

    return max(candidates, key=known)
