"""The folder from which TorchServe loads archives, and the check of each archive before TorchServe may.

In: paths of archives. Out: checked archives in a private folder, or `ArchiveUntrusted`. An archive is copied first and
the copy is checked, so TorchServe reads what was checked, whatever happens to the file it came from. Where another
program started TorchServe, the folder is its own: archives are then checked in place, and the folder must be read-only.
"""

import os
import shutil
import tempfile
from pathlib import Path

from handlers.contract.card import Card
from service.core import trusted_archive
from service.core.catalog import ARCHIVE_SUFFIX, stem_of
from service.core.trusted_archive import ArchiveUntrusted

STORE_FOLDER = "store"  # in TorchServe's working directory, beside its tokens

_Identity = tuple[int, int, int]
_Question = tuple[_Identity, _Identity | None, Card | None]  # the archive, the keys, the card


class ModelStore:
    """Archives that TorchServe may load. `folder`: of the copies; None: TorchServe reads the archives where they are.

    `signature_keys`: public keys in PEM, one of which must have signed each archive; None: no signature is needed.
    """

    def __init__(self, folder: Path | None, signature_keys: Path | None = None) -> None:
        self._folder = folder
        self._signature_keys = signature_keys
        self._refused: dict[Path, tuple[_Question, str]] = {}  # a roll-out asks again every second

    def admit(self, archive: Path, name: str, version: str, card: Card | None, *, keep: bool = False) -> str:
        """Check an archive. Returns the file name by which TorchServe finds it in its model store.

        `keep`: a copy that is there and passes the check stays, although the archive may have changed meanwhile.
        Raises `ArchiveUntrusted`.
        """
        target = None if self._folder is None else self._folder / f"{stem_of(name, version)}{ARCHIVE_SUFFIX}"
        if target is not None and keep and target.is_file():
            trusted_archive.check(target, card, self._signature_keys)
            return target.name
        try:
            question = _identity_of(archive), self._identity_of_keys(), card
            known, message = self._refused.get(archive, (None, ""))
            if known == question:
                raise ArchiveUntrusted(message)
            try:
                self._admit(archive, target, card)
            except ArchiveUntrusted as error:
                self._refused[archive] = question, str(error)
                raise
        except OSError as error:
            raise ArchiveUntrusted(f"{archive} cannot be brought to TorchServe: {error.strerror or error}") from error
        return archive.name if target is None else target.name

    def remove(self, name: str, version: str) -> None:
        """Remove the copy of a version, if there is one."""
        if self._folder is not None:
            (self._folder / f"{stem_of(name, version)}{ARCHIVE_SUFFIX}").unlink(missing_ok=True)

    def _admit(self, archive: Path, target: Path | None, card: Card | None) -> None:
        if target is None:
            trusted_archive.check(archive, card, self._signature_keys)
            return
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=".checking-")  # mode 0600
        copy = Path(name)
        try:
            with os.fdopen(handle, "wb") as stream, archive.open("rb") as source:
                shutil.copyfileobj(source, stream, 2**20)
            trusted_archive.check(copy, card, self._signature_keys, shown=archive)
            copy.chmod(0o400)
            copy.replace(target)
        finally:
            copy.unlink(missing_ok=True)

    def _identity_of_keys(self) -> _Identity | None:
        keys = self._signature_keys
        return _identity_of(keys) if keys is not None and keys.exists() else None


def _identity_of(path: Path) -> _Identity:
    status = path.stat()
    return status.st_ino, status.st_ctime_ns, status.st_size  # a change of permissions changes the ctime, too
