"""Label sets as text files, one label per line; see README.md for their sources."""

from functools import cache
from importlib import resources

SIZES = {"imagenet1k": 1000, "coco80": 80, "voc21": 21, "ade20k150": 150, "demo_shapes": 8, "demo_shapes_mask": 9}


@cache
def read(name: str) -> tuple[str, ...]:
    """Labels of the set called `name`, in class order. Raises `LookupError` for an unknown set."""
    if name not in SIZES:
        raise LookupError(f"no label set is called {name!r}; there are {', '.join(SIZES)}")
    text = resources.files("model_store.labels").joinpath(f"{name}.txt").read_text(encoding="utf-8")
    labels = tuple(text.splitlines())
    if len(labels) != SIZES[name]:
        raise RuntimeError(f"this is a bug: {name}.txt holds {len(labels)} labels, not {SIZES[name]}")
    return labels
