"""The folder of recorded calls: serialised calls in, one file each out, bounded in bytes, count and age.

Several gateway processes may share the folder. Only files with the suffix `.call` are ever deleted. A name is the time
at which the call ended, and a digest of the request id, because an id may hold any printable character:
`{nanoseconds:020}-{first 32 hexadecimal digits of the sha256 of the id}.call`.

Files and folder are readable by their owner only. Every method may raise OSError.
"""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

SUFFIX = ".call"
UNFINISHED_SUFFIX = ".part"
UNFINISHED_SECONDS = 60.0  # a file that is still being written is younger

_FREED = 1 / 8  # of the limits, when one is reached, so that not every write has to delete


class FolderNotPrivate(OSError):
    """Others may read the folder of recorded calls."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What the folder may hold. `writers`: gateway processes that write into it."""

    most_bytes: int
    most_calls: int
    most_seconds: float
    writers: int = 1


class RecordingStore:
    """Writes and deletes files. For one thread. `clock` returns seconds since 1970-01-01 UTC."""

    def __init__(self, folder: Path, bounds: Bounds, clock: Callable[[], float]) -> None:
        self._folder = folder
        self._bounds = bounds
        self._clock = clock
        self._spare_bytes = self._spare_calls = 0  # what this process may still write before it looks at the folder

    def open(self) -> None:
        """Make the folder if it is missing, and delete what is too old or too much. Raises `FolderNotPrivate`."""
        prepare(self._folder)
        self.prune()

    def write(self, request_id: str, content: bytes) -> None:
        """Write a call. Raises OSError, and leaves nothing of the call then."""
        if len(content) > self._bounds.most_bytes:
            raise OSError(f"a call of {len(content)} bytes is larger than recording_megabytes allows")
        if self._spare_calls < 1 or self._spare_bytes < len(content):
            self.prune(len(content))
        self._spare_calls -= 1
        self._spare_bytes -= len(content)
        path = self._folder / f"{round(self._clock() * 1e9):020}-{digest(request_id)}{SUFFIX}"
        part = path.with_suffix(UNFINISHED_SUFFIX)
        try:
            with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(content)
            part.rename(path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise

    def prune(self, wanted_bytes: int = 0) -> None:
        """Delete calls that are too old, and the oldest ones that are too much.

        With `wanted_bytes`, an eighth of the folder and room for a call of that size are free afterwards.
        """
        now, bounds = self._clock(), self._bounds
        calls: list[tuple[str, int]] = []
        with os.scandir(self._folder) as entries:
            for entry in entries:
                if entry.name.endswith(UNFINISHED_SUFFIX):
                    if now - entry.stat().st_mtime > UNFINISHED_SECONDS:  # of a process that was killed
                        Path(entry.path).unlink(missing_ok=True)
                elif entry.name.endswith(SUFFIX):
                    calls.append((entry.name, _size(entry)))
        calls.sort()
        total_bytes, count = sum(size for _, size in calls), len(calls)
        oldest = f"{max(round((now - bounds.most_seconds) * 1e9), 0):020}"
        most_bytes, most_calls = bounds.most_bytes, bounds.most_calls
        if wanted_bytes:
            most_bytes = min(int(most_bytes * (1 - _FREED)), most_bytes - wanted_bytes)
            most_calls = min(int(most_calls * (1 - _FREED)), most_calls - 1)
        for name, size in calls:
            if name >= oldest and total_bytes <= most_bytes and count <= most_calls:
                break
            (self._folder / name).unlink(missing_ok=True)  # another process may be faster
            total_bytes -= size
            count -= 1
        self._spare_bytes = max((bounds.most_bytes - total_bytes) // bounds.writers, wanted_bytes)
        self._spare_calls = max((bounds.most_calls - count) // bounds.writers, 1)


def digest(request_id: str) -> str:
    """The part of a file's name that stands for the request id."""
    return hashlib.sha256(request_id.encode()).hexdigest()[:32]


def prepare(folder: Path) -> None:
    """Make the folder, or check the one that is there. Raises `FolderNotPrivate`, or another OSError."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_mode & 0o077:
        raise FolderNotPrivate(f"others may read the folder {folder}; run: chmod 700 {folder}")


def _size(entry: "os.DirEntry[str]") -> int:
    try:
        return entry.stat().st_size
    except FileNotFoundError:  # another process deleted it
        return 0
