"""What is published, in which order, and what is refused."""

import json
from pathlib import Path
from typing import Any

import archive_files
import pytest
from delivered import DELIVERED, Spy
from obstore.store import MemoryStore
from signing_keys import pair

from handlers.contract import archive_file, signature
from model_store.delivery import errors, manifest
from model_store.delivery.folder import Folder
from model_store.delivery.progress import Quiet
from model_store.delivery.publish import describe, publish
from model_store.delivery.remote import Remote
from model_store.delivery.sync import sync
from model_store.files import atomic
from model_store.files.digest import sha256


async def test_files_go_first_and_the_manifest_last(source: Path, objects: MemoryStore) -> None:
    spy = Spy(objects)
    done = await publish(source, spy)
    assert spy.put_paths[-1] == "manifest.json"
    assert set(spy.put_paths[:-1]) == {f"files/{sha256(source / name)}" for name in DELIVERED}
    content = json.loads(bytes(objects.get("manifest.json").bytes()))
    assert content["schema_version"] == 1
    assert {file["name"] for file in content["files"]} == DELIVERED
    by_name = {file["name"]: file for file in content["files"]}
    assert by_name["bottles@1.1.mar"] == {
        "name": "bottles@1.1.mar",
        "size_bytes": (source / "bottles@1.1.mar").stat().st_size,
        "sha256": sha256(source / "bottles@1.1.mar"),
        "version": "1.1",
    }
    assert by_name["cups.card.json"]["version"] == ""
    assert len(done.sent) == len(DELIVERED)


async def test_equal_folders_give_equal_manifests(source: Path) -> None:
    assert describe(source).to_json() == describe(source).to_json()
    assert manifest.read(describe(source).to_json(), "here").to_json() == describe(source).to_json()


async def test_what_is_there_is_not_sent_again(source: Path, objects: MemoryStore) -> None:
    spy = Spy(objects)
    await publish(source, spy)
    spy.put_paths.clear()
    assert (await publish(source, spy)).sent == ()
    assert spy.put_paths == ["manifest.json"]


async def test_a_publication_that_breaks_off_changes_nothing_for_readers(
    source: Path, objects: MemoryStore, target: Folder
) -> None:
    spy = Spy(objects)
    await publish(source, spy)
    before = bytes(objects.get("manifest.json").bytes())
    archive_files.write(source, archive_files.card_of("cups", "2.0"))
    spy.full = True
    with pytest.raises(errors.Unreachable):
        await publish(source, spy)
    assert bytes(objects.get("manifest.json").bytes()) == before
    done = await sync(spy, target)
    assert done is not None
    assert done.manifest == before


async def test_an_archive_that_replaces_another_one_is_told(source: Path, remote: Remote) -> None:
    assert (await publish(source, remote)).replaced == ()
    archive_files.write(source, archive_files.card_of("cups", "2.0"))
    assert (await publish(source, remote)).replaced == ("cups.mar",)


async def test_a_broken_manifest_is_replaced(source: Path, objects: MemoryStore, remote: Remote) -> None:
    objects.put("manifest.json", b"{")
    assert len((await publish(source, remote)).sent) == len(DELIVERED)


async def test_a_file_that_changes_while_it_is_sent_is_not_published(
    source: Path, objects: MemoryStore, remote: Remote
) -> None:
    class Meddler(Quiet):
        def begin(self, files: int, total_bytes: int) -> None:
            content = (source / "cups.mar").read_bytes()
            (source / "cups.mar").write_bytes(content[:-1] + b"?")

    digest = sha256(source / "cups.mar")
    with pytest.raises(errors.NotPublishable, match=r"cups\.mar changed while it was sent"):
        await publish(source, remote, progress=Meddler())
    with pytest.raises(FileNotFoundError):
        objects.head(f"files/{digest}")
    with pytest.raises(FileNotFoundError):
        objects.head("manifest.json")


async def test_signatures_travel_along(source: Path, remote: Remote, target: Folder, tmp_path: Path) -> None:
    private, public = pair(tmp_path)
    path = source / "cups.mar"
    signed = signature.sign(archive_file.check(path).digests, signature.private_key(private))
    atomic.write(path, archive_file.signed(path, signed))
    await publish(source, remote)
    await sync(remote, target)
    content = archive_file.check(target.path / "cups.mar")
    assert signature.verify(content.digests, content.signature, signature.public_keys(public)) == 0


def without_card(source: Path) -> None:
    (source / "cups.card.json").unlink()


def without_archive(source: Path) -> None:
    (source / "cups.mar").unlink()


def damaged(source: Path) -> None:
    content = (source / "cups.mar").read_bytes()
    (source / "cups.mar").write_bytes(content.replace(b"scripted", b"changed!"))


def other_card(source: Path) -> None:
    (source / "cups.card.json").write_text(archive_files.card_of("cups", "7.0").to_json())


def no_card(source: Path) -> None:
    (source / "cups.card.json").write_text("{}")


def link(source: Path) -> None:
    (source / "cups.mar").rename(source.parent / "elsewhere.mar")
    (source / "cups.mar").symlink_to(source.parent / "elsewhere.mar")


def other_name(source: Path) -> None:
    for suffix in (".mar", ".card.json"):
        (source / f"cups{suffix}").rename(source / f"mugs{suffix}")


def other_version(source: Path) -> None:
    for suffix in (".mar", ".card.json"):
        (source / f"cups{suffix}").rename(source / f"cups@3.0{suffix}")


def bad_name(source: Path) -> None:
    for suffix in (".mar", ".card.json"):
        (source / f"cups{suffix}").rename(source / f"Cups{suffix}")


def large(source: Path) -> None:
    (source / "rollout.json").write_bytes(bytes(archive_file.MOST_SMALL_BYTES + 1))


def empty(source: Path) -> None:
    for path in source.iterdir():
        path.unlink()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (without_card, r"cups\.mar has no cups\.card\.json beside it; build"),
        (without_archive, r"cups\.card\.json has no cups\.mar beside it; build"),
        (damaged, r"cups\.mar: .*build the archive again"),
        (other_card, r"card inside is not the card beside it; build"),
        (no_card, r"cannot be read.*build it again"),
        (link, "is no plain file; put a copy"),
        (other_name, r"mugs\.mar holds version 1\.0 of cups"),
        (other_version, r"cups@3\.0\.mar holds version 1\.0 of cups"),
        (bad_name, r"'?Cups"),
        (large, r"rollout\.json has \d+ bytes, at most"),
        (empty, "no archives in .*models build"),
    ],
)
async def test_a_folder_that_a_server_would_refuse_is_not_published(
    spoil: Any, message: str, source: Path, objects: MemoryStore
) -> None:
    spoil(source)
    spy = Spy(objects)
    with pytest.raises(errors.NotPublishable, match=message) as raised:
        await publish(source, spy)
    assert "\n" not in str(raised.value)
    assert spy.put_paths == []


async def test_a_folder_that_is_not_there(tmp_path: Path, remote: Remote) -> None:
    with pytest.raises(errors.FolderError, match="No such file"):
        await publish(tmp_path / "nowhere", remote)


async def test_too_many_files_are_refused(source: Path, remote: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model_store.delivery.publish.MOST_FILES", 3)
    with pytest.raises(errors.NotPublishable, match="7 files, over 3"):
        await publish(source, remote)
