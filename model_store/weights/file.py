"""Checkpoint files: bytes in, what they hold out. Code in a file is never run.

The first bytes tell the kind of file, not its name: a safetensors file, or one of `torch.save` in its new form (a zip)
or old form (a pickle). A folder or an index file of shards is read as one file. Unknown classes of training frameworks
become inert objects. Everything else ends in a `CheckpointError` of one line.
"""

import argparse
import json
import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from model_store.weights.errors import CheckpointError

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".tar")  # names that checkpoints usually have
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_MAX_INDEX_BYTES = 64 * 2**20
_MAX_SHARDS = 1000
_MAX_STAND_INS = 200

# Packages whose classes stand beside the weights in checkpoints: configurations, logs, counters. None of them is
# imported. In their place stands an object that does nothing.
_HARMLESS_PACKAGES = (
    "mmengine", "mmcv", "mmdet", "mmseg", "mmpretrain", "mmcls", "numpy", "_codecs", "pytorch_lightning", "lightning",
    "lightning_fabric", "lightning_utilities", "torchmetrics", "omegaconf", "yacs", "hydra", "easydict", "addict",
    "timm", "transformers", "accelerate", "peft", "detectron2", "fvcore", "collections", "pathlib", "pathlib._local",
    "datetime", "typing", "enum", "types", "torch.optim", "torch.amp", "torch.cuda.amp", "__main__",
)  # fmt: skip


class _StandIn:
    """Stands in the place of an object of an unknown class."""

    def __new__(cls, *_: Any, **__: Any) -> "_StandIn":
        return super().__new__(cls)

    def __setstate__(self, _: Any) -> None:
        """Drop the state."""

    def __setitem__(self, _: Any, __: Any) -> None:
        """Drop an item."""


class _UnsafeClass(CheckpointError):
    """The file needs a class that may run code. `name` is the full name of the class."""

    def __init__(self, message: str, name: str) -> None:
        super().__init__(message)
        self.name = name


def read_content(path: Path) -> Any:
    """Return what a file holds, with all tensors on the CPU. Raises `CheckpointError`.

    A folder is read by its index of shards.
    """
    if path.is_dir():
        index = next((path / name for name in _INDEXES if (path / name).is_file()), None)
        if index is None:
            raise CheckpointError(f"{path}: a folder without {' or '.join(_INDEXES)}; name the file")
        return _shards(index)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    if path.name.endswith(".index.json"):
        return _shards(path)
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from error
    if start[8:9] == b"{":  # after eight bytes of length, JSON
        return _safetensors(path)
    if start.startswith(b"PK"):
        _check_zip(path)
        return _saved(path)
    if start.startswith(b"\x80"):  # a pickle
        return _saved(path)
    if not start:
        raise CheckpointError(f"{path}: empty")
    raise CheckpointError(
        f"{path}: truncated or damaged, or no checkpoint; safetensors files and files of torch.save are read"
    )


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file ({error})") from error


