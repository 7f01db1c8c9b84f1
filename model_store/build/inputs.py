"""Whether an archive is up to date: a digest over everything that it is made from, kept in a file beside it.

Never imports torch.
"""

import hashlib
import importlib.metadata
import json
from collections.abc import Sequence
from pathlib import Path

import handlers
import model_store

# Rooms whose sources an archive depends on. Demo weights count as a checkpoint does.
_ROOMS = {"build", "networks", "weights", "zoo"}
_DRAWS_PICTURES = ("dataset.py", "shapes.py")  # of `demo`: the agreement in the card is measured on these pictures


def digest(asked: Sequence[object]) -> str:
    """Sha256 (hex) over the sources of this project, the version of torch, and `asked`: the weights, as JSON values."""
    total = hashlib.sha256()
    package = Path(model_store.__path__[0])
    sources = [path for path in package.rglob("*.py") if path.relative_to(package).parts[0] in _ROOMS]
    sources += [package / "demo" / name for name in _DRAWS_PICTURES]
    sources += [*(package / "labels").glob("*.txt"), *Path(handlers.__path__[0]).rglob("*.py")]
    for path in sorted(sources):
        total.update(f"{path.name}\n{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    try:
        torch_version = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        torch_version = ""
    total.update(json.dumps([torch_version, *asked]).encode())
    return total.hexdigest()


def recorded(folder: Path, name: str) -> str:
    """The digest that the archive `name` was built from; empty where none is recorded."""
    try:
        return _file(folder, name).read_text().strip()
    except OSError:
        return ""


def record(folder: Path, name: str, inputs: str) -> None:
    """Record the digest that the archive `name` was built from. Raises `OSError`."""
    _file(folder, name).write_text(inputs + "\n")


def _file(folder: Path, name: str) -> Path:
    return folder / f"{name}.inputs.sha256"
