"""Downloads from a server that fails, changes its files or refuses, to a disk that may be full."""

import json
from pathlib import Path

import pytest
from checkpoint_site import ENTRY, Site, left, pull, quiet

from model_store.pull import download, errors, fetch
from model_store.pull.sources import Source
from model_store.pull.store import RECORDS_FILE, Store


def test_a_broken_connection_is_resumed_within_one_pull(
    site: Site, store: Store, good: bytes, no_waiting: list[float]
) -> None:
    site.files["weights.pt"] = good
    site.drop_after = [1000, 5000]
    assert pull(site, store).stored.path.read_bytes() == good
    assert site.ranges == [None, "bytes=1000-", "bytes=6000-"]
    assert no_waiting == [1, 2]


def test_a_connection_that_keeps_breaking_leaves_a_part_that_the_next_pull_resumes(
    site: Site, store: Store, good: bytes
) -> None:
    site.files["weights.pt"] = good
    site.drop_after = [1000, 0, 0, 0]
    with pytest.raises(
        errors.ConnectionLost, match=r"broke off after 1000 of \d+ bytes.*run the same command to go on"
    ):
        pull(site, store)
    part = f"{ENTRY.name}.native.part"
    assert left(store) == [part, f"{part}.json"]
    site.ranges.clear()
    assert pull(site, store).stored.path.read_bytes() == good
    assert site.ranges == ["bytes=1000-"]
    assert left(store) == [RECORDS_FILE, f"{ENTRY.name}.pt"]


def test_a_file_that_changed_meanwhile_is_not_joined_with_the_old_part(site: Site, store: Store, good: bytes) -> None:
    site.files["weights.pt"] = bytes(5000)
    site.drop_after = [1000, 0, 0, 0]
    with pytest.raises(errors.ConnectionLost):
        pull(site, store)
    site.files["weights.pt"], site.etag = good, '"v2"'
    assert pull(site, store).stored.path.read_bytes() == good


def test_without_a_validator_the_file_is_fetched_anew(site: Site, store: Store, good: bytes) -> None:
    site.files["weights.pt"], site.etag = good, None
    site.drop_after = [1000]
    assert pull(site, store).stored.path.read_bytes() == good
    assert site.ranges == [None, None]


def test_a_part_beyond_the_end_of_the_file_is_dropped(site: Site, store: Store, good: bytes) -> None:
    site.files["weights.pt"] = good
    store.folder.mkdir()
    part = store.folder / f"{ENTRY.name}.native.part"
    part.write_bytes(good + b"more")
    (part.parent / f"{part.name}.json").write_text(json.dumps({"url": site.url("weights.pt"), "validator": site.etag}))
    assert pull(site, store).stored.path.read_bytes() == good


def test_a_server_in_trouble_is_asked_again(site: Site, store: Store, good: bytes) -> None:
    site.files["weights.pt"] = good
    site.statuses = [503, 429]
    assert pull(site, store).downloaded
    site.statuses = [500] * 4
    with pytest.raises(errors.ConnectionLost, match="500 Internal Server Error"):
        pull(site, store, refresh=True)


def test_nobody_listens(store: Store) -> None:
    source = Source(url="http://127.0.0.1:1/weights.pt", layout="native")
    with pytest.raises(errors.ConnectionLost, match="refused"):
        fetch.from_address(ENTRY, store, source, on_progress=quiet)
    assert left(store) == []


@pytest.mark.parametrize("status", [403, 404])
def test_a_refusal_is_final(site: Site, store: Store, status: int) -> None:
    site.statuses = [status]
    with pytest.raises(errors.HttpRefused, match=f"{status} .*--from FILE") as raised:
        pull(site, store)
    assert raised.value.status == status
    assert len(site.ranges) == 1
    assert left(store) == []


@pytest.mark.parametrize(
    ("body", "content_type", "message"),
    [
        (b"<html>sign in</html>", "text/html; charset=utf-8", "a page"),
        (b"\n <!DOCTYPE HTML><html>", "application/octet-stream", "a page"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "text/plain", "Git LFS pointer"),
    ],
)
def test_a_page_instead_of_the_file(site: Site, store: Store, body: bytes, content_type: str, message: str) -> None:
    site.files["weights.pt"], site.content_type = body, content_type
    with pytest.raises(errors.NotACheckpoint, match=message):
        pull(site, store)
    assert left(store) == []


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://host/file.pt", "weights.pt", "http:///file.pt"])
def test_only_http_is_fetched(store: Store, url: str) -> None:
    with pytest.raises(errors.BadAddress, match="--from FILE"):
        fetch.from_address(ENTRY, store, Source(url=url, layout="native"), on_progress=quiet)


def test_google_drive_is_left_to_a_browser(store: Store) -> None:
    source = Source(url="https://drive.google.com/file/d/abc/view", layout="native")
    with pytest.raises(errors.ByHand, match=r"drive\.google\.com/file/d/abc.*--from FILE"):
        fetch.from_address(ENTRY, store, source, on_progress=quiet)


def test_a_disk_that_fills_up_during_a_pull(site: Site, store: Store, good: bytes) -> None:
    site.files["weights.pt"] = good
    store.folder.mkdir()
    # Every write to /dev/full fails as on a full disk.
    (store.folder / f"{ENTRY.name}.native.part").symlink_to("/dev/full")
    with pytest.raises(errors.StoreError, match="No space left on device; make room"):
        pull(site, store)
    assert left(store) == []
    (store.folder / f"{ENTRY.name}.copy.part").symlink_to("/dev/full")
    file = store.folder.parent / "mine.pt"
    file.write_bytes(good)
    with pytest.raises(errors.StoreError, match="No space left on device; make room"):
        fetch.from_file(ENTRY, store, file, layout="native", on_progress=quiet)
    assert left(store) == []


def test_a_file_larger_than_the_room_left_is_not_begun(
    site: Site, store: Store, good: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.files["weights.pt"] = good
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(errors.StoreError, match=r"no room for .* MB"):
        pull(site, store)
    assert left(store) == []


def test_a_store_that_cannot_be_made(site: Site, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(errors.StoreError, match="--store"):
        pull(site, Store(tmp_path / "file" / "store"))


def test_records_that_cannot_be_read(site: Site, store: Store) -> None:
    store.folder.mkdir()
    (store.folder / RECORDS_FILE).write_text("{")
    with pytest.raises(errors.StoreError, match="delete it"):
        pull(site, store)


def test_two_pulls_at_once_are_refused(site: Site, store: Store) -> None:
    with store.locked(), pytest.raises(errors.StoreError, match="another pull"):
        pull(site, store)
