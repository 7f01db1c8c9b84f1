"""The tensor frame: how named tensors travel between gateway and worker.

In: arrays by name and small metadata. Out: bytes, or the reverse. Never copies tensors when it reads. Numpy only. A
frame is

    magic "MVF1" | u32 header length | header, JSON | padding | tensor bytes, each 64-byte aligned

all little-endian. The header is `{"tensors": [{"name", "dtype", "shape", "offset"}...], "meta": {...}}`. Offsets count
from the aligned end of the header.
"""

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

MAGIC = b"MVF1"
ALIGNMENT_BYTES = 64
DTYPES = ("uint8", "int32", "float32")
MAX_DIMENSIONS = 32

_NAMES = {np.dtype(name): name for name in DTYPES}  # a look-up, because `dtype.name` takes numpy microseconds
_PREFIX = struct.Struct("<4sI")

Array = np.ndarray[Any, np.dtype[Any]]


class FrameError(ValueError):
    """The bytes are not a frame that this version can read, or the arrays do not fit into a frame."""


def _align(offset: int) -> int:
    return (offset + ALIGNMENT_BYTES - 1) // ALIGNMENT_BYTES * ALIGNMENT_BYTES


def pack(tensors: Mapping[str, Array], meta: Mapping[str, float | int | str] | None = None) -> bytes:
    """Write named arrays (uint8, int32 or float32; any shape) and small metadata into one frame.

    Raises `FrameError` for an array of another dtype.
    """
    layout = _Layout.of(tensors, meta or {})
    frame = bytearray(layout.size_bytes)
    layout.write(memoryview(frame))
    return bytes(frame)


def pack_into(buffer: Array, tensors: Mapping[str, Array], meta: Mapping[str, float | int | str] | None = None) -> int:
    """Write a frame at the start of `buffer`, uint8 [bytes]. Returns the length of the frame in bytes.

    Raises `FrameError` for an array of another dtype, or if the frame does not fit.
    """
    layout = _Layout.of(tensors, meta or {})
    if layout.size_bytes > buffer.nbytes:
        raise FrameError(f"a frame of {layout.size_bytes} bytes does not fit into {buffer.nbytes}")
    layout.write(buffer.data)
    return layout.size_bytes


@dataclass(frozen=True)
class _Layout:
    """The header of a frame, and each array with its offset in bytes from `data_start`."""

    header: bytes
    arrays: tuple[tuple[int, Array], ...]
    data_start: int
    size_bytes: int

    @classmethod
    def of(cls, tensors: Mapping[str, Array], meta: Mapping[str, float | int | str]) -> "_Layout":
        entries: list[dict[str, object]] = []
        arrays: list[tuple[int, Array]] = []
        relative = 0
        for name, array in tensors.items():
            dtype = _NAMES.get(array.dtype)
            if dtype is None:
                raise FrameError(f"tensor {name!r} has dtype {array.dtype.name}; a frame carries {', '.join(DTYPES)}")
            relative = _align(relative)
            entries.append({"name": name, "dtype": dtype, "shape": array.shape, "offset": relative})
            arrays.append((relative, np.ascontiguousarray(array)))
            relative += array.nbytes
        # Offsets count from the aligned start of the data, so they do not depend on the header's length.
        header = json.dumps({"tensors": entries, "meta": dict(meta)}, separators=(",", ":")).encode()
        data_start = _align(_PREFIX.size + len(header))
        return cls(header, tuple(arrays), data_start, data_start + relative)

    def write(self, frame: memoryview) -> None:
        _PREFIX.pack_into(frame, 0, MAGIC, len(self.header))
        frame[_PREFIX.size : _PREFIX.size + len(self.header)] = self.header
        for offset, array in self.arrays:
            start = self.data_start + offset
            frame[start : start + array.nbytes] = array.data.cast("B") if array.size else b""


def unpack(frame: bytes | bytearray | memoryview) -> tuple[dict[str, Array], dict[str, Any]]:
    """Read a frame. Returns arrays by name, which are views of `frame`, and the metadata. Raises `FrameError`."""
    view = memoryview(frame)
    try:
        magic, header_length = _PREFIX.unpack_from(view, 0)
        if magic != MAGIC:
            raise ValueError(f"it starts with {magic!r}, not {MAGIC!r}")  # noqa: TRY301 - becomes a FrameError below
        header = json.loads(bytes(view[_PREFIX.size : _PREFIX.size + header_length]))
        data_start = _align(_PREFIX.size + header_length)
        meta = header["meta"]
        if not isinstance(meta, dict) or not all(isinstance(value, int | float | str) for value in meta.values()):
            raise ValueError("its metadata are not numbers and texts by name")  # noqa: TRY301
        tensors: dict[str, Array] = {}
        for entry in header["tensors"]:
            if not isinstance(entry["name"], str):
                raise TypeError(f"a tensor is named {entry['name']!r}")  # noqa: TRY301
            if entry["dtype"] not in DTYPES:
                raise ValueError(f"tensor {entry['name']!r} has unknown dtype {entry['dtype']!r}")  # noqa: TRY301
            dtype = np.dtype(entry["dtype"])
            shape = tuple(entry["shape"])
            # numpy would take a negative number for "the rest", and the product of many large ones takes long.
            if len(shape) > MAX_DIMENSIONS or min(shape, default=0) < 0:
                raise ValueError(f"tensor {entry['name']!r} cannot have {len(shape)} sides {str(shape)[:80]}")  # noqa: TRY301
            count = math.prod(shape)
            offset = data_start + int(entry["offset"])
            tensors[entry["name"]] = np.frombuffer(view, dtype, count, offset).reshape(shape)
    except (struct.error, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise FrameError(f"not a tensor frame: {error}") from error
    return tensors, meta
