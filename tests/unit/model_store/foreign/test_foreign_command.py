"""`models add` and a definition with `torchscript`: what is printed and written, and that a refusal writes nothing."""

import warnings
from pathlib import Path
from typing import Any

import foreign_networks as networks
import pytest
import torch
from foreign_networks import SIDE, save
from torch import Tensor
from typer.testing import CliRunner

from handlers.contract.card import Card, WeightsState
from model_store import zoo
from model_store.build import archive
from model_store.cli import commands

LABELS = ("cat", "dog", "bird")

# A library lives as long as the process, as torchvision's does. PyTorch keeps the ids of the operators of a freed one
# in its table of builtins. A later object with such an id, a list of a Conv2d for example, would fail to compile.
TORCHVISION = torch.library.Library("torchvision", "FRAGMENT")


@pytest.fixture(autouse=True)
def _no_bare_import(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model_store.build.archive.check", lambda _: None)  # takes seconds; test_archive.py tests it


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "labels.txt").write_text("\n".join(LABELS))
    return tmp_path


def run(*arguments: str | Path) -> Any:
    return CliRunner(env={"COLUMNS": "300", "TERM": "dumb"}).invoke(
        commands.models_app(), [str(part) for part in arguments]
    )


def add(folder: Path, *more: str | Path, task: str = "classify", name: str = "pets") -> Any:
    given = ["--name", name, "--task", task, "--labels", folder / "labels.txt", "--input", f"{SIDE}x{SIDE}"]
    return run("add", folder / "net.pt", *given, "--out", folder / "out", *more)


def test_add_builds_once_what_a_definition_builds_too(folder: Path) -> None:
    save(networks.Stem(), folder / "net.pt")
    done = add(folder, "--mean", "0.5,0.4,0.3", "--std", "0.2,0.2,0.2", "--version", "1.2", "--licence", "MIT")
    assert done.exit_code == 0, done.output
    assert "held      rows of a batch: a picture alone and in a batch differ by" in done.output
    assert "assumed:" in done.output
    assert "[preprocess] resize: squash" in done.output
    assert "mean" not in done.output
    card = Card.read(folder / "out" / "pets.card.json")
    assert archive.read_card(folder / "out" / "pets.mar") == card
    assert (card.family, card.variant, card.head, card.version) == ("torchscript", "net", "logits", "1.2")
    assert (card.labels, card.weights.state, card.weights.licence) == (LABELS, WeightsState.CUSTOM, "MIT")
    assert card.recipe.base == ""
    assert len(card.recipe.source_sha256) == 64
    assert card.normalize.mean == (0.5, 0.4, 0.3)
    assert card.bfloat16 is not None
    again = add(folder, "--mean", "0.5,0.4,0.3", "--std", "0.2,0.2,0.2", "--version", "1.2", "--licence", "MIT")
    assert "up to date" in again.output
    shown = run("show", "pets", "--out", folder / "out").output
    assert card.recipe.source_sha256 in shown
    (folder / "pets.toml").write_text(
        'name = "pets"\ntorchscript = "net.pt"\ntask = "classify"\nlabels = "labels.txt"\n'
        f"[input]\nwidth = {SIDE}\nheight = {SIDE}\n"
        "[preprocess]\nmean = [0.5, 0.4, 0.3]\nstd = [0.2, 0.2, 0.2]\n"
    )
    built = run("build", folder / "pets.toml", "--out", folder / "defined")
    assert built.exit_code == 0, built.output
    other = Card.read(folder / "defined" / "pets.card.json")
    assert (other.module_sha256, other.parity) == (card.module_sha256, card.parity)


def test_an_operator_that_workers_do_not_have_is_named_and_nothing_is_written(folder: Path) -> None:
    if not hasattr(torch.ops.torchvision, "foreign_test"):
        TORCHVISION.define("foreign_test(Tensor boxes, Tensor scores, float limit) -> Tensor")

    class Suppressing(networks.Detector):
        def forward(self, x: Tensor) -> list[dict[str, Tensor]]:
            boxes, scores, labels = self.one(self.maps(x)[0])
            kept = torch.ops.torchvision.foreign_test(boxes, scores, 0.5)
            return [{"boxes": boxes[kept], "scores": scores[kept], "labels": labels[kept]}]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save(Suppressing(), folder / "net.pt")
    done = add(folder, task="detect")
    assert done.exit_code == 1
    assert "operators: needs torchvision::foreign_test, which plain torch does not have; workers have" in done.output
    assert "not held  operators" in done.output
    assert not (folder / "out").exists()


@pytest.mark.parametrize(
    ("more", "exit_code", "told"),
    [
        (["--task", "recognise"], 2, "task"),
        (["--labels", "none.txt"], 1, "none.txt"),
        (["--name", zoo.names()[0]], 1, "is a model of the zoo; give yours another name"),
        (["--boxes", "pixels"], 1, "[head] boxes: a classify module has no such option; it has background"),
        (["--boxes", "metres"], 2, "boxes"),
        (["--input", "32"], 2, "WIDTHxHEIGHT"),
        (["--mean", "127,127,127"], 2, "divide by 255"),
    ],
)
def test_wrong_options_end_in_one_line(folder: Path, more: list[str], exit_code: int, told: str) -> None:
    save(networks.Stem(), folder / "net.pt")
    done = add(folder, *more)
    assert done.exit_code == exit_code, done.output
    assert told in done.output
    assert not (folder / "out").exists()


def test_a_file_that_is_not_there(folder: Path) -> None:
    assert "net.pt: no such file" in add(folder).output