def _check_zip(path: Path) -> None:
    """Raise `CheckpointError` for a zip that is not one of `torch.save`, or that unpacks to more than it is."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, EOFError, struct.error) as error:
        raise CheckpointError(f"{path}: truncated or damaged ({error})") from error
    inside = {entry.filename.partition("/")[2] for entry in entries}
    if any(name.startswith("code/") for name in inside) or "constants.pkl" in inside:
        raise CheckpointError(
            f"{path}: a TorchScript module, not a checkpoint; serve it with `mobilevision models add {path.name}`, "
            "or save its state_dict()"
        )
    if "data.pkl" not in inside:
        raise CheckpointError(
            f"{path}: a zip file, but not one of torch.save; unpack it and name the checkpoint inside"
        )
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        total = sum(entry.file_size for entry in entries)
        raise CheckpointError(
            f"{path}: a compressed zip of {total / 1e6:,.0f} MB; torch.save does not compress, so it is not read"
        )


def _saved(path: Path) -> Any:
    """Read a file of `torch.save`. Classes of harmless packages become stand-ins, one more in each round."""
    stand_ins: dict[str, type] = {}
    for _ in range(_MAX_STAND_INS):
        try:
            return _load(path, stand_ins)
        except _UnsafeClass as error:
            if error.name in stand_ins or not _is_known(error.name):
                raise
            # Each name has a class of its own, because torch maps names to distinct classes.
            stand_ins[error.name] = type("_StandIn", (_StandIn,), {})
    raise CheckpointError(f"{path}: holds objects of more than {_MAX_STAND_INS} classes; save only the state_dict()")


def _is_known(name: str) -> bool:
    return any(name.startswith(f"{package}.") for package in _HARMLESS_PACKAGES)


def _load(path: Path, stand_ins: dict[str, type]) -> Any:
    # Training scripts keep their options beside the weights, as an argparse.Namespace.
    allowed: list[Any] = [argparse.Namespace, *((kind, name) for name, kind in stand_ins.items())]
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(allowed):
            warnings.simplefilter("ignore")  # about pickle protocols
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a dozen unrelated types for broken files
        name = _wanted(error)
        if name.startswith("torch.nn.") or name.startswith("torchvision."):
            raise CheckpointError(
                f"{path}: a whole pickled module ({name}), not a checkpoint; loading it would run its code. Save "
                "model.state_dict() instead, or a TorchScript file for `mobilevision models add`"
            ) from error
        if name:
            raise _UnsafeClass(
                f"{path}: would run code when loaded ({name}); only files of plain tensors are read", name
            ) from error
        raise CheckpointError(f"{path}: {_unreadable(error)}") from error
    _check_storages(path, content)
    return content


def _wanted(error: Exception) -> str:
    """The full name of the class that torch refused to load; empty for other errors."""
    if not isinstance(error, pickle.UnpicklingError):
        return ""
    found = re.search(r"\bGLOBAL ([\w.]+)", str(error))
    return found[1] if found else ""


def _unreadable(error: Exception) -> str:
    """The reason why torch could not read the file, in one line, without torch's advice to load it unsafely."""
    if isinstance(error, pickle.UnpicklingError):
        return "not a file of plain tensors; save only the state_dict()"
    message = str(error).strip().partition("\n")[0].partition(". ")[0]
    return f"truncated or damaged ({type(error).__name__}{f': {message}' if message else ''})"


def _check_storages(path: Path, content: Any) -> None:
    """Raise `CheckpointError` for tensors that would need more memory than the file has bytes for them."""
    for name, tensor in _tensors(content):
        plain = tensor.layout is torch.strided and tensor.device.type == "cpu"
        if not plain or tensor.is_quantized or tensor.is_complex():
            raise CheckpointError(f"{path}: {name} is a {_kind(tensor)} tensor; only plain (dense) tensors are read")
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise CheckpointError(f"{path}: {name} is larger than the bytes that the file has for it")


def _kind(tensor: Tensor) -> str:
    if tensor.is_quantized:
        return "quantised"
    if tensor.is_complex():
        return "complex"
    return tensor.device.type if tensor.device.type != "cpu" else str(tensor.layout).removeprefix("torch.")


def _tensors(content: Any, name: str = "") -> Iterable[tuple[str, Tensor]]:
    """All tensors in nested dicts, with their names."""
    pending = [(name, content)]
    seen: set[int] = set()
    while pending:
        name, value = pending.pop()
        if isinstance(value, Tensor):
            yield name or "the content", value
        elif isinstance(value, dict) and id(value) not in seen:
            seen.add(id(value))
            pending += [(f"{name}.{key}".lstrip("."), inner) for key, inner in value.items()]


def _shards(index: Path) -> dict[str, Tensor]:
    """Read all files that an index names, all of them in its own folder."""
    try:
        if index.stat().st_size > _MAX_INDEX_BYTES:
            raise CheckpointError(f"{index}: over {_MAX_INDEX_BYTES // 2**20} MiB; is it an index of shards?")
        files = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted({str(name) for name in files.values()})
    except OSError as error:
        raise CheckpointError(f"{index}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{index}: not an index of shards with a weight_map") from error
    if len(names) > _MAX_SHARDS:
        raise CheckpointError(f"{index}: names {len(names)} files; at most {_MAX_SHARDS} are read")
    merged: dict[str, Tensor] = {}
    for name in names:
        if Path(name).name != name or name in {"", ".", ".."} or name.endswith(".index.json"):
            raise CheckpointError(f"{index}: names {name!r}, which is not a file beside it")
        content = read_content(index.parent / name)
        if not isinstance(content, dict):
            raise CheckpointError(f"{index.parent / name}: holds {type(content).__name__}, not a dict of tensors")
        merged.update(content)
    missing = [name for name in files if name not in merged]
    if missing:
        raise CheckpointError(f"{index}: {len(missing)} tensors of it are in no shard, such as {missing[0]}")
    return merged
