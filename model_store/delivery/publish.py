"""Publish a folder with archives: the content of its files first, then the manifest that names them.

In: a folder as a server reads it, and a remote. Out: a manifest in the store, whose files are all there. A folder that
a server would refuse is not published. Whoever reads the store meanwhile sees the manifest before, and its files: the
content of a file is kept by its digest and never changes.
"""

import hashlib
import io
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from handlers.contract import archive_file
from handlers.contract.card import Card
from model_store.delivery import manifest as manifests
from model_store.delivery.errors import BadManifest, FolderError, NotPublishable, NotThere
from model_store.delivery.manifest import ARCHIVE, CARD, MANIFEST, MOST_BYTES, MOST_FILES, ROLLOUT, File, Manifest
from model_store.delivery.progress import Progress, Quiet
from model_store.delivery.remote import Remote
from model_store.files.digest import sha256


@dataclass(frozen=True, slots=True)
class Published:
    """The result of a publication. `replaced`: archives whose name had another version or content before."""

    manifest: Manifest
    sent: tuple[File, ...]
    replaced: tuple[str, ...]


def describe(folder: Path) -> Manifest:
    """Check the archives, cards and roll-out file in a folder. Other files are ignored.

    Raises `NotPublishable` where a server would refuse one of them, and `FolderError` where one cannot be read.
    """
    with _readable(folder):
        paths = sorted(path for path in folder.iterdir() if path.name.endswith((ARCHIVE, CARD)) or path.name == ROLLOUT)
        if not paths:
            raise NotPublishable(f"no archives in {folder}; build some with: mobilevision models build")
        if len(paths) > MOST_FILES:
            raise NotPublishable(f"{folder} has {len(paths)} files, over {MOST_FILES}; publish two folders")
        try:
            return Manifest(files=tuple(_describe(path) for path in paths))
        except ValidationError as error:
            raise NotPublishable(f"{folder}: {manifests.reason(error)}; rename or remove the file") from error


async def publish(folder: Path, remote: Remote, *, progress: Progress | None = None) -> Published:
    """Publish the folder. Content that the store has is not sent again. Raises `DeliveryError`."""
    progress = progress or Quiet()
    manifest = describe(folder)
    before = await _before(remote)
    missing = [file for file in manifest.in_order if await remote.size_of(file.path) != file.size_bytes]
    progress.begin(len(missing), sum(file.size_bytes for file in missing))
    for file in missing:
        await _send(folder / file.name, file, remote, progress)
    await remote.put(MANIFEST, manifest.to_json(), cached=False)
    old = {file.name: file.sha256 for file in before.files} if before is not None else {}
    replaced = [file.name for file in manifest.files if file.version and old.get(file.name, file.sha256) != file.sha256]
    return Published(manifest=manifest, sent=tuple(missing), replaced=tuple(replaced))


def _describe(path: Path) -> File:
    if not stat.S_ISREG(path.lstat().st_mode):
        raise NotPublishable(f"{path} is no plain file; put a copy of it there")
    other = manifests.partner(path.name)
    if other is not None and not (path.parent / other).is_file():
        raise NotPublishable(f"{path} has no {other} beside it; build it again: mobilevision models build")
    size, most = path.stat().st_size, manifests.most_bytes(path.name)
    if size > most:
        raise NotPublishable(f"{path} has {size} bytes, at most {most} are allowed")
    version = _version(path) if path.name.endswith(ARCHIVE) else ""
    return File(name=path.name, size_bytes=size, sha256=sha256(path), version=version)


def _version(path: Path) -> str:
    """Return the version of an archive, which is whole and has the name and the card that are beside it."""
    try:
        content = archive_file.check(path)
        inside = Card.model_validate_json(content.card)
        beside = Card.read(path.with_name(path.name.removesuffix(ARCHIVE) + CARD))
    except archive_file.ArchiveRefused as error:
        raise NotPublishable(str(error)) from error
    except ValidationError as error:
        reason = str(error).splitlines()[0]
        raise NotPublishable(f"the card of {path} cannot be read ({reason}); build it again") from error
    if inside != beside:
        raise NotPublishable(f"{path}: the card inside is not the card beside it; build it again")
    name, mark, version = path.name.removesuffix(ARCHIVE).partition("@")
    if name != inside.name or (mark and version != inside.version):
        raise NotPublishable(f"{path} holds version {inside.version} of {inside.name}; name it so, or build it again")
    return inside.version


async def _before(remote: Remote) -> Manifest | None:
    """Return the manifest that is there now; None where there is none that can be read."""
    try:
        return manifests.read(await remote.read(MANIFEST, MOST_BYTES), remote.shown)
    except (NotThere, BadManifest):
        return None


async def _send(path: Path, file: File, remote: Remote, progress: Progress) -> None:
    with _readable(path.parent):
        source = _Source(path, progress)
    with source:
        await remote.put(file.path, source)
    if source.sha256 != file.sha256:
        await remote.delete(file.path)
        raise NotPublishable(f"{path} changed while it was sent; publish the folder again")


class _Source(io.FileIO):
    """A file that hashes what is read from it, and reports it. `obstore` reads it once, from start to end."""

    def __init__(self, path: Path, progress: Progress) -> None:
        super().__init__(path, "rb")
        self._total = hashlib.sha256()
        self._name = path.name
        self._progress = progress

    @property
    def sha256(self) -> str:
        return self._total.hexdigest()

    def read(self, size: int | None = -1, /) -> bytes:
        chunk = super().read(-1 if size is None else size) or b""
        self._total.update(chunk)
        self._progress.advance(self._name, len(chunk))
        return chunk


@contextmanager
def _readable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise FolderError(f"cannot read {error.filename or folder}: {error.strerror or error}") from error
