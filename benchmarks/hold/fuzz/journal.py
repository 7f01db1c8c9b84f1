"""What a fuzzing process does right now, in a file that outlives the process. The runner reads it."""

import mmap
import struct
import time
from pathlib import Path

_HEAD = struct.Struct(
    "<QddI"
)  # inputs begun; when the current one began, 0 between inputs; slowest; bytes of the input


class Journal:
    """A mapped file: number of inputs, the current input and when it began, the slowest time. Times are `monotonic`."""

    def __init__(self, path: Path, longest_bytes: int, *, create: bool) -> None:
        size = _HEAD.size + longest_bytes
        if create:
            path.write_bytes(bytes(size))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), size)
        self._inputs = 0
        self._slowest_seconds = 0.0
        self._began_at = 0.0

    def begin(self, content: bytes) -> None:
        """Write down an input before it is tried."""
        self._inputs += 1
        kept = content[: len(self._map) - _HEAD.size]
        self._map[_HEAD.size : _HEAD.size + len(kept)] = kept
        self._began_at = time.monotonic()
        _HEAD.pack_into(self._map, 0, self._inputs, self._began_at, self._slowest_seconds, len(kept))

    def end(self) -> float:
        """Write down that the input was survived. Returns its seconds."""
        took = time.monotonic() - self._began_at
        self._slowest_seconds = max(self._slowest_seconds, took)
        _HEAD.pack_into(self._map, 0, self._inputs, 0.0, self._slowest_seconds, 0)
        return took

    def read(self) -> tuple[int, float, float, bytes]:
        """Return the inputs begun, when the current one began (0: none), the slowest time, and the current input."""
        inputs, began_at, slowest, size = _HEAD.unpack_from(self._map, 0)
        return inputs, began_at, slowest, bytes(self._map[_HEAD.size : _HEAD.size + size])
