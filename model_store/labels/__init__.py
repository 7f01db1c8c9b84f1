"""Label sets as text files, one label per line; see README.md for their sources. Own label files are read by `own`."""

from dataclasses import dataclass
from functools import cache
from importlib import resources

SIZES = {"imagenet1k": 1000, "coco80": 80, "voc21": 21, "ade20k150": 150, "demo_shapes": 8, "demo_shapes_mask": 9}


@dataclass(frozen=True, slots=True)
class LabelSet:
    """The labels of a model, in class order. `name` is that of a set of this folder, or of a file of one's own.

    `own` has the labels of such a file. `colours` has one `#rrggbb` per label, or none.
    """

    name: str
    own: tuple[str, ...] = ()
    colours: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The labels. Raises `LookupError` where there is no set of that name."""
        return self.own or read(self.name)


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
