"""A value that is read from files and follows them when they change: tokens, certificates, a roll-out file.

In: paths and a function that reads and parses them. Out: the parsed value. Looks at the files only when asked, never
writes to them, and logs nothing.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

Value = TypeVar("Value")
_Identity = tuple[tuple[int, int, int, int] | None, ...]


class ReloadedFile(Generic[Value]):
    """The value that `load` makes of `paths`, loaded again after one of them changed, appeared or went away.

    `load` reads the files itself, so that it may accept a missing file or combine several files.
    """

    def __init__(self, *paths: Path, load: Callable[[], Value]) -> None:
        self._paths = paths
        self._load = load
        self._identity: _Identity | None = None  # of the files when they were loaded last, None: never
        self._value: Value

    @property
    def changed(self) -> bool:
        """Whether `value` would load the files: they are not as they were at the last successful load."""
        return self._identity != self._identity_now()

    def value(self) -> Value:
        """The value of the files as they are now.

        Raises what `load` raises. The next call then loads again, and `last` is still the value loaded before.
        """
        identity = self._identity_now()  # before the load: a change meanwhile is noticed by the next call
        if identity != self._identity:
            self._value = self._load()
            self._identity = identity
        return self._value

    @property
    def last(self) -> Value | None:
        """The last value that was loaded without an error, None before the first one."""
        return None if self._identity is None else self._value

    def _identity_now(self) -> _Identity:
        return tuple(_identity_of(path) for path in self._paths)


def _identity_of(path: Path) -> tuple[int, int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    # The inode as well: a file that is replaced within one tick of the clock has the same time.
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size
