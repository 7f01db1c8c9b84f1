"""A manifest comes from a store, so it may be hostile."""

import json
from typing import Any

import pytest

from model_store.delivery import manifest
from model_store.delivery.errors import BadManifest

DIGEST = "0" * 64


def entry(name: str, **changes: Any) -> dict[str, Any]:
    return {"name": name, "size_bytes": 1, "sha256": DIGEST, "version": ""} | changes


def document(*entries: dict[str, Any], **changes: Any) -> bytes:
    return json.dumps({"schema_version": 1, "files": list(entries)} | changes).encode()


PAIR = (entry("a.mar", version="1.0"), entry("a.card.json"))


def test_a_manifest_is_read_in_the_order_in_which_files_are_put_into_place() -> None:
    names = ("rollout.json", "b.card.json", "a@1.1.card.json", "a.card.json", "b.mar", "a.mar", "a@1.1.mar")
    found = manifest.read(document(*map(entry, names)), "here")
    assert [file.name for file in found.in_order] == [
        "a.mar",
        "a.card.json",
        "a@1.1.mar",
        "a@1.1.card.json",
        "b.mar",
        "b.card.json",
        "rollout.json",
    ]


@pytest.mark.parametrize(
    "name",
    [
        "../a.mar",
        "/tmp/a.mar",
        "b/a.mar",
        "b\\a.mar",
        "..",
        ".",
        "",
        ".a.mar",
        ".sync.lock",
        "manifest.json",
        "a.mar\n",
        "a\x00.mar",
        "A.mar",
        "a.sh",
        "a.mar.part",
        "\u0430.mar",
        "a@x.mar",
        "a@1.2.3.4.mar",
        "a" * 101 + ".mar",
        "rollout.json/x",
    ],
)
def test_a_name_that_is_none_of_ours_is_refused(name: str) -> None:
    with pytest.raises(BadManifest, match="is no name of a file that is delivered") as raised:
        manifest.read(document(*PAIR, entry(name)), "here")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "JSON"),
        (b"<html>", "JSON"),
        (b"\xff\xfe", "JSON"),
        (b"[" * 100_000, "JSON"),
        (b"[]", "object"),
        (b"{}", "files"),
        (document(), "files"),
        (document(*PAIR, schema_version=2), "schema_version"),
        (document(*PAIR, more=1), "more"),
        (document(*PAIR, *PAIR), "named twice"),
        (document(PAIR[0]), r"a\.mar has no a\.card\.json"),
        (document(PAIR[1]), r"a\.card\.json has no a\.mar"),
        (document(*PAIR, entry("rollout.json", size_bytes=-1)), "size_bytes"),
        (document(*PAIR, entry("rollout.json", size_bytes=2**22 + 1)), "at most"),
        (document(entry("a.mar", size_bytes=2**31), PAIR[1]), "at most"),
        (document(entry("a.mar", size_bytes=1e300), PAIR[1]), "size_bytes"),
        (document(entry("a.mar", size_bytes="1"), PAIR[1]), "size_bytes"),
        (document(entry("a.mar", sha256="../../etc/passwd"), PAIR[1]), "sha256"),
        (document(entry("a.mar", sha256=DIGEST + "\n"), PAIR[1]), "sha256"),
        (document(entry("a.mar", version="\x1b[2J"), PAIR[1]), "version"),
        (document(*(entry(f"a{n}.{kind}") for n in range(501) for kind in ("mar", "card.json"))), "files"),
        (b" " * (2**20 + 1), "bytes"),
    ],
)
def test_anything_else_than_a_manifest_is_refused_in_one_line(content: bytes, message: str) -> None:
    with pytest.raises(BadManifest, match=message) as raised:
        manifest.read(content, "s3://bucket/manifest.json")
    text = str(raised.value)
    assert text.startswith("s3://bucket/manifest.json: ")
    assert "models publish" in text or "publish the folder again" in text
    assert "\n" not in text
    assert len(text) < 600


def test_the_content_of_a_file_is_found_by_its_digest_alone() -> None:
    assert manifest.read(document(*PAIR), "here").files[0].path == f"files/{DIGEST}"
