"""The folder that a sync fills, and from which a server reads.

    NAME.mar, NAME.card.json, rollout.json   delivered files
    manifest.json                            the manifest of the last sync that came to its end
    .sync-files.json                         names of the files that syncs wrote: no other file is removed or replaced
    .sync-DIGEST-NAME.part                   an unfinished file
    .sync.lock                               held while a sync works

In: verified files. Out: the folder, in which a file is always whole. Links are replaced, never followed.
"""

import contextlib
import json
import os
import shutil
import stat
from collections.abc import Iterable, Iterator, Set
from pathlib import Path

from model_store.delivery.errors import FolderError, FolderInUse
from model_store.delivery.manifest import MANIFEST, File, is_delivered
from model_store.files import atomic, digest, lock

LOCK = ".sync.lock"
WRITTEN = ".sync-files.json"
_PART_PREFIX, _PART_SUFFIX = ".sync-", ".part"
_DIGITS = 16  # of a digest in the name of an unfinished file: the name has to stay below 255 characters


class Folder:
    """A folder that need not exist yet. Every method raises `FolderError` where the folder cannot be used."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Make the folder if needed, and lock it. Raises `FolderInUse` where another sync has the lock."""
        with contextlib.ExitStack() as held:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                held.enter_context(lock.exclusive(self.path / LOCK))
            except BlockingIOError as error:
                raise FolderInUse(f"another sync works in {self.path}; wait for its end") from error
            except OSError as error:
                raise self._unusable(error) from error
            yield

    def written(self) -> set[str]:
        """Return the names of the files that syncs wrote. Raises `FolderError`."""
        path = self.path / WRITTEN
        try:
            names = json.loads(path.read_bytes())
        except FileNotFoundError:
            return set()
        except (OSError, ValueError, RecursionError) as error:
            raise FolderError(f"cannot read {path}: {error}; delete it, then no file is removed") from error
        if not isinstance(names, list):
            raise FolderError(f"{path} is not a list of names; delete it, then no file is removed")
        return {name for name in names if isinstance(name, str) and is_delivered(name)}

    def record(self, names: Set[str]) -> None:
        """Write down which files syncs wrote. Raises `FolderError`."""
        with self._usable():
            atomic.write(self.path / WRITTEN, json.dumps(sorted(names), indent=1).encode())

    def has(self, file: File) -> bool:
        """Return whether the file is there with the content that the manifest names. Raises `FolderError`."""
        path = self.path / file.name
        with self._usable():
            try:
                status = path.lstat()
            except FileNotFoundError:
                return False
            regular = stat.S_ISREG(status.st_mode)
            return regular and status.st_size == file.size_bytes and digest.sha256(path) == file.sha256

    def is_foreign(self, name: str, written: Set[str]) -> bool:
        """Return whether a file of this name is there that no sync wrote. Raises `FolderError`."""
        with self._usable():
            return name not in written and os.path.lexists(self.path / name)

    def part_of(self, file: File) -> Path:
        """Return the path of a file while it is unfinished."""
        return self.path / f"{_PART_PREFIX}{file.sha256[:_DIGITS]}-{file.name}{_PART_SUFFIX}"

    def drop_parts(self, keep: Iterable[File]) -> None:
        """Remove unfinished files but those of `keep`, and whatever is no regular file. Raises `FolderError`."""
        kept = {self.part_of(file) for file in keep}
        with self._usable():
            for path in self.path.glob(f"{_PART_PREFIX}*{_PART_SUFFIX}"):
                if path not in kept or not stat.S_ISREG(path.lstat().st_mode):
                    path.unlink(missing_ok=True)

    def missing_bytes(self, file: File) -> int:
        """Return how many bytes of a file are still to be fetched. Raises `FolderError`."""
        with self._usable():
            try:
                return max(0, file.size_bytes - self.part_of(file).lstat().st_size)
            except FileNotFoundError:
                return file.size_bytes

    def check_room(self, missing_bytes: int) -> None:
        """Raise `FolderError` where the disk has no room for so many bytes."""
        with self._usable():
            free = shutil.disk_usage(self.path).free
        if missing_bytes > free:
            raise FolderError(
                f"no room for {missing_bytes / 1e6:.1f} MB in {self.path}: {free / 1e6:.1f} MB are free; make room, or "
                "name another folder with --to"
            )

    def put(self, file: File) -> None:
        """Rename the finished file into place. Raises `FolderError`."""
        with self._usable():
            self.part_of(file).replace(self.path / file.name)

    def remove(self, name: str) -> bool:
        """Remove a delivered file. Returns whether it was there. Raises `FolderError`."""
        with self._usable(), contextlib.suppress(FileNotFoundError):
            (self.path / name).unlink()
            return True
        return False

    def finish(self, manifest: bytes) -> None:
        """Write the renamed files through to the disk, then the copy of the manifest. Raises `FolderError`."""
        with self._usable():
            descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            atomic.write(self.path / MANIFEST, manifest)

    @contextlib.contextmanager
    def _usable(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._unusable(error) from error

    def _unusable(self, error: OSError) -> FolderError:
        return FolderError(
            f"cannot write to {self.path}: {error.strerror or error}; make room, or name another folder with --to"
        )
