"""Origin: where a checkpoint is from, in the words of its card, and whether it is one that its authors published.

In: a file, and what the store knows of addresses. Out: an `Origin`. A file is known as published by its bytes: an
official address gave the same ones here, or their git blob id is the published one. Names prove nothing. Never imports
torch, never uses the network.
"""

from dataclasses import dataclass
from pathlib import Path

from model_store import zoo
from model_store.pull import sources
from model_store.pull.store import Store, Stored, git_blob, sha256


@dataclass(frozen=True, slots=True)
class Origin:
    """`source` is an address or a file's name, without its folder."""

    source: str
    official: bool


def of_file(entry: zoo.Entry, store: Store, path: Path, *, layout: str) -> Origin:
    """Where a file that somebody names is from. Raises `StoreError` where the store's records cannot be read."""
    return _known(entry, store, path, sha256(path), layout) or Origin(source=path.name, official=False)


def of_stored(entry: zoo.Entry, store: Store, stored: Stored) -> Origin:
    """Where a checkpoint in the store is from."""
    record = stored.record
    source = record.source if "://" in record.source else Path(record.source).name
    known = _known(entry, store, stored.path, record.sha256, record.layout)
    return known or Origin(source=source, official=False)


def _known(entry: zoo.Entry, store: Store, path: Path, digest: str, layout: str) -> Origin | None:
    for source in sources.published(entry):
        if source.layout == layout and (
            store.digest_of(source.url) == digest or (source.git_blob and git_blob(path) == source.git_blob)
        ):
            return Origin(source=source.url, official=True)
    return None
