"""Checkpoints that `models pull` verifies and stores, and checkpoints that it refuses."""

import argparse
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_site import ENTRY, Site, left, pull, quiet, saved
from safetensors.torch import save_file

from model_store import zoo
from model_store.build import assemble, fitting
from model_store.pull import errors, fetch
from model_store.pull.store import RECORDS_FILE, Store
from model_store.weights import layouts
from model_store.weights.errors import CheckpointError


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
        "this is mobilevit_xs_classify with 1000 classes in the layout native; name mobilevit_xs_classify instead",
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
    "no tensors": (lambda _, __, folder: saved({"a": 1}, folder), "not a dict of tensors"),
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
    network = assemble.build(ENTRY)
    with pytest.raises(CheckpointError) as of_build:
        fitting.load(network, theirs, layouts.get("native"), ENTRY)
    assert str(of_build.value) in str(raised.value)  # `models build --checkpoint` says the same
    assert raised.value.missing == ("head.fc.weight", "head.fc.bias")
    assert raised.value.unexpected == ("classifier.fc.weight", "classifier.fc.bias")
    assert fetch.from_file(ENTRY, store, tmp_path / "mine.pt", layout="cvnets", on_progress=quiet).tensors


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
