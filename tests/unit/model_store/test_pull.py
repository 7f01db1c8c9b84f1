"""`mobilevision models pull`: a local server that behaves well or badly, and checkpoints that are good or bad."""

import argparse
import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import toy_card
from safetensors.torch import save_file
from typer.testing import CliRunner

from model_store import archive, assemble, commands, export, layouts, weights, zoo
from model_store.card import WeightsState
from model_store.pull import download, errors, fetch, origin, sources
from model_store.pull.sources import Source
from model_store.pull.store import RECORDS_FILE, Store, git_blob

ENTRY = zoo.get("mobilevit_xxs_classify")


class Site(ThreadingHTTPServer):
    """Files by path, and how to misbehave while giving them."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.statuses: list[int] = []  # answered to the next requests, one each, before any file
        self.drop_after: list[int] = []  # bytes after which the next replies break off, one each
        self.etag: str | None = '"v1"'
        self.content_type = "application/octet-stream"
        self.ranges: list[str | None] = []  # what was asked for

    def handle_error(self, *_: Any) -> None:
        """A client that hangs up on a page is no error here."""

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{path}"


class _Handler(BaseHTTPRequestHandler):
    server: Site

    def do_GET(self) -> None:
        site = self.server
        wanted = self.headers["Range"]
        site.ranges.append(wanted)
        body = site.files.get(self.path.lstrip("/"))
        status = site.statuses.pop(0) if site.statuses else 200 if body is not None else 404
        if status != 200 or body is None:
            self.send_error(status)
            return
        start = 0
        if wanted and self.headers["If-Range"] == site.etag:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            if start >= len(body):
                self.send_error(416)
                return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        if site.etag:
            self.send_header("ETag", site.etag)
        self.send_header("Content-Type", site.content_type)
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        end = start + site.drop_after.pop(0) if site.drop_after else len(body)
        self.wfile.write(body[start:end])

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def site() -> Iterator[Site]:
    with Site() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that a download meant to wait between attempts."""
    waited: list[float] = []
    monkeypatch.setattr(fetch.download, "__kwdefaults__", fetch.download.__kwdefaults__ | {"sleep": waited.append})
    return waited


@pytest.fixture(autouse=True, scope="module")
def one_network() -> Iterator[None]:
    """Networks are built once: what a test loads into them, the next one overwrites."""
    build, built = assemble.build, {}

    def once(entry: zoo.Entry) -> assemble.Network:
        return built.get(entry.name) or built.setdefault(entry.name, build(entry))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assemble, "build", once)
        yield


def saved(content: Any, folder: Path, name: str = "content.pt", **options: Any) -> bytes:
    torch.save(content, folder / name, **options)
    return (folder / name).read_bytes()


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    """Weights of the entry under our own names."""
    network = assemble.build(ENTRY)
    weights.random_(network, seed=1)
    return {name: value.clone() for name, value in network.state_dict().items()}


