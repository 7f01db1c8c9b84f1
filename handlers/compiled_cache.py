"""Keeps a compiled network in a private folder, so that the next worker of the same server starts without compiling.

In: how to build the content, how to read it, and what it depends on. Out: what `read` makes of the content. A file is
written beside its place and renamed, carries its own sha256, and is built again where that does not fit. Workers that
start at once wait for the first of them, which compiles for all. Whatever fails about the files, the worker compiles
for itself.
"""

import contextlib
import fcntl
import hashlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

PREFIX = "compiled-"
MOST_FILES = 32
MOST_BYTES = 512 * 2**20  # of all files together, without the newest; the run directory of the manifests holds 2 GiB
LONGEST_WAIT_SECONDS = 60.0  # for another worker: longer than any network takes to compile
_WAIT_SECONDS = 0.05
_DIGEST_BYTES = hashlib.sha256().digest_size

logger = logging.getLogger(__name__)

T = TypeVar("T")


class CompiledCache:
    """The file of one compiled network. `directory` None: nothing is kept. `key`: all that the content depends on."""

    def __init__(
        self,
        directory: Path | None,
        key: tuple[str, ...],
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        name = PREFIX + hashlib.sha256("\n".join(key).encode()).hexdigest()[:32]
        self._path = None if directory is None else directory / name
        self._clock, self._sleep = clock, sleep
        self.hit = False

    def get(self, build: Callable[[], bytes], read: Callable[[bytes], T]) -> T:
        """Read the kept content, or build, keep and read it. Raises what `build` raises, or `read` of fresh content."""
        if self._path is None:
            return read(build())
        with self._locked(self._path):
            kept = _content(self._path)
            if kept is not None:
                try:
                    found = read(kept)
                except Exception as error:  # noqa: BLE001 - any failure of the engine's reader
                    logger.warning("a compiled network cannot be read and is built again: %s", error)
                else:
                    self.hit = True
                    return found
            content = build()
            _write(self._path, content)
        return read(content)

    @contextlib.contextmanager
    def _locked(self, path: Path) -> Iterator[None]:
        """Hold the lock of this file, or give up after a while: two workers may compile the same without harm."""
        with contextlib.ExitStack() as stack:
            try:
                lock = stack.enter_context(path.with_name(f"{path.name}.lock").open("w"))
                give_up_at = self._clock() + LONGEST_WAIT_SECONDS
                while not _lock(lock.fileno()) and self._clock() < give_up_at:
                    self._sleep(_WAIT_SECONDS)
            except OSError as error:
                logger.warning("compiled networks cannot be kept: %s", error)
            yield  # closing the file gives the lock back, and so does the end of the process


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _content(path: Path) -> bytes | None:
    """The content of a file that is whole. None: there is none."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    digest, content = data[:_DIGEST_BYTES], data[_DIGEST_BYTES:]
    if hashlib.sha256(content).digest() != digest:
        logger.warning("%s is damaged; the network is compiled again", path.name)
        return None
    return content


def _write(path: Path, content: bytes) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(hashlib.sha256(content).digest() + content)
        temporary.replace(path)
        _prune(path)
    except OSError as error:
        logger.warning("a compiled network cannot be kept: %s", error)
        with contextlib.suppress(OSError):
            temporary.unlink()


def _prune(newest: Path) -> None:
    """Remove the oldest files beyond the limits. A lock file stays: another worker may hold it."""
    aged = []
    for path in newest.parent.glob(f"{PREFIX}*"):
        if path.suffix == "" and path != newest:
            with contextlib.suppress(OSError):  # another worker removed it
                aged.append((path.stat().st_mtime, path.stat().st_size, path))
    kept_files, kept_bytes = 1, 0
    for _, size, path in sorted(aged, reverse=True):
        kept_files, kept_bytes = kept_files + 1, kept_bytes + size
        if kept_files > MOST_FILES or kept_bytes > MOST_BYTES:
            path.unlink(missing_ok=True)
