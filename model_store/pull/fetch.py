"""From where it is published, or from a local file, into the store: one checkpoint, verified and known to fit.

In: an entry of the zoo and where to look. Out: a `Stored` checkpoint whose bytes are the published ones where that is
known, those of the first pull where there was one, and which loads strictly into the entry's network; otherwise a
`PullError`, and the store as it was. Never executes code from a file.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from model_store import assemble, layouts, weights, zoo
from model_store.errors import CheckpointError
from model_store.pull import sources
from model_store.pull.download import Progress, download, remove
from model_store.pull.errors import ByHand, NoSuchFile, StoreError, Unpublished, UnusableCheckpoint, WrongDigest
from model_store.pull.sources import Source
from model_store.pull.store import Record, Store, Stored, git_blob, sha256

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".tar")
_COPY_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Pulled:
    """What a pull did. `tensors` is 0 and `downloaded` false where the store already had the file."""

    stored: Stored
    downloaded: bool
    tensors: int
    known_bytes: bool  # the bytes were compared with a published id, or with those of an earlier pull


def from_address(
    entry: zoo.Entry,
    store: Store,
    source: Source,
    *,
    expected_sha256: str = "",
    refresh: bool = False,
    on_progress: Progress,
) -> Pulled:
    """Download `source`, unless the store has it. `refresh` downloads anyway, and accepts that it changed since.

    Raises `PullError`.
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
    entry: zoo.Entry,
    store: Store,
    path: Path,
    *,
    layout: str,
    published: bool = False,
    expected_sha256: str = "",
    on_progress: Progress,
) -> Pulled:
    """Copy a local file, or the one of a folder that `file_in` finds. Raises `PullError`.

    `published` says that it was downloaded by hand from where it is published in this layout: its digest is then kept
    as that of the address, and the bytes must be those of an earlier pull from there, if there was one.
    """
    path = file_in(entry, path) if path.is_dir() else path
    if not path.is_file():
        raise NoSuchFile(f"{path}: no such file or folder")
    official = next((s for s in sources.published(entry) if s.layout == layout), None)
    if published and official is None:
        raise Unpublished(f"nobody published {entry.name} in layout {layout!r}: leave --published out")
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


def file_in(entry: zoo.Entry, folder: Path) -> Path:
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


def _there(entry: zoo.Entry, store: Store, source: Source, expected_sha256: str) -> Stored | None:
    """What the store has, if it is what is asked for. A damaged file counts as absent: it is fetched again."""
    try:
        stored = store.get(entry.name)
    except WrongDigest:
        return None
    if stored is None or stored.record.source != source.url or stored.record.layout != source.layout:
        return None
    return stored if expected_sha256 in {"", stored.record.sha256} else None


def _verify(part: Path, source: Source, *, expected_sha256: str, first: bool) -> None:
    """Raises `WrongDigest`. `first`: the expected digest is that of the first pull, not one that was asked for."""
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


def _admit(entry: zoo.Entry, store: Store, part: Path, source: Source, *, url: str, known_bytes: bool) -> Pulled:
    """Try the checkpoint on the network, then make it the one of this entry."""
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
    """The suffix that tells `weights.read_file` what the file is, by its first bytes: names are not to be relied on."""
    with path.open("rb") as file:
        start = file.read(9)
    if start.startswith(b"PK") or start.startswith(b"\x80"):  # zip or pickle, both written by torch.save
        return ".pt"
    if start[8:9] == b"{":  # after eight bytes of length, JSON
        return ".safetensors"
    raise UnusableCheckpoint(f"{origin}: neither a safetensors file nor one of torch.save; nothing of it was kept")


def _try(entry: zoo.Entry, path: Path, source: Source) -> int:
    """How many tensors the file holds. Raises `UnusableCheckpoint` where they are not those of the entry."""
    layout = layouts.get(source.layout)
    network = assemble.build(entry)
    try:
        state = weights.read_file(path)
        weights.load(network, state, layout)
    except CheckpointError as error:
        reason = str(error).removeprefix(f"{path}: ")
        hint = ""
        if error.missing or error.unexpected or error.shapes:
            fitting = _fitting_layouts(network, state)
            hint = f"; its names are those of --layout {' or '.join(fitting)}" if fitting else "; is it another model?"
        raise UnusableCheckpoint(
            f"{source.url}: {reason}{hint}",
            missing=error.missing,
            unexpected=error.unexpected,
            shapes=error.shapes,
        ) from error
    return len(state)


def _fitting_layouts(network: nn.Module, state: Mapping[str, Tensor]) -> list[str]:
    """Layouts under whose names the checkpoint would fit, by names and shapes."""
    own = {
        name: value.shape for name, value in network.state_dict().items() if not name.endswith("num_batches_tracked")
    }
    found = []
    for name, layout in layouts.LAYOUTS.items():
        try:
            native = layouts.to_native(state, layout)
        except ValueError:
            continue
        if _shapes(native) == own:
            found.append(name)
    return found


def _shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in state.items() if not name.endswith("num_batches_tracked")}


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
