"""The words of workers that could not load their model, from TorchServe's log of its workers.

In: `workers.log` (`run_directory` sets its format). Out: the last words by model. Reads no more than what is new, and
of that no more than `MOST_BYTES`.
"""

import os
import re
from collections.abc import Iterable, MutableMapping
from pathlib import Path

MOST_BYTES = 2**20

DIED = "Backend worker process died."  # printed by ts/model_service_worker.py
WORDLESS = "its worker ended while it loaded the model"
# Time, thread, message. The thread of worker 9000 of version 1.0 of m is named W-9000-m_1.0-stdout.
_LINE = re.compile(r"\S+ W-\d+-(?P<model>.+)_[^_]*-std(?:out|err) (?P<message>.*)", re.DOTALL)
_FAILED = re.compile(r"(?:Failed to load|Load) model \S+.*?, exception (?P<words>.*)", re.DOTALL)


class WorkerLog:
    """Follows the log of one JVM's workers. The file may be missing, and is replaced when it has grown large."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._inode = 0
        self._offset = 0
        self._rest = b""
        self._said: dict[str, str] = {}

    def deaths(self) -> dict[str, str]:
        """The models of which a worker ended while it loaded, since the last call, with that worker's words."""
        try:
            with self._path.open("rb") as file:
                status = os.fstat(file.fileno())
                if status.st_ino != self._inode or status.st_size < self._offset:
                    self._inode, self._offset, self._rest = status.st_ino, 0, b""
                file.seek(max(self._offset, status.st_size - MOST_BYTES))
                content = file.read(MOST_BYTES)
                self._offset = file.tell()
        except OSError:
            return {}
        *lines, self._rest = (self._rest + content).split(b"\n")
        self._rest = self._rest[-MOST_BYTES:]
        return _dead_models((line.decode(errors="replace") for line in lines), self._said)


def _dead_models(lines: Iterable[str], said: MutableMapping[str, str]) -> dict[str, str]:
    """`said` keeps the words of workers that have not ended yet."""
    dead: dict[str, str] = {}
    for line in lines:
        found = _LINE.fullmatch(line)
        if found is None:
            continue
        model, message = found["model"], found["message"]
        failed = _FAILED.match(message)
        if failed is not None:
            said[model] = failed["words"]
        elif message.startswith(DIED):
            dead[model] = said.pop(model, "").strip() or WORDLESS
    return dead
