"""Fetch one file of a published folder into an unfinished file on this machine.

In: a remote, a file of its manifest, a path. Out: the path holds the bytes that the manifest names, or a
`DeliveryError`. What an earlier attempt left is read and hashed first, then continued. After `Unreachable` and after a
cancellation the bytes stay for the next attempt; after every other error the file is removed.
"""

import asyncio
import contextlib
import hashlib
import os
import random
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

from model_store.delivery.errors import DeliveryError, FolderError, RangeRefused, Unreachable, WrongDigest
from model_store.delivery.manifest import File
from model_store.delivery.progress import Progress
from model_store.delivery.remote import Remote

ATTEMPTS = 5  # in a row that bring nothing
RESTARTS = 3  # from the first byte
_LONGEST_PAUSE_SECONDS = 20.0
_READ_BYTES = 2**20

Pause = Callable[[float], Awaitable[None]]  # waits so many seconds


class _Part:
    """An unfinished file that is open: how much it has, and the digest of that."""

    def __init__(self, path: Path) -> None:
        self.path = path
        # Never through a link: who can write to the folder could lead the bytes elsewhere.
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        self._file = os.fdopen(descriptor, "r+b")
        self._digest = hashlib.sha256()
        self.size = 0
        while chunk := self._file.read(_READ_BYTES):
            self._digest.update(chunk)
            self.size += len(chunk)

    @property
    def sha256(self) -> str:
        """Digest (hex) of what is there."""
        return self._digest.hexdigest()

    def append(self, chunk: bytes) -> None:
        """Add bytes. Raises `OSError`."""
        self._file.write(chunk)
        self._digest.update(chunk)
        self.size += len(chunk)

    def empty(self) -> None:
        """Begin anew. Raises `OSError`."""
        self._file.seek(0)
        self._file.truncate()
        self._digest = hashlib.sha256()
        self.size = 0

    def close(self) -> None:
        """Write all through to the disk. Raises `OSError`."""
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
        finally:
            self._file.close()


async def download(remote: Remote, file: File, path: Path, *, progress: Progress, pause: Pause = asyncio.sleep) -> None:
    """Fetch `file` into `path`. Raises `DeliveryError`.

    An attempt that breaks off is continued where it ended. After `ATTEMPTS` attempts in a row without a byte, it raises
    `Unreachable`. Where a continued file has another digest, or the store cannot continue, the file is fetched from its
    beginning, at most `RESTARTS` times. A file that came in one piece with another digest is `WrongDigest` at once.
    """
    keep = False
    try:
        with _opened(path) as part:
            try:
                await _fill(remote, file, part, progress, pause)
            except (Unreachable, asyncio.CancelledError):
                keep = part.size > 0
                raise
            keep = True
    finally:
        if not keep:
            _remove(path)


async def _fill(remote: Remote, file: File, part: _Part, progress: Progress, pause: Pause) -> None:
    failures = restarts = 0
    while True:
        before = part.size
        try:
            await _append(remote, file, part, progress)
            if part.size == file.size_bytes and part.sha256 == file.sha256:
                return
            wrong: DeliveryError = WrongDigest(
                f"{remote.shown}/{file.path} ({file.name}): {part.size} bytes with sha256 {part.sha256}, the manifest "
                f"says {file.size_bytes} bytes; publish the folder again"
            )
        except RangeRefused as error:
            wrong = error
        except Unreachable:
            failures = failures + 1 if part.size == before else 1
            if failures == ATTEMPTS:
                raise
            longest = min(_LONGEST_PAUSE_SECONDS, 2.0 ** (failures - 1))
            await pause(longest * random.uniform(0.5, 1.0))  # noqa: S311 - spreads the load of many pods
            continue
        if before == 0 or restarts == RESTARTS:
            raise wrong
        restarts += 1
        progress.advance(file.name, -part.size)
        part.empty()


async def _append(remote: Remote, file: File, part: _Part, progress: Progress) -> None:
    """Append what is missing. Takes at most one byte more than the manifest says, and counts that as wrong."""
    if part.size >= file.size_bytes:
        return
    async with contextlib.aclosing(remote.stream(file.path, part.size, expected_bytes=file.size_bytes)) as chunks:
        async for chunk in chunks:
            fits = chunk[: file.size_bytes + 1 - part.size]
            part.append(fits)
            progress.advance(file.name, len(fits))
            if part.size > file.size_bytes:
                return
    if part.size < file.size_bytes:
        raise Unreachable(
            f"{remote.shown}/{file.path} ({file.name}): it broke off after {part.size} of {file.size_bytes} bytes; "
            "run the same command again"
        )


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):  # another error is on its way
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[_Part]:
    try:
        part = _Part(path)
        try:
            yield part
        finally:
            part.close()
    except OSError as error:
        raise FolderError(
            f"cannot write to {path.parent}: {error.strerror or error}; make room, or name another folder with --to"
        ) from error
