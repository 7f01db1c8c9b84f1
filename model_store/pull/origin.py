"""Origin: the source of a checkpoint in the words of its card, and whether its authors published it.

In: a file, and the digests in the store. Out: an `Origin`. The bytes prove that a file is a published one: an official
address gave the same bytes in an earlier pull, or their git blob id is the published one. File names prove nothing.
Never imports torch, never uses the network.
"""

from dataclasses import dataclass
from pathlib import Path

from model_store import zoo
from model_store.files.digest import sha256
from model_store.pull import sources
from model_store.pull.store import Store, Stored, git_blob


@dataclass(frozen=True, slots=True)
class Origin:
    """`source` is an address or a file's name, without its folder."""

    source: str
    official: bool


def of_file(entry: zoo.ModelSpec, store: Store, path: Path, *, layout: str) -> Origin:
    """Origin of a file outside the store. Raises `StoreError` where the records of the store cannot be read."""
    return _known(entry, store, path, sha256(path), layout) or Origin(source=path.name, official=False)


def of_stored(entry: zoo.ModelSpec, store: Store, stored: Stored) -> Origin:
    """Origin of a checkpoint in the store. Raises `StoreError` likewise."""
    record = stored.record
    source = record.source if "://" in record.source else Path(record.source).name
    known = _known(entry, store, stored.path, record.sha256, record.layout)
    return known or Origin(source=source, official=False)


def _known(entry: zoo.ModelSpec, store: Store, path: Path, digest: str, layout: str) -> Origin | None:
    for source in sources.published(entry):
        if source.layout == layout and (
            store.digest_of(source.url) == digest or (source.git_blob and git_blob(path) == source.git_blob)
        ):
            return Origin(source=source.url, official=True)
    return None
