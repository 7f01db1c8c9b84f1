"""Keeps what a worker measured of a module, so that a worker that replaces another is ready seconds earlier.

In: a private folder that outlives the workers of one server, and what the result depends on. Out: the result, or None.
A file that cannot be read or written is as if it were missing: then the worker measures again.
"""

import contextlib
import os
from collections.abc import Collection
from pathlib import Path

MOST_BYTES = 40


class Kept:
    """One short result of one module on this machine.

    `directory` None: nothing is kept. `key` names what was measured and all that it depends on.
    """

    def __init__(self, directory: Path | None, *key: str) -> None:
        self._path = None if directory is None else directory / "-".join((*key,)).replace("/", "-")

    def read(self) -> str | None:
        """What an earlier worker wrote. None: measure it."""
        if self._path is None:
            return None
        try:
            with self._path.open("rb") as file:
                return file.read(MOST_BYTES).decode()
        except (OSError, ValueError):
            return None

    def write(self, result: str) -> None:
        """Keep a result, at most `MOST_BYTES` long, for later workers."""
        if self._path is None:
            return
        temporary = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        with contextlib.suppress(OSError):
            temporary.write_text(result)
            temporary.replace(self._path)


def one_of(kept: Kept, allowed: Collection[str]) -> str | None:
    """The kept result if it is one of those allowed. None: measure it."""
    found = kept.read()
    return found if found in allowed else None
