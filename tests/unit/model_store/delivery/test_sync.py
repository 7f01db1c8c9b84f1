"""What a sync fetches, removes and leaves alone, and what a server sees meanwhile."""

import asyncio
import json
from pathlib import Path
from typing import Any

import archive_files
import pytest
from delivered import DELIVERED, Pauses, Spy, delivered, parts
from obstore.store import MemoryStore

from model_store.delivery import errors
from model_store.delivery import sync as syncing
from model_store.delivery.folder import LOCK, WRITTEN, Folder
from model_store.delivery.manifest import MANIFEST, File
from model_store.delivery.publish import publish
from model_store.delivery.remote import Remote
from model_store.delivery.sync import Synced, sync
from service.core import catalog
from service.core.trusted_archive import check as check_archive
from service.serving import rollout_spec


async def synced(remote: Remote, target: Folder, **options: Any) -> Synced:
    done = await sync(remote, target, **options)
    assert done is not None
    return done


def names(done: Synced) -> set[str]:
    return {file.name for file in done.fetched}


async def test_a_new_folder_gets_all_files_and_the_manifest(source: Path, remote: Remote, target: Folder) -> None:
    await publish(source, remote)
    done = await synced(remote, target)
    assert (names(done), done.files, done.removed) == (DELIVERED, len(DELIVERED), ())
    assert delivered(target) == {name: (source / name).read_bytes() for name in DELIVERED}
    assert (target.path / MANIFEST).read_bytes() == done.manifest
    assert parts(target) == []
    assert all(path.stat().st_mode & 0o777 == 0o644 for path in target.path.iterdir())
    assert {card.name for card in catalog.read(target.path).cards} == {"bottles", "cups"}


async def test_a_second_sync_fetches_nothing(source: Path, objects: MemoryStore, target: Folder) -> None:
    spy = Spy(objects)
    await publish(source, spy)
    first = await synced(spy, target)
    spy.asked.clear()
    assert (await synced(spy, target)).fetched == ()
    assert await sync(spy, target, known=first.manifest) is None
    assert spy.asked == []


async def test_what_is_different_or_missing_is_fetched(source: Path, remote: Remote, target: Folder) -> None:
    await publish(source, remote)
    await synced(remote, target)
    content = (target.path / "cups.mar").read_bytes()
    (target.path / "cups.mar").write_bytes(content[:-1] + b"?")  # the same size
    (target.path / "bottles.mar").unlink()
    (target.path / "bottles.mar").symlink_to(source / "bottles.mar")  # the right content, but no file of ours
    (target.path / "rollout.json").unlink()
    assert names(await synced(remote, target)) == {"cups.mar", "bottles.mar", "rollout.json"}
    assert not (target.path / "bottles.mar").is_symlink()
    archive_files.write(source, archive_files.card_of("cups", "2.0"))
    await publish(source, remote)
    assert names(await synced(remote, target)) == {"cups.mar", "cups.card.json"}


async def test_only_files_that_a_sync_wrote_are_removed(source: Path, remote: Remote, target: Folder) -> None:
    target.path.mkdir()
    own = target.path / "own.mar"
    own.write_bytes(b"somebody's own")
    for name in ("cups.mar", "cups.card.json"):  # there already, and equal: somebody else's too
        (target.path / name).write_bytes((source / name).read_bytes())
    await publish(source, remote)
    await synced(remote, target)
    for path in source.iterdir():
        if not path.name.startswith("bottles."):
            path.unlink()
    await publish(source, remote)
    done = await synced(remote, target)
    assert done.removed == ("rollout.json", "bottles@1.1.card.json", "bottles@1.1.mar")
    assert set(delivered(target)) == {"bottles.mar", "bottles.card.json", "cups.mar", "cups.card.json", "own.mar"}
    assert json.loads((target.path / WRITTEN).read_bytes()) == ["bottles.card.json", "bottles.mar"]


async def test_a_file_of_somebody_else_is_not_replaced(source: Path, remote: Remote, target: Folder) -> None:
    target.path.mkdir()
    (target.path / "cups.mar").write_bytes(b"somebody's own")
    await publish(source, remote)
    with pytest.raises(errors.FolderError, match=r"cups\.mar is not the published file, and no sync wrote it; remove"):
        await sync(remote, target)
    assert delivered(target) == {"cups.mar": b"somebody's own"}


async def test_a_list_of_written_files_leads_nowhere_else(source: Path, remote: Remote, target: Folder) -> None:
    await publish(source, remote)
    await synced(remote, target)
    (source / "mine").write_text("")
    (target.path / WRITTEN).write_text(json.dumps(["../source/mine", "/etc/passwd", 7, None, "README"]))
    (target.path / "README").write_text("mine")
    assert (await synced(remote, target)).removed == ()
    (target.path / WRITTEN).write_text("{")
    with pytest.raises(errors.FolderError, match=r"\.sync-files\.json.*delete it"):
        await sync(remote, target)


class Watched(Folder):
    """Looks at the folder as a server does, after each change of a file that a server reads."""

    changes = 0

    def put(self, file: File) -> None:
        super().put(file)
        self._look()

    def remove(self, name: str) -> bool:
        was_there = super().remove(name)
        self._look()
        return was_there

    def _look(self) -> None:
        self.changes += 1
        for card in self.path.glob("*.card.json"):
            assert card.with_name(card.name.replace(".card.json", ".mar")).is_file()
        if (self.path / "rollout.json").exists():
            for model, entry in rollout_spec.read(self.path / "rollout.json").items():
                for version in (entry.stable, entry.candidate):
                    if version is not None:
                        card = catalog.find(self.path, model, version)
                        check_archive(catalog.archive_of(self.path, card), card, None)


