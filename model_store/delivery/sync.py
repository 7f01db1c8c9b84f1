"""Bring a folder on this machine to what a published folder is.

In: a remote and a folder. Out: the folder has the files of the manifest, verified; files of earlier syncs that it no
longer names are gone; files of anybody else are untouched. All files are fetched before the first one is put into
place. Then archives come before their cards and the roll-out file last, so that a server that reads the folder at any
moment finds the archive of every card, and every version that the roll-out file names.
"""

import asyncio
import contextlib
from collections.abc import Set
from dataclasses import dataclass

from model_store.delivery.download import Pause, download
from model_store.delivery.errors import FolderError, FolderInUse
from model_store.delivery.folder import Folder
from model_store.delivery.manifest import MANIFEST, MOST_BYTES, File, Manifest, place, read
from model_store.delivery.progress import Progress, Quiet
from model_store.delivery.remote import Remote

LOCK_ATTEMPTS = 600
_LOCK_PAUSE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Synced:
    """The result of a sync. `manifest` are the bytes of the manifest that the folder has now."""

    manifest: bytes
    files: int
    fetched: tuple[File, ...]
    removed: tuple[str, ...]


async def sync(
    remote: Remote,
    folder: Folder,
    *,
    known: bytes | None = None,
    progress: Progress | None = None,
    pause: Pause = asyncio.sleep,
) -> Synced | None:
    """Fetch what is missing or different, remove what earlier syncs wrote and the manifest no longer names.

    Returns None where the manifest is still `known`. Waits up to `LOCK_ATTEMPTS` seconds for another sync of the same
    folder. Raises `DeliveryError`; the folder is then served as before, and the next sync continues.
    """
    content = await remote.read(MANIFEST, MOST_BYTES)
    if content == known:
        return None
    manifest = read(content, f"{remote.shown}/{MANIFEST}")
    with contextlib.ExitStack() as held:
        await _lock(folder, held, pause)
        written = folder.written()
        wanted = [file for file in manifest.in_order if not folder.has(file)]
        _refuse_foreign(folder, wanted, written)
        await _fetch(remote, folder, wanted, progress or Quiet(), pause)
        removed = _put(folder, manifest, wanted, written)
        folder.finish(content)
    return Synced(manifest=content, files=len(manifest.files), fetched=tuple(wanted), removed=removed)


async def _lock(folder: Folder, held: contextlib.ExitStack, pause: Pause) -> None:
    for _ in range(LOCK_ATTEMPTS):
        try:
            held.enter_context(folder.locked())
        except FolderInUse:
            await pause(_LOCK_PAUSE_SECONDS)
        else:
            return
    held.enter_context(folder.locked())


def _refuse_foreign(folder: Folder, wanted: list[File], written: Set[str]) -> None:
    for file in wanted:
        if folder.is_foreign(file.name, written):
            raise FolderError(
                f"{folder.path / file.name} is not the published file, and no sync wrote it; remove it, or "
                "name another folder with --to"
            )


async def _fetch(remote: Remote, folder: Folder, wanted: list[File], progress: Progress, pause: Pause) -> None:
    folder.drop_parts(keep=wanted)
    missing_bytes = sum(folder.missing_bytes(file) for file in wanted)
    folder.check_room(missing_bytes)
    progress.begin(len(wanted), missing_bytes)
    for file in wanted:
        await download(remote, file, folder.part_of(file), progress=progress, pause=pause)


def _put(folder: Folder, manifest: Manifest, wanted: list[File], written: Set[str]) -> tuple[str, ...]:
    """Rename the fetched files into place, then remove what is gone. Returns the names of removed files."""
    mine = written | {file.name for file in wanted}
    folder.record(mine)  # before the first of them is there, so that an interrupted sync leaves nobody's files
    for file in wanted:
        folder.put(file)
    gone = sorted(mine - {file.name for file in manifest.files}, key=place, reverse=True)
    removed = tuple(name for name in gone if folder.remove(name))
    folder.record(mine - set(gone))
    return removed
