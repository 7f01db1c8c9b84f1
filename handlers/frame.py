"""The tensor frame: how a batch of named tensors travels between gateway and worker.

One of the two contracts between the request path and the build path. A frame is

    magic "MVF1" | u32 header length | header, JSON | padding | tensor bytes, each 64-byte aligned

all little-endian. The header is `{"tensors": [{"name", "dtype", "shape", "offset"}...], "meta": {...}}`, offsets
counted from the aligned end of the header. `unpack` returns views, no copies. Numpy only: the gateway has no torch.
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

_NAMES = {np.dtype(name): name for name in DTYPES}  # numpy takes microseconds to name a dtype
_PREFIX = struct.Struct("<4sI")

Array = np.ndarray[Any, np.dtype[Any]]


class FrameError(ValueError):
    """The bytes are not a frame this version can read."""


def _align(offset: int) -> int:
    return (offset + ALIGNMENT_BYTES - 1) // ALIGNMENT_BYTES * ALIGNMENT_BYTES


def pack(tensors: Mapping[str, Array], meta: Mapping[str, float | int | str] | None = None) -> bytes:
    """Write named arrays (uint8, int32 or float32; any shape) and small metadata into one frame."""
    plan = _Plan.of(tensors, meta or {})
    frame = bytearray(plan.size_bytes)
    plan.write(memoryview(frame))
    return bytes(frame)


def pack_into(buffer: Array, tensors: Mapping[str, Array], meta: Mapping[str, float | int | str] | None = None) -> int:
    """Write the frame at the start of `buffer` uint8 [bytes]; its length. Raises `FrameError` where it does not fit."""
    plan = _Plan.of(tensors, meta or {})
    if plan.size_bytes > buffer.nbytes:
        raise FrameError(f"a frame of {plan.size_bytes} bytes does not fit into {buffer.nbytes}")
    plan.write(buffer.data)
    return plan.size_bytes


@dataclass(frozen=True)
class _Plan:
    """What goes where in a frame: bytes of each array at an offset from `data_start`."""

    header: bytes
    arrays: tuple[tuple[int, Array], ...]
    data_start: int
    size_bytes: int

    @classmethod
    def of(cls, tensors: Mapping[str, Array], meta: Mapping[str, float | int | str]) -> "_Plan":
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
        # Offsets are relative to the aligned start of the data, so the header's own length does not move them.
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
    """Read a frame: (arrays by name, metadata). The arrays are views into `frame`. Raises `FrameError`."""
    view = memoryview(frame)
    try:
        magic, header_length = _PREFIX.unpack_from(view, 0)
        if magic != MAGIC:
            raise ValueError(f"it starts with {magic!r}, not {MAGIC!r}")  # noqa: TRY301 - told as a FrameError below
        header = json.loads(bytes(view[_PREFIX.size : _PREFIX.size + header_length]))
        data_start = _align(_PREFIX.size + header_length)
        tensors: dict[str, Array] = {}
        for entry in header["tensors"]:
            if entry["dtype"] not in DTYPES:
                raise ValueError(f"tensor {entry['name']!r} has unknown dtype {entry['dtype']!r}")  # noqa: TRY301
            dtype = np.dtype(entry["dtype"])
            shape = tuple(entry["shape"])
            count = math.prod(shape)
            offset = data_start + int(entry["offset"])
            tensors[entry["name"]] = np.frombuffer(view, dtype, count, offset).reshape(shape)
        return tensors, header["meta"]
    except (struct.error, ValueError, KeyError, TypeError, OverflowError) as error:
        raise FrameError(f"not a tensor frame: {error}") from error
