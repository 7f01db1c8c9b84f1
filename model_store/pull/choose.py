"""Which checkpoint a model is built from: a file that is named, or the one at hand.

At hand is the checkpoint that is part of the project, else the one that was pulled. Never imports torch, never uses the
network.
"""

from dataclasses import dataclass
from pathlib import Path

from model_store import zoo
from model_store.pull import origin
from model_store.pull.store import Store


@dataclass(frozen=True)
class Checkpoint:
    """The weights to build from.

    `layout` None is that of the official file. `source` is the origin in the words of the card; `official`: the authors
    of the model published it.
    """

    path: Path
    layout: str | None
    source: str
    official: bool


def choose(entry: zoo.ModelSpec, store: Store, file: Path | None, layout: str | None) -> Checkpoint | None:
    """The checkpoint `file` in this layout, or where that is None the one at hand. Raises `PullError`."""
    if file is None:
        return _at_hand(entry, store)
    found = origin.of_file(entry, store, file, layout=layout or entry.layout)
    return Checkpoint(path=file, layout=layout, source=found.source, official=found.official)


def _at_hand(entry: zoo.ModelSpec, store: Store) -> Checkpoint | None:
    if entry.committed_checkpoint is not None:
        return Checkpoint(path=entry.committed_checkpoint, layout=None, source="", official=False)
    stored = store.get(entry.name)
    if stored is None:
        return None
    found = origin.of_stored(entry, store, stored)
    return Checkpoint(path=stored.path, layout=stored.record.layout, source=found.source, official=found.official)
