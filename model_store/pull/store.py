"""The store: a folder with pulled checkpoints and `checkpoints.json`, which describes each file.

    checkpoints.json   {"models": {NAME: {file, source, layout, sha256, size_bytes}}, "digests": {URL: sha256}}
    NAME.pt or NAME.safetensors, as published

`mobilevision models build NAME` uses the file that `models` names. `digests` holds the sha256 of everything that was
ever pulled from an address: later pulls must give the same bytes. Files are written atomically. Never imports torch,
never uses the network.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from model_store.files import atomic, lock
from model_store.files.digest import sha256
from model_store.pull.errors import StoreError, WrongDigest

CHECKPOINTS = Path("model_store/checkpoints")
RECORDS_FILE = "checkpoints.json"
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Record:
    """One checkpoint in the store. `source` is the address or the path that it was copied from."""

    file: str
    source: str
    layout: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Stored:
    """A checkpoint whose file exists, with the bytes of its record."""

    path: Path
    record: Record


class Store:
    """The checkpoints in one folder, which need not exist yet."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def record(self, name: str) -> Record | None:
        """The record of the entry called `name`, or None. Raises `StoreError` where the records cannot be read."""
        models, _ = self._read()
        return models.get(name)

    def digest_of(self, url: str) -> str | None:
        """Sha256 of the file that was pulled from this address, or None. Raises `StoreError` as `record` does."""
        _, digests = self._read()
        return digests.get(url)

    def get(self, name: str) -> Stored | None:
        """The checkpoint of `name`, its bytes verified; None where none was pulled or its file is gone.

        Raises `WrongDigest` where the file was changed after the pull, and `StoreError` as `record` does.
        """
        record = self.record(name)
        if record is None:
            return None
        path = self.folder / record.file
        if not path.is_file():
            return None
        found = sha256(path)
        if found != record.sha256:
            raise WrongDigest(
                f"{path} was changed: its sha256 is {found}, that of the pulled file was {record.sha256}; "
                f"delete it and pull again: mobilevision models pull {name}"
            )
        return Stored(path=path, record=record)

    def put(self, name: str, record: Record, content: Path, *, url: str = "") -> Stored:
        """Move `content`, a file in this folder, to its place and record it, and its digest for `url` if given.

        Raises `StoreError`.
        """
        models, digests = self._read()
        old = models.get(name)
        models[name] = record
        if url:
            digests[url] = record.sha256
        # The record comes first: a record without its file counts as no checkpoint.
        self._write(models, digests)
        try:
            os.replace(content, self.folder / record.file)  # noqa: PTH105 - the name says that it is atomic
        except OSError as error:
            raise StoreError(f"cannot write {self.folder / record.file}: {error.strerror}") from error
        if old is not None and old.file != record.file:
            (self.folder / old.file).unlink(missing_ok=True)
        return Stored(path=self.folder / record.file, record=record)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the folder for one pull, and make it if needed. Raises `StoreError` where another pull has the lock."""
        with contextlib.ExitStack() as held:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                held.enter_context(lock.exclusive(self.folder / ".lock"))
            except BlockingIOError as error:
                raise StoreError(f"another pull is at work in {self.folder}; wait for its end") from error
            except OSError as error:
                raise StoreError(f"cannot write to {self.folder}: {error.strerror}; name another --store") from error
            yield

    def _read(self) -> tuple[dict[str, Record], dict[str, str]]:
        path = self.folder / RECORDS_FILE
        try:
            content: Any = json.loads(path.read_bytes())
            models = {str(name): Record(**fields) for name, fields in content["models"].items()}
            digests = {str(url): str(digest) for url, digest in content["digests"].items()}
        except FileNotFoundError:
            return {}, {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise StoreError(f"cannot read {path}: {error}; delete it and pull again") from error
        return models, digests

    def _write(self, models: dict[str, Record], digests: dict[str, str]) -> None:
        content = {"models": {name: asdict(models[name]) for name in sorted(models)}, "digests": digests}
        path = self.folder / RECORDS_FILE
        try:
            atomic.write(path, (json.dumps(content, indent=2, sort_keys=True) + "\n").encode())
        except OSError as error:
            raise StoreError(f"cannot write {path}: {error.strerror}") from error


def git_blob(path: Path) -> str:
    """The id git gives to these bytes."""
    total = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            total.update(chunk)
    return total.hexdigest()
