"""A file that is followed while calls arrive: looked at once a second at most, and the last good content stays in use.

In: paths, a function that loads them, a clock. Out: the value. A file that cannot be read or parsed is logged once for
each new reason. Never reads more than `MOST_BYTES`.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from service.core.reloaded_file import ReloadedFile

LOOK_SECONDS = 1.0
MOST_BYTES = 2**20

Value = TypeVar("Value")

_log = logging.getLogger(__name__)


class FileInvalid(ValueError):
    """A file cannot be read or has the wrong content. The message names the file and never quotes its content."""


class FollowedFile(Generic[Value]):
    """The value that `load` makes of the file at `path`. `load` gets its bytes and raises `FileInvalid`.

    The constructor loads the file. It raises `FileInvalid`.
    """

    def __init__(self, path: Path, *, load: Callable[[bytes], Value], clock: Callable[[], float]) -> None:
        self._path = path
        self._clock = clock
        self._file = ReloadedFile(path, load=lambda: load(_read(path)))
        self._value = self._file.value()
        self._look_at = clock() + LOOK_SECONDS
        self._failure = ""

    def value(self) -> Value:
        """Return the value of the file as it was within the last second, or the last good one."""
        now = self._clock()
        if now >= self._look_at:
            self._look_at = now + LOOK_SECONDS
            self._look()
        return self._value

    def _look(self) -> None:
        try:
            changed = self._file.changed
            self._value = self._file.value()
        except FileInvalid as error:
            if str(error) != self._failure:
                self._failure = str(error)
                _log.error("the last good content of %s stays in use: %s", self._path, error)
            return
        if changed or self._failure:
            self._failure = ""
            _log.info("read %s again", self._path)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            raw = stream.read(MOST_BYTES + 1)
    except OSError as error:
        raise FileInvalid(f"{path} cannot be read: {error.strerror or type(error).__name__}") from error
    if len(raw) > MOST_BYTES:
        raise FileInvalid(f"{path} has more than {MOST_BYTES} bytes")
    return raw
