"""Write and read TorchServe archives (`.mar`), byte for byte the same for the same content.

In: a card and the bytes of a scripted module. Out: `<name>.mar` and `<name>.card.json`, both replaced atomically.
The stock archiver refuses a handler inside a package and stamps the time, so the zip is written here. Every archive
is imported in a bare process before it is published, because TorchServe reports a missing import as another error.
"""

import hashlib
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import handlers
from handlers.contract import archive_file
from handlers.contract.archive_file import CARD_ENTRY, MANIFEST_ENTRY, MODULE_ENTRY
from handlers.contract.card import Card
from model_store.files import atomic

HANDLER = "handlers.vision"
CHECK_TIMEOUT_SECONDS = 120.0

# Run by `python -I`: neither the working directory nor PYTHONPATH is searched, and an editable install of this
# repository, which site-packages may hold, is taken out, so `handlers` can only come from the unpacked archive.
_CHECK_PROGRAM = """
import importlib, pathlib, sys
unpacked = pathlib.Path(sys.argv[1]).resolve()
sys.meta_path[:] = [f for f in sys.meta_path if "editable" not in (getattr(f, "__module__", "") or "")]
installed = [p for p in sys.path if "site-packages" in p or "dist-packages" in p or p.startswith(sys.base_prefix)]
sys.path[:] = [str(unpacked), *installed]
module = importlib.import_module(sys.argv[2])
if not pathlib.Path(module.__file__).resolve().is_relative_to(unpacked):
    sys.exit(f"{sys.argv[2]} was imported from {module.__file__}, not from the archive")
if not callable(getattr(module, "handle", None)):
    sys.exit(f"{sys.argv[2]} has no function handle")
"""


class ArchiveError(RuntimeError):
    """An archive cannot be written, or is not one that a worker could load."""


def write(directory: Path, card: Card, module_bytes: bytes) -> Path:
    """Pack, check and publish `<name>.mar` with its card beside it; returns the path of the archive.

    Raises `ArchiveError` when `card.module_sha256` is not that of `module_bytes` or the entry cannot be imported;
    an earlier archive of that name then stays unchanged.
    """
    digest = hashlib.sha256(module_bytes).hexdigest()
    if digest != card.module_sha256:
        raise ArchiveError(f"{card.name}: the card names module sha256 {card.module_sha256}, the module has {digest}")
    directory.mkdir(parents=True, exist_ok=True)
    target = directory / f"{card.name}.mar"
    temporary = atomic.temporary(directory, _pack(card, module_bytes))
    try:
        check(temporary)
        atomic.write(directory / f"{card.name}.card.json", card.to_json().encode())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    return target


def read_card(path: Path) -> Card:
    """The card inside an archive whose every entry was checked. Raises `ArchiveError` for any other file."""
    try:
        return Card.model_validate_json(archive_file.check(path).card)
    except archive_file.ArchiveRefused as error:
        raise ArchiveError(f"not a mobilevision archive: {error}") from error
    except ValueError as error:
        raise ArchiveError(f"{path} is not a mobilevision archive: {error}") from error


def replace(path: Path, content: bytes) -> None:
    """Replace the archive at `path` atomically by other bytes. Raises `OSError`."""
    atomic.write(path, content)


def check(path: Path) -> None:
    """Import the entry from the unpacked archive in a bare process. Raises `ArchiveError` with its output."""
    with tempfile.TemporaryDirectory(prefix="mobilevision-check-") as unpacked:
        try:
            with zipfile.ZipFile(path) as archive:
                # The module is not needed to import the entry, and may be large.
                archive.extractall(unpacked, [n for n in archive.namelist() if n != MODULE_ENTRY])
                manifest = json.loads(archive.read(MANIFEST_ENTRY))
            handler = str(manifest["model"]["handler"])
        except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
            raise ArchiveError(f"{path} is not a mobilevision archive: {error}") from error
        try:
            done = subprocess.run(
                [sys.executable, "-I", "-B", "-c", _CHECK_PROGRAM, unpacked, handler],
                cwd=unpacked,
                capture_output=True,
                text=True,
                timeout=CHECK_TIMEOUT_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise ArchiveError(f"{path}: importing {handler} took over {CHECK_TIMEOUT_SECONDS:.0f} s") from error
    if done.returncode != 0:
        raise ArchiveError(f"{path}: a worker could not import {handler}:\n{done.stderr.strip()}")


def _pack(card: Card, module_bytes: bytes) -> bytes:
    manifest = {
        "archiverVersion": "0.12.0",
        "runtime": "python",
        "model": {
            "modelName": card.name,
            "modelVersion": card.version,
            "handler": HANDLER,
            "serializedFile": MODULE_ENTRY,
        },
    }
    files = {
        MANIFEST_ENTRY: (json.dumps(manifest, indent=2) + "\n").encode(),
        CARD_ENTRY: card.to_json().encode(),
        MODULE_ENTRY: module_bytes,
    }
    package = Path(handlers.__path__[0])
    for source in package.rglob("*.py"):
        files[f"handlers/{source.relative_to(package)}"] = source.read_bytes()
    return archive_file.pack(files)