async def test_a_server_finds_every_archive_and_version_at_any_moment(
    source: Path, remote: Remote, target: Folder
) -> None:
    watched = Watched(target.path)
    await publish(source, remote)
    await synced(remote, watched)
    assert watched.changes == len(DELIVERED)
    # 1.2 becomes the candidate instead of 1.1, whose files go.
    archive_files.write(source, archive_files.card_of("bottles", "1.2"), stem="bottles@1.2")
    (source / "bottles@1.1.mar").unlink()
    (source / "bottles@1.1.card.json").unlink()
    (source / "rollout.json").write_text('{"bottles": {"stable": "1.0", "candidate": "1.2", "weight": 0.1}}')
    await publish(source, remote)
    done = await synced(remote, watched)
    assert done.removed == ("bottles@1.1.card.json", "bottles@1.1.mar")
    assert watched.changes == len(DELIVERED) + 3 + 2


class Stopping(Folder):
    """Stops before the second file is put into place."""

    puts = 0

    def put(self, file: File) -> None:
        self.puts += 1
        if self.puts == 2:
            raise KeyboardInterrupt
        super().put(file)


async def test_a_sync_that_stops_in_between_leaves_nothing_behind(source: Path, remote: Remote, target: Folder) -> None:
    await publish(source, remote)
    with pytest.raises(KeyboardInterrupt):
        await sync(remote, Stopping(target.path))
    assert set(delivered(target)) == {"bottles.mar"}
    assert not (target.path / MANIFEST).exists()
    for path in source.iterdir():
        if not path.name.startswith("cups."):
            path.unlink()
    await publish(source, remote)
    assert (await synced(remote, target)).removed == ("bottles.mar",)  # its name was written down before it was there
    assert set(delivered(target)) == {"cups.mar", "cups.card.json"}
    assert parts(target) == []


async def test_a_wrong_digest_changes_nothing(
    source: Path, objects: MemoryStore, remote: Remote, target: Folder
) -> None:
    await publish(source, remote)
    await synced(remote, target)
    before = delivered(target)
    archive_files.write(source, archive_files.card_of("cups", "2.0"))
    done = await publish(source, remote)
    [path] = [file.path for file in done.sent if file.name == "cups.mar"]
    content = bytes(objects.get(path).bytes())
    objects.put(path, content[:-1] + b"?")
    with pytest.raises(errors.WrongDigest, match=r"\(cups\.mar\): .*publish the folder again"):
        await sync(remote, target)
    objects.put(path, content + b"?")
    with pytest.raises(errors.WrongDigest, match="the manifest says"):
        await sync(remote, target)
    assert delivered(target) == before
    assert [part for part in parts(target) if "cups.mar" in part.name] == []


async def test_a_hostile_manifest_changes_nothing(objects: MemoryStore, remote: Remote, target: Folder) -> None:
    objects.put("files/" + "0" * 64, b"x")
    entry = {"name": "../evil.mar", "size_bytes": 1, "sha256": "0" * 64}
    objects.put(MANIFEST, json.dumps({"schema_version": 1, "files": [entry]}).encode())
    with pytest.raises(errors.BadManifest, match="is no name"):
        await sync(remote, target)
    objects.put(MANIFEST, bytes(2**20 + 1))
    with pytest.raises(errors.BadManifest, match="over 1048576 bytes"):
        await sync(remote, target)
    assert not target.path.exists()
    assert not (target.path.parent / "evil.mar").exists()


async def test_nothing_was_published(remote: Remote, target: Folder) -> None:
    with pytest.raises(errors.NotThere, match=r"memory://models/manifest\.json is not there; publish"):
        await sync(remote, target)


async def test_two_syncs_at_once_work_one_after_the_other(source: Path, objects: MemoryStore, target: Folder) -> None:
    spy = Spy(objects)
    await publish(source, spy)
    waited = asyncio.Event()

    async def pause(_: float) -> None:
        waited.set()
        await asyncio.sleep(0.01)

    results = await asyncio.gather(sync(spy, target, pause=pause), sync(spy, Folder(target.path), pause=pause))
    fetched = sorted(len(done.fetched) for done in results if done is not None)
    assert fetched == [0, len(DELIVERED)]
    assert len(spy.asked) == len(DELIVERED)
    assert waited.is_set()


async def test_a_lock_that_is_never_released_is_told(
    source: Path, remote: Remote, target: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(syncing, "LOCK_ATTEMPTS", 3)
    await publish(source, remote)
    pauses = Pauses()
    with target.locked(), pytest.raises(errors.FolderInUse, match="another sync"):
        await sync(remote, target, pause=pauses)
    assert pauses.seconds == [1.0] * 3
    assert len(names(await synced(remote, target))) == len(DELIVERED)


async def test_a_lock_that_is_a_link_is_not_followed(source: Path, remote: Remote, target: Folder) -> None:
    target.path.mkdir()
    victim = target.path.parent / "victim"
    (target.path / LOCK).symlink_to(victim)
    await publish(source, remote)
    with pytest.raises(errors.FolderError, match="cannot write to"):
        await sync(remote, target)
    assert not victim.exists()


async def test_a_disk_without_room_is_told_before_anything_is_fetched(
    source: Path, objects: MemoryStore, target: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    spy = Spy(objects)
    await publish(source, spy)
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("model_store.delivery.folder.shutil.disk_usage", lambda _: usage)
    with pytest.raises(errors.FolderError, match=r"no room for .* MB .*--to"):
        await sync(spy, target)
    assert spy.asked == []


async def test_a_folder_that_cannot_be_made(source: Path, remote: Remote, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    await publish(source, remote)
    with pytest.raises(errors.FolderError, match="--to"):
        await sync(remote, Folder(tmp_path / "file" / "folder"))
