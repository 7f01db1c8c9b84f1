"""Hostile archives: each differs from a good one in one point, and is refused in one line."""

import io
import json
import stat
import struct
import tracemalloc
import zipfile
from pathlib import Path

import pytest
from archive_files import CODE_ENTRY, MODULE, card_of, entries, rezip, write

from handlers.contract import archive_file
from handlers.contract.archive_file import (
    CARD_ENTRY,
    DIGESTS_ENTRY,
    MANIFEST_ENTRY,
    MODULE_ENTRY,
    MOST_ENTRIES,
    MOST_SMALL_BYTES,
    SIGNATURE_ENTRY,
    ArchiveRefused,
    check,
    pack,
)

GOOD = pack(entries())


def changed(name: str, data: bytes) -> bytes:
    """The good archive with other bytes in one entry, and the list of digests as it was."""
    return rezip(GOOD, lambda info, before: (info, data if info.filename == name else before))


def flagged(name: str, **attributes: object) -> bytes:
    def change(info: zipfile.ZipInfo, data: bytes) -> tuple[zipfile.ZipInfo, bytes]:
        if info.filename == name:
            for attribute, value in attributes.items():
                setattr(info, attribute, value)
        return info, data

    return rezip(GOOD, change)


def twice() -> bytes:
    with pytest.warns(UserWarning, match="Duplicate name"):
        return rezip(GOOD, more={CODE_ENTRY: b"import os"})


def hidden() -> bytes:
    """A first entry that only readers of local headers see, as TorchServe is: the directory does not name it."""
    first = io.BytesIO()
    with zipfile.ZipFile(first, "w") as one:
        one.writestr("handlers/errors.py", b"import os")
        directory_at = one.start_dir
    buffer = io.BytesIO()
    buffer.write(first.getvalue()[:directory_at])
    with zipfile.ZipFile(buffer, "a") as whole, zipfile.ZipFile(io.BytesIO(GOOD)) as before:
        for info in before.infolist():
            whole.writestr(info, before.read(info.filename))
    return buffer.getvalue()


def other_header() -> bytes:
    """The local header names another entry than the directory."""
    at = GOOD.index(CODE_ENTRY.encode() + entries()[CODE_ENTRY])
    return GOOD[:at] + b"handlers/errors.p1" + GOOD[at + len(CODE_ENTRY) :]


def renamed_model() -> bytes:
    manifest = json.loads(entries()[MANIFEST_ENTRY])
    manifest["model"]["modelName"] = "another"
    return pack(entries() | {MANIFEST_ENTRY: json.dumps(manifest).encode()})


