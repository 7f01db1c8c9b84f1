import hashlib
import json
import zipfile

import pytest

from handlers.contract.card import (
    Card,
    InputSize,
    Normalize,
    Output,
    Parity,
    Preprocess,
    Task,
    Weights,
    WeightsState,
)
from model_store.build import archive
from model_store.build.archive import ArchiveError

MODULE = b"stands for a scripted module" * 100


def make_card(module: bytes = MODULE, name: str = "toy") -> Card:
    return Card(
        name=name,
        task=Task.CLASSIFY,
        family="toy",
        variant="toy",
        head="none",
        paper="",
        input=InputSize(height=32, width=32),
        preprocess=Preprocess(mode="squash"),
        normalize=Normalize(),
        labels=("dark", "bright"),
        outputs=(Output(name="scores", dtype="float32", shape=(2,)),),
        parameters=1,
        macs=1,
        weights=Weights(state=WeightsState.RANDOM, source="test", sha256="0" * 64),
        parity=Parity(scripted_max_abs_diff=0, reloaded_max_abs_diff=0, batch_row_max_abs_diff=0),
        module_sha256=hashlib.sha256(module).hexdigest(),
    )


@pytest.fixture
def unchecked(monkeypatch):
    """Leave out the bare import (four seconds of importing torch); one test keeps it."""
    monkeypatch.setattr(archive, "check", lambda path: None)


def test_an_archive_holds_what_a_worker_needs_and_its_entry_imports_bare(tmp_path):
    path = archive.write(tmp_path, make_card(), MODULE)
    with zipfile.ZipFile(path) as mar:
        names = mar.namelist()
        manifest = json.loads(mar.read("MAR-INF/MANIFEST.json"))
        assert mar.read("model.pt") == MODULE
    assert names == sorted(names)
    assert {"MAR-INF/MANIFEST.json", "card.json", "model.pt"} <= set(names)
    assert {"handlers/__init__.py", "handlers/vision.py"} <= set(names)
    assert manifest["model"]["handler"] == "handlers.vision"
    assert manifest["model"]["modelVersion"] == "1.0"
    assert archive.read_card(path) == make_card() == Card.read(tmp_path / "toy.card.json")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["toy.card.json", "toy.mar"]


@pytest.mark.usefixtures("unchecked")
def test_equal_content_gives_equal_bytes(tmp_path):
    first = archive.write(tmp_path / "a", make_card(), MODULE)
    second = archive.write(tmp_path / "b", make_card(), MODULE)
    assert first.read_bytes() == second.read_bytes()
    assert (tmp_path / "a" / "toy.card.json").read_bytes() == (tmp_path / "b" / "toy.card.json").read_bytes()


@pytest.mark.usefixtures("unchecked")
def test_a_module_that_is_not_the_cards_is_refused(tmp_path):
    with pytest.raises(ArchiveError, match="sha256"):
        archive.write(tmp_path, make_card(), MODULE + b"x")
    assert not list(tmp_path.iterdir())


def test_an_archive_that_fails_its_check_leaves_the_earlier_one(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "check", lambda path: None)
    path = archive.write(tmp_path, make_card(), MODULE)
    before = path.read_bytes()

    def fails(path):
        raise ArchiveError("no")

    monkeypatch.setattr(archive, "check", fails)
    with pytest.raises(ArchiveError):
        archive.write(tmp_path, make_card(b"other"), b"other")
    assert path.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["toy.card.json", "toy.mar"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import service.core.errors\ndef handle(data, context): ...", "No module named 'service'"),
        ("import model_store\ndef handle(data, context): ...", "No module named 'model_store'"),
        ("handle = None", "no function handle"),
        ("def handle(", "SyntaxError"),
    ],
)
def test_check_reports_what_a_worker_would_hide(tmp_path, source, message):
    path = tmp_path / "bad.mar"
    with zipfile.ZipFile(path, "w") as mar:
        mar.writestr("MAR-INF/MANIFEST.json", json.dumps({"model": {"handler": "handlers.vision"}}))
        mar.writestr("handlers/__init__.py", "")
        mar.writestr("handlers/vision.py", source)
    with pytest.raises(ArchiveError, match=message):
        archive.check(path)


@pytest.mark.parametrize("content", [b"", b"not a zip", None])
def test_a_file_that_is_no_archive_is_refused(tmp_path, content):
    path = tmp_path / "x.mar"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ArchiveError, match=r"x\.mar"):
        archive.read_card(path)
    with pytest.raises(ArchiveError, match="not a mobilevision archive"):
        archive.check(path)
