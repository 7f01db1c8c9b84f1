"""The archive file (`.mar`): a zip with one possible layout, and the digest of every entry in `MAR-INF/DIGESTS.json`.

In: entries, or the path of a file. Out: the bytes of an archive, or what was found in one whose every byte was checked.
TorchServe reads the local headers of a zip from the start, and Python reads the directory at the end. A file could show
each of them other entries. So `check` accepts only what `pack` writes: stored entries, one after the other, without
gaps. Never unpacks an archive. `signature` says who made it.
"""

import hashlib
import io
import json
import re
import stat
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

CARD_ENTRY = "card.json"
MODULE_ENTRY = "model.pt"
MANIFEST_ENTRY = "MAR-INF/MANIFEST.json"  # TorchServe's own
DIGESTS_ENTRY = "MAR-INF/DIGESTS.json"
SIGNATURE_ENTRY = "MAR-INF/SIGNATURE.json"
SCHEMA_VERSION = 1

MOST_BYTES = 2**31 - 1  # of an archive: above it, a zip needs other records
MOST_ENTRIES = 512
MOST_DIRECTORY_BYTES = 2**17
MOST_SMALL_BYTES = 4 * 2**20  # of every entry but the module

_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time a zip can hold
_MODE = stat.S_IFREG | 0o644
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*", re.ASCII)
_LOCAL_HEADER = struct.Struct("<4s5H3I2H")
_END_RECORD = struct.Struct("<4s4H2IH")
_LOCATOR_BYTES = 20  # of the record that leads to larger numbers than those of the end record
_DIRECTORY_RECORD_BYTES = 46
_CHUNK_BYTES = 2**20


class ArchiveRefused(ValueError):
    """A file is no archive that may be served. The message is one line: the file, the entry, and what to do."""


@dataclass(frozen=True, slots=True)
class ArchiveContent:
    """What a checked archive says of itself. `digests` are the bytes that a signature is made of."""

    name: str
    version: str
    card: bytes
    digests: bytes
    signature: bytes | None


def pack(entries: Mapping[str, bytes], signature: bytes | None = None) -> bytes:
    """The bytes of an archive with these entries and their digests. Equal entries give equal bytes."""
    digests = {name: hashlib.sha256(entries[name]).hexdigest() for name in sorted(entries)}
    document = json.dumps({"schema_version": SCHEMA_VERSION, "sha256": digests}, indent=2) + "\n"
    files = {**entries, DIGESTS_ENTRY: document.encode()}
    if signature is not None:
        files[SIGNATURE_ENTRY] = signature
    buffer = io.BytesIO()
    # Stored, not deflated: weights hardly shrink, and deflate's output differs between zlib versions.
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(files):
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.create_system = 3  # Unix, whatever machine writes it
            entry.external_attr = _MODE << 16
            archive.writestr(entry, files[name])
    return buffer.getvalue()


def signed(path: Path, signature: bytes) -> bytes:
    """The bytes of the archive at `path` with this signature in place of any other. Raises `ArchiveRefused`."""
    check(path)
    with zipfile.ZipFile(path) as archive:
        kept = [name for name in archive.namelist() if name not in (DIGESTS_ENTRY, SIGNATURE_ENTRY)]
        return pack({name: archive.read(name) for name in kept}, signature)


def check(path: Path, *, shown: Path | None = None) -> ArchiveContent:
    """Read every byte of the archive and compare it with the digests. `shown` is the path that messages name.

    Raises `ArchiveRefused`.
    """
    try:
        with path.open("rb") as file:
            return _checked(file)
    except _Refusal as error:
        raise ArchiveRefused(f"{shown or path}: {error}; build the archive again: mobilevision models build") from error
    except OSError as error:
        raise ArchiveRefused(f"{shown or path} cannot be read: {error.strerror or error}") from error


class _Refusal(Exception):
    """Why a file is refused, without its name."""


def _checked(file: BinaryIO) -> ArchiveContent:
    size = file.seek(0, io.SEEK_END)
    if size > MOST_BYTES:
        raise _Refusal(f"it has {size} bytes, and an archive has at most {MOST_BYTES}")
    _check_end(file, size)
    try:
        with zipfile.ZipFile(file) as archive:
            infos = archive.infolist()
            _check_layout(file, size, infos, archive.start_dir)
            digests = _read_digests(archive, infos)
            for info in infos:
                _check_digest(archive, info, digests)
            manifest = _json(archive, MANIFEST_ENTRY)
            card = _json(archive, CARD_ENTRY)
            _check_agreement(manifest, card, digests)
            return ArchiveContent(
                name=str(card["name"]),
                version=str(card["version"]),
                card=archive.read(CARD_ENTRY),
                digests=archive.read(DIGESTS_ENTRY),
                signature=archive.read(SIGNATURE_ENTRY) if SIGNATURE_ENTRY in archive.namelist() else None,
            )
    except (zipfile.BadZipFile, NotImplementedError, EOFError, UnicodeDecodeError, struct.error) as error:
        raise _Refusal(f"it is no whole zip file ({str(error) or type(error).__name__})") from error


