"""Small archives for tests, and hostile ones that differ from them in one point."""

import hashlib
import io
import json
import stat
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

from fakes import toy_card

from handlers.contract.archive_file import CARD_ENTRY, MANIFEST_ENTRY, MODULE_ENTRY, pack
from handlers.contract.card import Card

MODULE = b"stands for a scripted module" * 20
CODE_ENTRY = "handlers/vision.py"


def card_of(name: str = "toy_classify", version: str = "1.0") -> Card:
    """The card of the archive that `entries` makes."""
    update = {"version": version, "module_sha256": hashlib.sha256(MODULE).hexdigest()}
    return toy_card(name=name).model_copy(update=update)


def entries(card: Card | None = None) -> dict[str, bytes]:
    """All entries of an archive but the digests."""
    card = card or card_of()
    model = {
        "modelName": card.name,
        "modelVersion": card.version,
        "handler": "handlers.vision",
        "serializedFile": MODULE_ENTRY,
    }
    return {
        MANIFEST_ENTRY: json.dumps({"model": model}).encode(),
        CARD_ENTRY: card.to_json().encode(),
        MODULE_ENTRY: MODULE,
        CODE_ENTRY: b"def handle(data, context): ...\n",
    }


def write(folder: Path, card: Card | None = None, *, stem: str = "") -> Path:
    """Write an archive and its card, as `models build` does. Returns the path of the archive."""
    card = card or card_of()
    path = folder / f"{stem or card.name}.mar"
    path.write_bytes(pack(entries(card)))
    (folder / f"{stem or card.name}.card.json").write_text(card.to_json())
    return path


def rezip(
    content: bytes,
    change: Callable[[zipfile.ZipInfo, bytes], tuple[zipfile.ZipInfo, bytes]] = lambda info, data: (info, data),
    *,
    more: Mapping[str, bytes] | None = None,
    drop: str = "",
) -> bytes:
    """The zip written again, each entry as `change` returns it, then the entries `more`."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as before, zipfile.ZipFile(buffer, "w") as after:
        for info in before.infolist():
            if info.filename != drop:
                after.writestr(*change(info, before.read(info.filename)))
        for name, data in (more or {}).items():
            extra = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            extra.create_system, extra.external_attr = 3, (stat.S_IFREG | 0o644) << 16
            after.writestr(extra, data)
    return buffer.getvalue()
