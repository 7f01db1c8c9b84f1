"""Keeps the measured micro-batch of a module, so that a worker that replaces another is ready seconds earlier.

In: a private folder that outlives the workers of one server, and what the number depends on. Out: the number, or None.
A file that cannot be read or written is as if it were missing: then the worker measures again.
"""

import contextlib
import os
from pathlib import Path

MOST_BYTES = 20


class KeptCalibration:
    """The micro-batch of one module on this machine. `directory` None: nothing is kept."""

    def __init__(self, directory: Path | None, *, module_sha256: str, pair: str, threads: int) -> None:
        name = f"calibration-{module_sha256}-{pair.replace('/', '-')}-{threads}"
        self._path = None if directory is None else directory / name

    def read(self, max_batch: int) -> int | None:
        """The number that an earlier worker measured, 1 to `max_batch`. None: measure it."""
        if self._path is None:
            return None
        try:
            with self._path.open("rb") as file:
                micro_batch = int(file.read(MOST_BYTES))
        except (OSError, ValueError):
            return None
        return micro_batch if 1 <= micro_batch <= max_batch else None

    def write(self, micro_batch: int) -> None:
        """Keep the number for later workers."""
        if self._path is None:
            return
        temporary = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        with contextlib.suppress(OSError):
            temporary.write_text(str(micro_batch))
            temporary.replace(self._path)