HOSTILE = {
    "a path that leads out": (rezip(GOOD, more={"../evil.py": b"x"}), r"'\.\./evil\.py'.*lead out"),
    "an absolute path": (rezip(GOOD, more={"/etc/evil": b"x"}), "lead out"),
    "a backslash": (rezip(GOOD, more={"..\\evil.py": b"x"}), "lead out"),
    "a folder": (rezip(GOOD, more={"handlers/": b""}), "lead out"),
    "a control character": (rezip(GOOD, more={"a\nb": b""}), "lead out"),
    "a symbolic link": (flagged(CODE_ENTRY, external_attr=(stat.S_IFLNK | 0o777) << 16), "not a plain file"),
    "a device": (flagged(CODE_ENTRY, external_attr=(stat.S_IFCHR | 0o644) << 16), "not a plain file"),
    "a bomb": (flagged(MODULE_ENTRY, compress_type=zipfile.ZIP_DEFLATED), "'model.pt' is compressed"),
    "a large card": (pack(entries() | {CARD_ENTRY: b" " * (MOST_SMALL_BYTES + 1)}), "'card.json' has 4194305 bytes"),
    "an entry that is not listed": (rezip(GOOD, more={"handlers/os.py": b"x"}), "'handlers/os.py' is not in the list"),
    "a missing entry": (rezip(GOOD, drop=CODE_ENTRY), f"'{CODE_ENTRY}' is in the list"),
    "no list": (rezip(GOOD, drop=DIGESTS_ENTRY), f"no entry '{DIGESTS_ENTRY}'"),
    "a broken list": (changed(DIGESTS_ENTRY, b"[" * 100_000), "is not JSON"),
    "another list": (changed(DIGESTS_ENTRY, b'{"schema_version": 2, "sha256": {}}'), "no list of digests"),
    "changed code": (changed(CODE_ENTRY, b"import os\n"), f"'{CODE_ENTRY}' has sha256 .* it was changed"),
    "a changed module": (changed(MODULE_ENTRY, MODULE + b"x"), "'model.pt' has sha256 .* it was changed"),
    "a swapped card": (changed(CARD_ENTRY, card_of("another").to_json().encode()), "'card.json' has sha256"),
    "another module than the card's": (pack(entries() | {MODULE_ENTRY: b"x"}), "not the module that"),
    "a manifest of another model": (renamed_model(), "names another model"),
    "no zip": (b"PK" * 100, "no whole zip file"),
    "nothing": (b"", "no whole zip file"),
    "half a file": (GOOD[: len(GOOD) // 2], "no whole zip file"),
    "a lost last byte": (GOOD[:-1], "no whole zip file"),
    "a lost first byte": (GOOD[1:], "header|no whole zip|follow"),
    "bytes in front": (b"#!/bin/sh\n" + GOOD, "follow|belong to no entry"),
    "bytes behind": (GOOD + b"x", "no whole zip file"),
    "a hidden first entry": (hidden(), "does not follow"),
    "another local header": (other_header(), "another header"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_archive_is_refused_in_one_line_that_names_it(kind: str, tmp_path: Path) -> None:
    content, message = HOSTILE[kind]
    path = tmp_path / "some.mar"
    path.write_bytes(content)
    with pytest.raises(ArchiveRefused, match=message) as refused:
        check(path)
    assert str(refused.value).startswith(f"{path}: ")
    assert str(refused.value).endswith("mobilevision models build")
    assert "\n" not in str(refused.value)


def test_a_duplicate_entry_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "some.mar"
    path.write_bytes(twice())
    with pytest.raises(ArchiveRefused, match=f"'{CODE_ENTRY}' is there twice"):
        check(path)


def test_a_directory_of_millions_of_entries_costs_no_memory(tmp_path: Path) -> None:
    record = struct.pack("<4s4B4HL2L5H2L", b"PK\1\2", 20, 3, 20, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0) + b"a"
    directory = record * (20 * 2**20 // len(record))
    path = tmp_path / "some.mar"
    path.write_bytes(directory + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 60_000, 60_000, len(directory), 0, 0))
    tracemalloc.start()
    try:
        with pytest.raises(ArchiveRefused, match=f"at most {MOST_ENTRIES}"):
            check(path)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_every_single_byte_counts(tmp_path: Path) -> None:
    """Flip one bit of each byte around the entries: nothing that TorchServe could read differently is accepted."""
    path = tmp_path / "some.mar"
    module_at = GOOD.index(MODULE)
    # Inside the module one byte is as good as another. Versions, times and attributes no reader unpacks by.
    positions = [at for at in range(len(GOOD)) if not module_at + 4 <= at < module_at + len(MODULE) - 4]
    accepted = []
    for at in positions:
        path.write_bytes(GOOD[:at] + bytes([GOOD[at] ^ 1]) + GOOD[at + 1 :])
        try:
            content = check(path)
        except ArchiveRefused:
            continue
        accepted.append(at)
        assert content.card == entries()[CARD_ENTRY]
    with zipfile.ZipFile(io.BytesIO(GOOD)) as archive:
        local = {info.header_offset + at for info in archive.infolist() for at in (4, 5, 10, 11, 12, 13)}
        directory = archive.start_dir
    assert all(at in local or at > directory for at in accepted)


def test_what_a_good_archive_says(tmp_path: Path) -> None:
    content = check(write(tmp_path, card_of(version="1.1")))
    assert (content.name, content.version, content.signature) == ("toy_classify", "1.1", None)
    assert json.loads(content.digests)["sha256"].keys() == entries().keys()


def test_a_signature_leaves_the_digests_as_they_are(tmp_path: Path) -> None:
    path = write(tmp_path)
    before = check(path)
    path.write_bytes(archive_file.signed(path, b"first"))
    path.write_bytes(archive_file.signed(path, b"second"))
    after = check(path)
    assert (after.digests, after.signature) == (before.digests, b"second")
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist().count(SIGNATURE_ENTRY) == 1


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(ArchiveRefused, match=r"shown\.mar cannot be read: No such file"):
        check(tmp_path / "absent.mar", shown=Path("shown.mar"))
