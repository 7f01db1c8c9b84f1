"""Checkpoint files that were made to hurt: code in pickles, lying headers, huge tensors of few bytes.

`runner` makes the function under test. It ends the process if a file could start anything.
"""

import collections
import io
import json
import os
import pickle
import struct
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# What code in a file would do. Python raises `pickle.find_class` in the unpickler that can run code. torch itself makes
# and removes temporary files.
_FORBIDDEN: tuple[str, ...] = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.fork",
    "subprocess.Popen",
    "pickle.find_class",
)
_FORBIDDEN += ("socket.connect",)


def runner(
    torch: Any, read_file: Callable[[Path], Any], load: Callable[..., None], layout: Any
) -> Callable[[bytes], None]:
    """Return a function that reads a file and loads it into a small network. Its first byte chooses the suffix."""
    folder = Path(tempfile.mkdtemp(prefix="mobilevision-fuzz-"))
    network = torch.nn.Linear(3, 2)
    watching = False

    def watch(event: str, _arguments: tuple[object, ...]) -> None:
        if watching and event.startswith(_FORBIDDEN):
            os.write(2, f"a checkpoint caused {event}\n".encode())
            os._exit(99)

    sys.addaudithook(watch)

    def run(content: bytes) -> None:
        nonlocal watching
        suffix = ".safetensors" if content[:1] == b"s" else ".pt"
        path = folder / f"weights{suffix}"
        path.write_bytes(content[1:])
        watching = True
        try:
            load(network, read_file(path), layout)
        finally:
            watching = False

    return run


class _Runs:
    def __init__(self, call: Callable[..., Any], *arguments: Any) -> None:
        self._call = (call, arguments)

    def __reduce__(self) -> Any:
        return self._call


def _safetensors(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = json.dumps(header).encode()
    return b"s" + struct.pack("<Q", len(text) if length is None else length) + text + data


def seeds() -> Iterator[bytes]:
    """Yield right files of each kind, then hostile ones."""
    import torch
    from safetensors.torch import save

    right = {"weight": torch.ones(2, 3), "bias": torch.zeros(2)}
    yield b"s" + save(right)
    for content in (right, {"state_dict": right}, {f"module.{name}": value for name, value in right.items()}):
        for zipped in (True, False):
            yield b"p" + _saved(torch, content, zipped=zipped)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls sparse and quantized tensors unfinished
        odd = [_saved(torch, content, zipped=True) for content in _odd_contents(torch, right)]
    yield from (b"p" + content for content in odd)
    # Code.
    for attack in (
        _Runs(os.system, "true"), _Runs(eval, "__import__('os').system('true')"), _Runs(exec, "import os"),
        _Runs(os.remove, "/nonexistent"), _Runs(getattr, "a", "b"), _Runs(torch.load, "/dev/null"),
        _Runs(bytearray, 2**40), _Runs(collections.OrderedDict, [("a", 1)]),
    ):  # fmt: skip
        for hostile in (attack, {"weight": attack}):
            for protocol in (0, 2, 4):
                yield b"p" + pickle.dumps(hostile, protocol)
            yield b"p" + _zipped({"archive/data.pkl": pickle.dumps(hostile, 2), "archive/version": b"3\n"})
    deep: object = []
    for _ in range(300):
        deep = [deep]
    yield b"p" + pickle.dumps(deep, 2)
    yield b"p" + b"\x80\x02" + b"(" * 50_000 + b"."
    yield b"p" + b"\x80\x02]" + b"]a" * 50_000 + b"."
    yield b"p" + _zipped({"archive/data.pkl": bytes(2**24), "archive/version": b"3\n"})
    yield b"p" + _zipped({"archive/code/a.py": b"import os", "archive/constants.pkl": b"", "archive/version": b"3\n"})
    # Headers of safetensors.
    entry = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
    for header in (
        {"weight": entry | {"shape": [2**62, 2**62]}}, {"weight": entry | {"shape": [-1]}}, {"weight": entry | {"dtype": "F99"}},
        {"weight": entry | {"data_offsets": [24, 0]}}, {"weight": entry | {"data_offsets": [0, 2**63]}}, [], 5, {"weight": 5},
        {"weight": entry, "bias": entry}, {"__metadata__": {"a": 5}}, {"__metadata__": {"a": "b"}, "weight": entry},
        {"weight": entry | {"shape": [0, 2**60], "data_offsets": [0, 0]}}, *({"weight": entry | {"dtype": kind}} for kind in _KINDS),
    ):  # fmt: skip
        yield _safetensors(header, bytes(24))
    for length in (0, 1, 2**32, 2**63, 2**64 - 1, 100_000_001):
        yield _safetensors({"weight": entry}, bytes(24), length)
    yield b"s" + struct.pack("<Q", 50_000) + b"[" * 50_000
    yield b"s"
    yield b"p"


def _odd_contents(torch: Any, right: dict[str, Any]) -> list[object]:
    # A few bytes that state a tensor of many: strides of zero.
    wide = torch.zeros(1).expand(2**40)
    return [
        {"weight": wide, "bias": torch.zeros(2)}, {"weight": torch.zeros(1).expand(2**20, 2**20, 2**20)}, right | {"more": wide},
        {}, [], 5, None, "text", {5: torch.zeros(1)}, {"weight": 5}, {"weight": float("nan")},
        {"weight": torch.full((2, 3), float("nan")), "bias": torch.zeros(2)}, {"state_dict": {}},
        {"weight": torch.sparse_coo_tensor(torch.zeros(2, 1, dtype=torch.long), torch.ones(1), (2, 3)), "bias": torch.zeros(2)},
        {"weight": torch.quantize_per_tensor(torch.ones(2, 3), 0.1, 0, torch.quint8), "bias": torch.zeros(2)},
        {"weight": torch.ones(2, 3, dtype=torch.complex64), "bias": torch.zeros(2, dtype=torch.bool)},
        {"weight": torch.ones(2, 3, device="meta"), "bias": torch.zeros(2)}, {"weight": torch.ones(2, 3).to_sparse_csr()},
        collections.OrderedDict(right), {"x" * 100_000: torch.zeros(1)}, {"\ud800": torch.zeros(1)},
        {f"k{i}": torch.zeros(0) for i in range(3000)},
    ]  # fmt: skip


_KINDS = (
    "F64",
    "F16",
    "BF16",
    "I64",
    "I8",
    "U8",
    "BOOL",
    "F8_E4M3",
    "F8_E5M2",
    "F4",
    "F6_E2M3",
    "F8_E8M0",
    "U16",
    "C64",
    "E4M3",
)


def _saved(torch: Any, content: object, *, zipped: bool) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream, _use_new_zipfile_serialization=zipped)
    return stream.getvalue()


def _zipped(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return stream.getvalue()
