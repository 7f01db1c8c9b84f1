"""Fetch one checkpoint into the store, from its published address or from a local file.

In: an entry of the zoo and a source. Out: a `Stored` checkpoint. Its bytes are the published ones where their id is
known, and those of the first pull where there was one, and it loads strictly into the entry's network. Otherwise a
`PullError`; the store is then unchanged. Never executes code from a file.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

from model_store import zoo
from model_store.build import assemble, fitting
from model_store.files.digest import sha256
from model_store.pull import sources
from model_store.pull.download import Progress, download, remove
from model_store.pull.errors import ByHand, NoSuchFile, StoreError, Unpublished, UnusableCheckpoint, WrongDigest
from model_store.pull.sources import Source
from model_store.pull.store import Record, Store, Stored, git_blob
from model_store.weights import container, layouts
from model_store.weights.errors import CheckpointError
from model_store.weights.file import SUFFIXES

_COPY_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Pulled:
    """The result of a pull. `tensors` is 0 and `downloaded` is false where the store already had the file."""

    stored: Stored
    downloaded: bool
    tensors: int
    known_bytes: bool  # the bytes were compared with a published id, or with those of an earlier pull


def from_address(
    entry: zoo.ModelSpec,
    store: Store,
    source: Source,
    *,
    expected_sha256: str = "",
    refresh: bool = False,
    on_progress: Progress,
) -> Pulled:
    """Download `source`, unless the store has it. With `refresh`, download anyway and accept a changed file.

    Raises `PullError`: `ByHand` where a program cannot download the file, and what `download`, the digests and the
    loader raise.
    """
    if source.by_hand:
        copies = [copy.layout for copy in sources.published(entry) if not copy.by_hand]
        instead = f"; or download a copy of it with --layout {' or '.join(copies)}" if copies else ""
        raise ByHand(
            f"{entry.name} is on Google Drive, which lets no program download reliably: open {source.url} in a "
            f"browser, save the file, then: mobilevision models pull {entry.name} --from FILE --published{instead}"
        )
    with store.locked():
        known = expected_sha256 or ("" if refresh else store.digest_of(source.url) or "")
        if not refresh:
            there = _there(entry, store, source, expected_sha256)
            if there is not None:
                return Pulled(stored=there, downloaded=False, tensors=0, known_bytes=True)
        part = store.folder / f"{entry.name}.{source.layout}.part"
        download(source.url, part, on_progress=on_progress)
        try:
            _verify(part, source, expected_sha256=known, first=expected_sha256 == "")
            return _admit(entry, store, part, source, url=source.url, known_bytes=bool(known or source.git_blob))
        finally:
            remove(part)


def from_file(
    entry: zoo.ModelSpec,
    store: Store,
    path: Path,
    *,
    layout: str,
    published: bool = False,
    expected_sha256: str = "",
    on_progress: Progress,
) -> Pulled:
    """Copy a local file, or the one of a folder that `file_in` finds.

    `published`: the user downloaded the file by hand from its published address in this layout. Its digest is then kept
    as that of the address, and the bytes must equal those of an earlier pull from that address, if there was one.

    Raises `PullError`: `NoSuchFile`, `Unpublished` where `published` is wrong, and what the digests and the loader
    raise.
    """
    path = file_in(entry, path) if path.is_dir() else path
    if not path.is_file():
        raise NoSuchFile(f"{path}: no such file or folder")
    official = next((s for s in sources.published(entry) if s.layout == layout), None)
    if published and official is None:
        raise Unpublished(f"{entry.name} was never published in layout {layout!r}: leave --published out")
    with store.locked():
        part = store.folder / f"{entry.name}.copy.part"
        try:
            _copy(path, part, on_progress)
            if published and official is not None:
                earlier = store.digest_of(official.url) or ""
                _verify(part, official, expected_sha256=expected_sha256 or earlier, first=not expected_sha256)
                known = bool(expected_sha256 or earlier or official.git_blob)
                return _admit(entry, store, part, official, url=official.url, known_bytes=known)
            source = Source(url=str(path.resolve()), layout=layout)
            _verify(part, source, expected_sha256=expected_sha256, first=False)
            known = bool(expected_sha256)
            if official is not None and official.git_blob:
                known = known or git_blob(part) == official.git_blob
            return _admit(entry, store, part, source, url="", known_bytes=known)
        finally:
            remove(part)


def file_in(entry: zoo.ModelSpec, folder: Path) -> Path:
    """The checkpoint in a folder: named as published, or the only one there. Raises `NoSuchFile`."""
    for source in sources.published(entry):
        if source.file_name and (folder / source.file_name).is_file():
            return folder / source.file_name
    found = sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES and path.is_file())
    mine = [path for path in found if path.stem == entry.name] or found
    if len(mine) == 1:
        return mine[0]
    if not mine:
        raise NoSuchFile(f"{folder} holds no checkpoint ({', '.join(SUFFIXES)}); name the file with --from FILE")
    raise NoSuchFile(f"{folder} holds {', '.join(path.name for path in mine[:8])}: name one of them with --from FILE")


def _there(entry: zoo.ModelSpec, store: Store, source: Source, expected_sha256: str) -> Stored | None:
    """The stored checkpoint, if it is the requested one. A damaged file counts as absent: it is fetched again."""
    try:
        stored = store.get(entry.name)
    except WrongDigest:
        return None
    if stored is None or stored.record.source != source.url or stored.record.layout != source.layout:
        return None
    return stored if expected_sha256 in {"", stored.record.sha256} else None


def _verify(part: Path, source: Source, *, expected_sha256: str, first: bool) -> None:
    """Raises `WrongDigest`. `first`: the expected digest is that of the first pull, not one that the user gave."""
    if source.git_blob and git_blob(part) != source.git_blob:
        raise WrongDigest(
            f"{source.url}: git blob id {git_blob(part)}, the published file has {source.git_blob}; "
            "the file was changed there or on the way"
        )
    found = sha256(part)
    if expected_sha256 and found != expected_sha256:
        of = "the one pulled first" if first else "the one asked for"
        fix = "; if the publisher replaced it and you trust that, add --refresh" if first else ""
        raise WrongDigest(f"{source.url}: sha256 is {found}, {of} is {expected_sha256}{fix}")


def _admit(entry: zoo.ModelSpec, store: Store, part: Path, source: Source, *, url: str, known_bytes: bool) -> Pulled:
    """Load the checkpoint into the network, then store it for this entry."""
    suffix = _suffix_of(part, source.url)
    content = part.with_name(f"{entry.name}.incoming{suffix}")
    try:
        part.rename(content)
        tensors = _try(entry, content, source)
        record = Record(
            file=f"{entry.name}{suffix}",
            source=source.url,
            layout=source.layout,
            sha256=sha256(content),
            size_bytes=content.stat().st_size,
        )
        stored = store.put(entry.name, record, content, url=url)
    finally:
        content.unlink(missing_ok=True)
    return Pulled(stored=stored, downloaded=True, tensors=tensors, known_bytes=known_bytes)


def _suffix_of(path: Path, origin: str) -> str:
    """The suffix by which people know the kind of file. First bytes decide, since names may be wrong."""
    with path.open("rb") as file:
        start = file.read(9)
    if start.startswith(b"PK") or start.startswith(b"\x80"):  # zip or pickle, both written by torch.save
        return ".pt"
    if start[8:9] == b"{":  # after eight bytes of length, JSON
        return ".safetensors"
    raise UnusableCheckpoint(f"{origin}: neither a safetensors file nor one of torch.save; nothing of it was kept")


def _try(entry: zoo.ModelSpec, path: Path, source: Source) -> int:
    """The number of tensors in the file. Raises `UnusableCheckpoint` where they do not fit the entry."""
    layout = layouts.get(source.layout)
    network = assemble.build(entry)
    try:
        state = container.read(path).state
        fitting.load(network, state, layout, entry)  # names the right layout or model, as `models build` does
    except CheckpointError as error:
        reason = str(error).removeprefix(f"{path}: ")
        raise UnusableCheckpoint(
            f"{source.url}: {reason}",
            missing=error.missing,
            unexpected=error.unexpected,
            shapes=error.shapes,
        ) from error
    return len(state)


def _copy(path: Path, part: Path, on_progress: Progress) -> None:
    try:
        total = path.stat().st_size
        file = path.open("rb")
    except OSError as error:
        raise NoSuchFile(f"{path}: cannot be read: {error.strerror}") from error
    with file:
        try:
            if total > shutil.disk_usage(part.parent).free:
                raise StoreError(f"no room for {total / 1e6:.1f} MB in {part.parent}; name another --store")
            with part.open("wb") as out:
                while chunk := file.read(_COPY_BYTES):
                    out.write(chunk)
                    on_progress(out.tell(), total)
        except OSError as error:
            raise StoreError(
                f"cannot write to {part.parent}: {error.strerror}; make room or name another --store"
            ) from error
