"""Digests, published files, and the question whether a file is an official one."""

import hashlib
from pathlib import Path

import pytest
import torch
from checkpoint_site import ENTRY, Site, left, pull, quiet, saved

from model_store import zoo
from model_store.pull import errors, fetch, origin, sources
from model_store.pull.sources import Source
from model_store.pull.store import RECORDS_FILE, Store, git_blob
from model_store.weights import layouts


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