@pytest.fixture(scope="module")
def good(state: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return saved(state, tmp_path_factory.mktemp("good"))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def quiet(_done: int, _total: int | None) -> None:
    pass


def pull(site: Site, store: Store, name: str = "weights.pt", **options: Any) -> fetch.Pulled:
    source = Source(url=site.url(name), layout="native", git_blob=options.pop("git_blob", ""))
    return fetch.from_address(ENTRY, store, source, on_progress=options.pop("on_progress", quiet), **options)


def left(store: Store) -> list[str]:
    return sorted(path.name for path in store.folder.iterdir() if path.name != ".lock")


def test_a_pull_verifies_stores_and_records(site: Site, store: Store, good: bytes) -> None:
    site.files["weights.pt"] = good
    seen: list[tuple[int, int | None]] = []
    pulled = pull(site, store, on_progress=lambda done, total: seen.append((done, total)))
    assert pulled.downloaded
    assert pulled.tensors == len(assemble.build(ENTRY).state_dict())
    assert not pulled.known_bytes
    assert pulled.stored.path.read_bytes() == good
    assert seen[0] == (0, len(good))
    assert seen[-1] == (len(good), len(good))
    assert left(store) == [RECORDS_FILE, f"{ENTRY.name}.pt"]
    digest = hashlib.sha256(good).hexdigest()
    assert json.loads((store.folder / RECORDS_FILE).read_text()) == {
        "models": {
            ENTRY.name: {
                "file": f"{ENTRY.name}.pt",
                "source": site.url("weights.pt"),
                "layout": "native",
                "sha256": digest,
                "size_bytes": len(good),
            }
        },
        "digests": {site.url("weights.pt"): digest},
    }


def test_what_is_there_and_unchanged_is_not_downloaded_again(site: Site, store: Store, good: bytes) -> None:
    site.files["weights.pt"] = good
    pull(site, store)
    again = pull(site, store)
    assert not again.downloaded
    assert len(site.ranges) == 1
    again.stored.path.write_bytes(b"damaged")
    assert pull(site, store).downloaded
    again.stored.path.unlink()
    assert pull(site, store).known_bytes
    assert len(site.ranges) == 3


def test_the_kind_of_file_is_told_by_its_bytes(
    site: Site, store: Store, state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    save_file(state, tmp_path / "content.safetensors")
    site.files["download"] = (tmp_path / "content.safetensors").read_bytes()
    assert pull(site, store, "download").stored.path.suffix == ".safetensors"
    site.files["model.pth.tar"] = saved({"state_dict": state}, tmp_path, _use_new_zipfile_serialization=False)
    assert pull(site, store, "model.pth.tar").stored.path.suffix == ".pt"
    assert left(store) == [RECORDS_FILE, f"{ENTRY.name}.pt"]


def test_a_training_checkpoint_with_its_options_is_read(
    site: Site, store: Store, state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    training = {"model": state, "epoch": 300, "args": argparse.Namespace(lr=0.1, name="x")}
    site.files["weights.pt"] = saved(training, tmp_path)
    assert pull(site, store).tensors == len(state)


# The network


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


# Digests


def test_other_bytes_than_at_the_first_pull_are_refused_until_they_are_accepted(
    site: Site, store: Store, good: bytes, state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    site.files["weights.pt"] = good
    first = pull(site, store).stored
    first.path.unlink()
    other = saved({name: value * 2 for name, value in state.items()}, tmp_path)
    site.files["weights.pt"] = other
    with pytest.raises(errors.WrongDigest, match=f"{hashlib.sha256(good).hexdigest()}.*--refresh"):
        pull(site, store)
    assert left(store) == [RECORDS_FILE]
    assert not pull(site, store, refresh=True).known_bytes
    assert store.digest_of(site.url("weights.pt")) == hashlib.sha256(other).hexdigest()


def test_published_ids_are_verified(site: Site, store: Store, good: bytes, tmp_path: Path) -> None:
    site.files["weights.pt"] = good
    with pytest.raises(errors.WrongDigest, match="git blob id"):
        pull(site, store, git_blob="0" * 40)
    assert left(store) == []
    (tmp_path / "good").write_bytes(good)
    assert pull(site, store, git_blob=git_blob(tmp_path / "good")).known_bytes


def test_git_blob_ids_are_those_of_git(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"test content\n")  # the example of the Pro Git book
    assert git_blob(tmp_path / "file") == "d670460b4b4aece5915caf5c68d12f560a9fe3e4"


def test_a_digest_that_was_asked_for(site: Site, store: Store, good: bytes) -> None:
    site.files["weights.pt"] = good
    with pytest.raises(errors.WrongDigest, match="the one asked for"):
        pull(site, store, expected_sha256="0" * 64)
    assert pull(site, store, expected_sha256=hashlib.sha256(good).hexdigest()).known_bytes


# Checkpoints that are no use


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch /tmp/mobilevision-was-here",)


State = dict[str, torch.Tensor]
FIRST = "backbone.stem.conv.weight"
# What is wrong: from good weights and their file to a bad file, and what the error says.
BAD: dict[str, tuple[Callable[[State, bytes, Path], bytes], str]] = {
    "truncated": (lambda _, good, __: good[: len(good) // 2], "truncated or damaged"),
    "no checkpoint": (lambda *_: b"no checkpoint at all", "neither a safetensors file"),
    "empty": (lambda *_: b"", "neither a safetensors file"),
    "broken safetensors": (lambda *_: b"\xff" * 8 + b"{", "safetensors"),
    "code in it": (
        lambda state, _, folder: saved({**state, "evil": Evil()}, folder),
        r"would run code when loaded \(posix\.system\)",
    ),
    "wrong model": (
        lambda _, __, folder: saved(assemble.build(zoo.get("mobilevit_xs_classify")).state_dict(), folder),
        "wrong shape.*is it another model",
    ),
    "tensor missing": (
        lambda state, _, folder: saved({n: value for n, value in state.items() if n != FIRST}, folder),
        f"1 missing: {FIRST}",
    ),
    "tensor too many": (
        lambda state, _, folder: saved({**state, "stray": torch.zeros(1)}, folder),
        "1 unexpected: stray",
    ),
    "not a number": (lambda state, _, folder: saved({**state, FIRST: state[FIRST] * float("nan")}, folder), "NaN"),
    "no tensors": (lambda _, __, folder: saved({"a": 1}, folder), "not named tensors: a"),
}


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("way", ["address", "file"])
def test_a_bad_checkpoint_is_one_clear_error_and_leaves_the_store_as_it_was(
    kind: str, way: str, site: Site, store: Store, good: bytes, state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    site.files["weights.pt"] = good
    pull(site, store)
    before = {path.name: path.read_bytes() for path in store.folder.iterdir()}
    make, message = BAD[kind]
    body = make(state, good, tmp_path)
    site.files["bad.pt"] = body
    (tmp_path / "bad.pt").write_bytes(body)
    ways = {
        "address": lambda: pull(site, store, "bad.pt"),
        "file": lambda: fetch.from_file(ENTRY, store, tmp_path / "bad.pt", layout="native", on_progress=quiet),
    }
    with pytest.raises(errors.UnusableCheckpoint, match=message) as raised:
        ways[way]()
    assert "\n" not in str(raised.value)
    assert {path.name: path.read_bytes() for path in store.folder.iterdir()} == before
    assert not Path("/tmp/mobilevision-was-here").exists()


def test_the_right_layout_is_named_where_there_is_one(
    site: Site, store: Store, state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    theirs = {name.replace("head.fc.", "classifier.fc."): value for name, value in state.items()}
    (tmp_path / "mine.pt").write_bytes(saved(theirs, tmp_path))
    with pytest.raises(errors.UnusableCheckpoint, match="--layout cvnets or cvnets_v2") as raised:
        fetch.from_file(ENTRY, store, tmp_path / "mine.pt", layout="native", on_progress=quiet)
    assert raised.value.missing == ("head.fc.weight", "head.fc.bias")
    assert raised.value.unexpected == ("classifier.fc.weight", "classifier.fc.bias")
    assert fetch.from_file(ENTRY, store, tmp_path / "mine.pt", layout="cvnets", on_progress=quiet).tensors


# Disks


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


# Local files


def test_from_a_folder(store: Store, good: bytes, tmp_path: Path) -> None:
    folder = tmp_path / "downloads"
    folder.mkdir()
    with pytest.raises(errors.NoSuchFile, match="no checkpoint"):
        fetch.file_in(ENTRY, folder)
    (folder / "one.pth").write_bytes(good)
    assert fetch.file_in(ENTRY, folder).name == "one.pth"
    (folder / "two.bin").write_bytes(good)
    with pytest.raises(errors.NoSuchFile, match=r"one\.pth, two\.bin"):
        fetch.file_in(ENTRY, folder)
    (folder / "mobilevit_xxs.pt").write_bytes(good)  # its published name
    assert fetch.file_in(ENTRY, folder).name == "mobilevit_xxs.pt"
    pulled = fetch.from_file(ENTRY, store, folder, layout="native", on_progress=quiet)
    assert pulled.stored.record.source == str(folder / "mobilevit_xxs.pt")
    with pytest.raises(errors.NoSuchFile, match="no such file"):
        fetch.from_file(ENTRY, store, tmp_path / "nowhere", layout="native", on_progress=quiet)


# What is published


def test_every_published_file_has_a_layout_and_an_address() -> None:
    for entry in zoo.ENTRIES:
        for source in sources.published(entry):
            assert source.layout in layouts.LAYOUTS
            assert source.url.startswith("https://")
            assert source.by_hand or source.file_name
        if entry.checkpoint_url:
            assert sources.choose(entry, None).url == entry.checkpoint_url


def test_the_other_published_files_are_found_by_their_layout() -> None:
    assert sources.choose(ENTRY, "timm").url == (
        "https://huggingface.co/timm/mobilevit_xxs.cvnets_in1k/resolve/main/model.safetensors"
    )
    assert sources.choose(zoo.get("mobilevit_xs_segment"), "transformers").url == (
        "https://huggingface.co/apple/deeplabv3-mobilevit-x-small/resolve/main/pytorch_model.bin"
    )
    with pytest.raises(errors.Unpublished, match="cvnets, timm, transformers"):
        sources.choose(ENTRY, "native")
    assert sources.at("https://github.com/zhangzjn/EMO/raw/main/resources/EMO_1M/net.pth", "native").git_blob


# Whose it is


@pytest.fixture
def official(site: Site, good: bytes, monkeypatch: pytest.MonkeyPatch) -> Source:
    """A file that is published at this site, as if by the authors of the model."""
    site.files["weights.pt"] = good
    source = Source(url=site.url("weights.pt"), layout="native")
    monkeypatch.setattr(sources, "published", lambda _: (source,))
    return source


def test_what_a_published_address_gave_is_official_wherever_its_bytes_turn_up(
    site: Site, store: Store, official: Source, good: bytes, tmp_path: Path
) -> None:
    mine, other = tmp_path / "mine.pt", tmp_path / "other.pt"
    mine.write_bytes(good)
    other.write_bytes(good[:-1])
    assert origin.of_file(ENTRY, store, mine, layout="native") == origin.Origin("mine.pt", official=False)
    assert origin.of_stored(ENTRY, store, pull(site, store).stored) == origin.Origin(official.url, official=True)
    assert origin.of_file(ENTRY, store, mine, layout="native") == origin.Origin(official.url, official=True)
    assert origin.of_file(ENTRY, store, other, layout="native") == origin.Origin("other.pt", official=False)
    assert not origin.of_file(ENTRY, store, mine, layout="timm").official


def test_what_another_address_gave_is_not_official(site: Site, store: Store, good: bytes) -> None:
    site.files["mirror.pt"] = good
    stored = pull(site, store, "mirror.pt").stored
    assert origin.of_stored(ENTRY, store, stored) == origin.Origin(site.url("mirror.pt"), official=False)


def test_a_file_of_a_published_git_blob_is_official(
    store: Store, good: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.pt").write_bytes(good)
    source = Source(url="https://example.org/net.pth", layout="native", git_blob=git_blob(tmp_path / "mine.pt"))
    monkeypatch.setattr(sources, "published", lambda _: (source,))
    stored = fetch.from_file(ENTRY, store, tmp_path / "mine.pt", layout="native", on_progress=quiet).stored
    assert origin.of_stored(ENTRY, store, stored) == origin.Origin(source.url, official=True)


def test_a_file_downloaded_by_hand_is_official_where_that_is_said(
    store: Store, official: Source, good: bytes, state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    mine = tmp_path / "mine.pt"
    mine.write_bytes(good)
    stored = fetch.from_file(ENTRY, store, mine, layout="native", on_progress=quiet).stored
    assert origin.of_stored(ENTRY, store, stored) == origin.Origin("mine.pt", official=False)
    stored = fetch.from_file(ENTRY, store, mine, layout="native", published=True, on_progress=quiet).stored
    assert origin.of_stored(ENTRY, store, stored) == origin.Origin(official.url, official=True)
    mine.write_bytes(saved({name: value * 2 for name, value in state.items()}, tmp_path))
    with pytest.raises(errors.WrongDigest, match="the one pulled first"):
        fetch.from_file(ENTRY, store, mine, layout="native", published=True, on_progress=quiet)
    with pytest.raises(errors.Unpublished, match="leave --published out"):
        fetch.from_file(ENTRY, store, mine, layout="timm", published=True, on_progress=quiet)


# The command


def run(*arguments: str | Path) -> Any:
    return CliRunner(env={"COLUMNS": "300", "TERM": "dumb"}).invoke(commands.app, [str(part) for part in arguments])


def test_the_command_pulls_and_build_uses_it(
    site: Site, tmp_path: Path, good: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.files["weights.pt"] = good
    store, out = tmp_path / "store", tmp_path / "out"
    arguments = ("pull", ENTRY.name, "--url", site.url("weights.pt"), "--layout", "native", "--store", store)
    first = run(*arguments)
    assert first.exit_code == 0, first.output
    for text in (", recorded", "all of them fit", hashlib.sha256(good).hexdigest()):
        assert text in first.output
    assert "already there" in run(*arguments).output
    asked: list[dict[str, Any]] = []

    def fake(name: str, *, checkpoint: Path | None, **options: Any) -> export.Exported:
        asked.append({"checkpoint": checkpoint, **options})
        card = toy_card(name=name, weights=WeightsState.CUSTOM if checkpoint else WeightsState.RANDOM)
        digest = hashlib.sha256(b"module").hexdigest()
        return export.Exported(card=card.model_copy(update={"module_sha256": digest}), module_bytes=b"module")

    monkeypatch.setattr(export, "export", fake)
    monkeypatch.setattr(archive, "check", lambda _: None)  # there is no module to load in these
    built = run("build", ENTRY.name, "--out", out, "--store", store)
    assert "weights: custom" in built.output, built.output
    path, address = store / f"{ENTRY.name}.pt", site.url("weights.pt")
    assert asked == [{"checkpoint": path, "layout": "native", "source": address, "official": False}]
    assert "weights: random" in run("build", ENTRY.name, "--out", out, "--store", store, "--random", "--force").output
    (store / f"{ENTRY.name}.pt").write_bytes(b"damaged")
    damaged = run("build", ENTRY.name, "--out", out, "--store", store)
    assert damaged.exit_code == 1
    assert f"pull again: mobilevision models pull {ENTRY.name}" in damaged.output


def test_the_command_takes_a_file_and_reports_every_misfit(
    tmp_path: Path, state: dict[str, torch.Tensor], good: bytes
) -> None:
    (tmp_path / "mine.pt").write_bytes(good)
    done = run("pull", ENTRY.name, "--from", tmp_path / "mine.pt", "--layout", "native", "--store", tmp_path / "store")
    assert done.exit_code == 0, done.output
    names = list(state)
    saved({"stray": torch.zeros(1), **{name: state[name] for name in names[2:]}}, tmp_path, "mine.pt")
    failed = run(
        "pull", ENTRY.name, "--from", tmp_path / "mine.pt", "--layout", "native", "--store", tmp_path / "store"
    )
    assert failed.exit_code == 1
    for text in (f"2 missing: {names[0]}, {names[1]}", "1 unexpected: stray"):
        assert text in failed.output
    assert len(failed.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mobilevit_xxs_clasify"], "did you mean mobilevit_xxs_classify"),
        ([ENTRY.name, "--from", "a", "--url", "b"], "exclude each other"),
        ([ENTRY.name, "--published"], "belongs to --from"),
        ([ENTRY.name, "--sha256", "abc"], "64 hexadecimal digits"),
        ([ENTRY.name, "--layout", "nobodys"], "no layout is called"),
    ],
)
def test_usage_errors(arguments: list[str], message: str) -> None:
    result = run("pull", *arguments)
    assert result.exit_code == 2
    assert message in result.output