def _check_end(file: BinaryIO, size: int) -> None:
    """Bound the directory before Python reads it: an entry of 46 bytes becomes an object ten times as large."""
    if size < _LOCATOR_BYTES + _END_RECORD.size:
        raise _Refusal("it is no whole zip file (it is too short)")
    file.seek(size - _LOCATOR_BYTES - _END_RECORD.size)
    tail = file.read()
    mark, disk, first_disk, here, entries, directory_bytes, _, comment = _END_RECORD.unpack(tail[_LOCATOR_BYTES:])
    if mark != b"PK\5\6" or comment or disk or first_disk or tail.startswith(b"PK\6\7"):
        raise _Refusal("it is no whole zip file (its end is not that of a zip file without comment)")
    if here != entries or entries > MOST_ENTRIES or directory_bytes > MOST_DIRECTORY_BYTES:
        raise _Refusal(f"it has {entries} entries in {directory_bytes} bytes; an archive has at most {MOST_ENTRIES}")


def _check_layout(file: BinaryIO, size: int, infos: list[zipfile.ZipInfo], directory_at: int) -> None:
    """Every reader of zip files must see the same entries: those of the directory, from the first byte on."""
    names = set()
    next_at = directory_bytes = 0
    for info in infos:
        name = info.orig_filename
        quoted = repr(name[:100])
        if not _NAME.fullmatch(name):
            raise _Refusal(f"entry {quoted} has a name that could lead out of the folder")
        if name in names:
            raise _Refusal(f"entry {quoted} is there twice")
        names.add(name)
        if info.external_attr >> 16 != _MODE or info.create_system != 3:
            raise _Refusal(f"entry {quoted} is not a plain file")
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size or info.flag_bits:
            raise _Refusal(f"entry {quoted} is compressed or encrypted")
        if name != MODULE_ENTRY and info.file_size > MOST_SMALL_BYTES:
            raise _Refusal(f"entry {quoted} has {info.file_size} bytes, at most {MOST_SMALL_BYTES} are allowed")
        if info.extra or info.comment or info.header_offset != next_at:
            raise _Refusal(f"entry {quoted} does not follow the entry before it")
        _check_local_header(file, info, name.encode())
        next_at += _LOCAL_HEADER.size + len(name) + info.file_size
        directory_bytes += _DIRECTORY_RECORD_BYTES + len(name)
    if next_at != directory_at or directory_at + directory_bytes + _END_RECORD.size != size:
        raise _Refusal("it has bytes that belong to no entry")


def _check_local_header(file: BinaryIO, info: zipfile.ZipInfo, name: bytes) -> None:
    file.seek(info.header_offset)
    header = file.read(_LOCAL_HEADER.size + len(name))
    mark, _, flags, method, _, _, crc, packed, unpacked, name_length, extra = _LOCAL_HEADER.unpack(
        header[: _LOCAL_HEADER.size]
    )
    found = mark, flags, method, crc, packed, unpacked, name_length, extra, header[_LOCAL_HEADER.size :]
    if found != (b"PK\3\4", 0, 0, info.CRC, info.file_size, info.file_size, len(name), 0, name):
        raise _Refusal(f"entry {name.decode()!r} has another header in front than in the directory")


def _read_digests(archive: zipfile.ZipFile, infos: list[zipfile.ZipInfo]) -> Mapping[str, str]:
    """The listed digests. The list and the entries are the same, but for the list itself and the signature."""
    document = _json(archive, DIGESTS_ENTRY)
    digests = document.get("sha256")
    if document.get("schema_version") != SCHEMA_VERSION or not isinstance(digests, dict):
        raise _Refusal(f"entry {DIGESTS_ENTRY!r} is no list of digests of schema {SCHEMA_VERSION}")
    present = {info.filename for info in infos} - {DIGESTS_ENTRY, SIGNATURE_ENTRY}
    for name in sorted(present - digests.keys()):
        raise _Refusal(f"entry {name!r} is not in the list of digests")
    for name in sorted(digests.keys() - present):
        raise _Refusal(f"entry {name[:100]!r} is in the list of digests and not in the archive")
    return digests


def _check_digest(archive: zipfile.ZipFile, info: zipfile.ZipInfo, digests: Mapping[str, str]) -> None:
    total = hashlib.sha256()
    with archive.open(info) as stream:  # raises BadZipFile for a wrong checksum
        while chunk := stream.read(_CHUNK_BYTES):
            total.update(chunk)
    if info.filename in digests and total.hexdigest() != digests[info.filename]:
        raise _Refusal(f"entry {info.filename!r} has sha256 {total.hexdigest()}, not the listed one: it was changed")


def _check_agreement(manifest: Mapping[str, Any], card: Mapping[str, Any], digests: Mapping[str, str]) -> None:
    """TorchServe reads its manifest, the gateway reads the card: they must name the same model and module."""
    model = manifest.get("model")
    if not isinstance(model, dict):
        raise _Refusal(f"entry {MANIFEST_ENTRY!r} names no model")
    if (model.get("modelName"), model.get("modelVersion")) != (card.get("name"), card.get("version")):
        raise _Refusal(f"entry {MANIFEST_ENTRY!r} names another model or version than entry {CARD_ENTRY!r}")
    if model.get("serializedFile") != MODULE_ENTRY or card.get("module_sha256") != digests.get(MODULE_ENTRY):
        raise _Refusal(f"entry {MODULE_ENTRY!r} is not the module that entry {CARD_ENTRY!r} names")


def _json(archive: zipfile.ZipFile, name: str) -> dict[str, Any]:
    try:
        document = json.loads(archive.read(name))
    except KeyError as error:
        raise _Refusal(f"it has no entry {name!r}") from error
    except (ValueError, RecursionError) as error:
        raise _Refusal(f"entry {name!r} is not JSON") from error
    if not isinstance(document, dict):
        raise _Refusal(f"entry {name!r} is not a JSON object")
    return document
