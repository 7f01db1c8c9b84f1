"""`mobilevision models demo-train` and `demo-data`, from the command line."""

import json
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import pytest
from typer.testing import CliRunner

from model_store.cli import demo as commands
from model_store.cli.commands import models_app
from model_store.demo import checkpoints, dataset
from model_store.demo_training import recipes, train
from model_store.weights import container
from model_store.weights import load as weights


def test_demo_data_writes_files_that_eval_reads(tmp_path: Path) -> None:
    result = CliRunner().invoke(models_app(), ["demo-data", "--out", str(tmp_path / "new" / "set"), "--count", "3"])
    assert result.exit_code == 0, result.output
    folder = tmp_path / "new" / "set"
    truth = json.loads((folder / "detect.json").read_text())
    first = dataset.draw(seed=commands.HELD_OUT_SEED, split="held_out", index=0, kind="scene")
    assert (folder / "images" / truth["images"][0]["file_name"]).read_bytes() == first.jpeg
    assert len(list((folder / "masks").glob("*.png"))) == 3
    assert len(json.loads((folder / "classify.json").read_text())["images"]) == 3


def test_demo_data_says_where_it_cannot_write(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = CliRunner().invoke(models_app(), ["demo-data", "--out", str(tmp_path / "file"), "--count", "1"])
    assert result.exit_code == 1
    assert "cannot write" in result.output


def test_demo_train_knows_its_tasks() -> None:
    result = CliRunner().invoke(models_app(), ["demo-train", "paint"])
    assert result.exit_code == 2
    assert "paint" in result.output


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recipes of two steps."""
    small = {
        name: replace(recipe, pictures=4, batch=2, steps=2, sides_px=(32,)) for name, recipe in recipes.RECIPES.items()
    }
    for module in (recipes, train, commands):
        monkeypatch.setattr(module, "RECIPES", MappingProxyType(small))


@pytest.mark.usefixtures("quick")
def test_demo_train_trains_what_a_task_needs_and_writes_its_checkpoint(tmp_path: Path) -> None:
    out = tmp_path / "weights"
    arguments = ["demo-train", "detect", "--work", str(tmp_path / "work"), "--out", str(out), "--pictures", "2"]
    result = CliRunner().invoke(models_app(), arguments)
    assert result.exit_code == 0, result.output
    assert list(checkpoints.records(out)) == ["demo_detect"], "what it starts from is trained, not written"
    record = checkpoints.records(out)["demo_detect"]
    assert record.steps == 2
    assert weights.digest(container.read(out / "demo_detect.safetensors").state) == record.digest
    assert checkpoints.read("demo_detect", folder=out).keys() > {"backbone.stem.conv.weight"}
    assert "demo_detect" in (out / "README.md").read_text()
    again = CliRunner().invoke(models_app(), arguments)
    assert again.exit_code == 0
    assert checkpoints.records(out)["demo_detect"].digest == record.digest
