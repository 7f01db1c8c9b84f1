"""A network to train: the classes of the definition, the weights of the base, and a checkpoint that builds."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from model_store import zoo
from model_store.build import assemble, fitting
from model_store.build.trainable import trainable
from model_store.cli import commands
from model_store.definition import read
from model_store.definition.errors import DefinitionError
from model_store.definition.template import template
from model_store.labels import LabelSet
from model_store.weights import container
from model_store.weights import load as weights
from model_store.weights.errors import CheckpointError

BASE = "mobilevit_xxs_classify"


@pytest.fixture
def definition(tmp_path: Path) -> Path:
    """A definition with three labels."""
    path = tmp_path / "own.toml"
    path.write_text(f'name = "own"\nbase = "{BASE}"\nlabels = ["a", "b", "c"]\ncheckpoint = "own.pt"\n')
    return path


def test_what_was_trained_is_a_checkpoint_of_the_definition(definition: Path, tmp_path: Path) -> None:
    model = trainable(definition)
    assert model.labels == ("a", "b", "c")
    assert (model.width, model.height) == (256, 256)
    pixels = torch.randint(0, 256, (2, 64, 96, 3), dtype=torch.uint8)
    assert model.network(model.pixels(pixels)).shape == (2, 3)
    torch.save({"state_dict": model.network.state_dict()}, tmp_path / "own.pt")
    found = fitting.recognised(container.read(tmp_path / "own.pt").state, zoo.get(BASE), None)
    assert (found.classes, found.layout.name) == (3, "native")


def test_it_begins_with_weights_of_any_number_of_classes(definition: Path, tmp_path: Path) -> None:
    other = assemble.build(replace(zoo.get(BASE), labels=LabelSet("", own=tuple("abcdefgh"))))
    weights.random_(other, 0)
    torch.save(other.state_dict(), tmp_path / "other.pt")
    own = trainable(definition, start=tmp_path / "other.pt").network.state_dict()
    same = {name for name, value in other.state_dict().items() if torch.equal(own.get(name, value + 1), value)}
    assert set(own) - same <= {"head.fc.weight", "head.fc.bias"}


def test_it_begins_with_the_demo_weights(definition: Path) -> None:
    fresh, begun = (trainable(definition, start=start).network.state_dict() for start in (None, "demo"))
    name = "backbone.stem.conv.weight"
    assert not torch.equal(fresh[name], begun[name])


def test_weights_of_another_model_are_refused(definition: Path, tmp_path: Path) -> None:
    torch.save(assemble.build(zoo.get("emo_1m_classify")).state_dict(), tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="this is emo_1m_classify"):
        trainable(definition, start=tmp_path / "other.pt")


def test_labels_are_needed(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text(f'name = "own"\nbase = "{BASE}"\n')
    with pytest.raises(DefinitionError, match="give labels"):
        trainable(path)


@pytest.mark.parametrize("base", zoo.names())
def test_a_new_definition_is_read_as_it_stands(tmp_path: Path, base: str) -> None:
    path = tmp_path / "own.toml"
    path.write_text(template("own", zoo.get(base)))
    assert read.read(path)[0].input is not None


def test_init_from_a_folder_says_what_is_missing(tmp_path: Path) -> None:
    network = assemble.build(replace(zoo.get("emo_1m_classify"), labels=LabelSet("", own=("a", "b"))))
    torch.save(network.state_dict(), tmp_path / "net.pth")
    (tmp_path / "emo.py").write_text("classes = None\n")
    arguments = ["init", "own", "--from", str(tmp_path), "--dir", str(tmp_path)]
    result = CliRunner().invoke(commands.models_app(), arguments)
    assert result.exit_code == 0, result.output
    text = (tmp_path / "own.toml").read_text()
    assert "# To be filled in here: " in text
    assert "2 classes" in text
    assert read.read(tmp_path / "own.toml")[0].base == "emo_1m_classify"
