"""Export: equal bytes for equal weights, a card that tells the truth, layouts that change it, and refusals."""

import hashlib
import io
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from handlers.contract.card import Card, WeightsState
from model_store import zoo
from model_store.build import assemble, export, parity, torchscript
from model_store.build.compiler import compile_entry
from model_store.build.errors import ExportError
from model_store.networks.pixels import Pixels
from model_store.verify.golden import fill, read
from model_store.weights import layouts
from model_store.weights import load as weights
from model_store.weights.errors import CheckpointError

NAME = "mobilevit_xxs_classify"
GOLDEN = Path(__file__).parents[2] / "parity" / "golden" / "mobilevit_xxs.json"


@pytest.fixture(scope="module")
def exported() -> export.Exported:
    return export.export(NAME, checkpoint=None, seed=0)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    content = read(GOLDEN)
    path = tmp_path_factory.mktemp("checkpoint") / "mobilevit_xxs.pt"
    torch.save(fill(content["state_dict"], content["salt"], content["gain"]), path)
    return path


def test_equal_weights_give_equal_bytes_whatever_was_scripted_before(exported: export.Exported) -> None:
    torchscript.script(Pixels(normalize=zoo.get(NAME).normalize))  # type: ignore[arg-type]
    again = export.export(NAME, checkpoint=None, seed=0)
    assert again.module_bytes == exported.module_bytes
    assert again.card.to_json() == exported.card.to_json()


def test_the_archive_holds_no_paths_and_no_times(exported: export.Exported) -> None:
    with zipfile.ZipFile(io.BytesIO(exported.module_bytes)) as archive:
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert not [name for name in archive.namelist() if name.endswith((".debug_pkl", "serialization_id"))]
    assert str(Path(export.__file__).parent).encode() not in exported.module_bytes


@pytest.mark.parametrize("name", [NAME, "mobilevit_xxs_segment"])
def test_the_code_asks_for_no_resize_of_a_newer_torch(name: str) -> None:
    entry = zoo.get(name)
    module = torchscript.save(torchscript.script(assemble.served(entry, assemble.build(entry).eval())))
    with zipfile.ZipFile(io.BytesIO(module)) as archive:
        code = b"".join(archive.read(one) for one in archive.namelist() if one.endswith(".py"))
    assert b"upsample_bilinear2d" in code
    # `torch.nn.functional.interpolate` brings every mode that this torch has; torch 2.11 does not know lanczos.
    assert b"lanczos" not in code
    assert b"interpolate" not in code


def test_the_card_tells_the_truth(exported: export.Exported) -> None:
    card, entry = exported.card, zoo.get(NAME)
    assert Card.model_validate_json(card.to_json()) == card
    assert card.module_sha256 == hashlib.sha256(exported.module_bytes).hexdigest()
    assert (card.parameters, card.macs) == (entry.parameters, entry.macs)
    assert (card.task, card.head, len(card.labels)) == (entry.task, "classifier", 1000)
    assert [(output.name, output.dtype, output.shape) for output in card.outputs] == [
        ("scores", "float32", (100,)),
        ("labels", "int32", (100,)),
    ]
    assert card.bfloat16 is not None
    assert (card.bfloat16.metric, card.bfloat16.pictures) == ("top1", 8)
    assert card.bfloat16.score_max_abs_diff < 0.01
    assert card.parity.reloaded_max_abs_diff == 0
    assert card.parity.scripted_max_abs_diff <= 1e-4
    assert card.parity.batch_row_max_abs_diff <= 1e-4
    network = assemble.build(entry)
    weights.random_(network, 0)
    assert card.weights.sha256 == weights.digest(network.state_dict())


def test_random_weights_are_labelled_so(exported: export.Exported) -> None:
    assert exported.card.weights.state is WeightsState.RANDOM
    assert exported.card.weights.published == {}
    assert exported.card.weights.licence == ""
    assert "seed 0" in exported.card.weights.source


def test_the_official_checkpoint_brings_its_score_and_licence(checkpoint: Path) -> None:
    found = export.export(NAME, checkpoint=checkpoint, source="https://example.org/x.pt", official=True)
    assert found.card.weights.state is WeightsState.OFFICIAL
    assert found.card.weights.published == {"top1": 69.0}
    assert found.card.weights.licence
    assert found.card.weights.source == "https://example.org/x.pt"
    assert found.card.normalize.channel_order == "BGR"


def test_another_checkpoint_is_custom_and_its_layout_brings_its_channel_order(checkpoint: Path) -> None:
    found = export.export(NAME, checkpoint=checkpoint, layout="cvnets_v2")
    assert found.card.weights.state is WeightsState.CUSTOM
    assert found.card.weights.source == "mobilevit_xxs.pt"
    assert found.card.weights.licence == ""
    assert found.card.normalize.channel_order == "RGB"
    assert found.card.weights.published == {}
    pixels = parity.sample_pixels(zoo.get(NAME), 1)
    with torch.inference_mode():
        rgb = torchscript.load(found.module_bytes).pixels(pixels)
    assert torch.equal(rgb[0, 0], pixels[0, :, :, 0].float() * torch.tensor(1 / 255))


def test_refusals_are_typed(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(zoo.UnknownModel):
        export.export("mobilevit_xl_classify", checkpoint=None)
    with pytest.raises(layouts.UnknownLayout):
        export.export(NAME, checkpoint=checkpoint, layout="keras")
    with pytest.raises(
        CheckpointError, match=r"this is mobilevit_xxs_classify with 1000 classes .* use --layout cvnets"
    ):
        export.export(NAME, checkpoint=checkpoint, layout="timm")
    with pytest.raises(CheckpointError, match="no such file"):
        export.export(NAME, checkpoint=tmp_path / "absent.pt")


def test_a_failure_of_the_other_process_is_one_line_with_its_traceback_aside() -> None:
    entry = replace(zoo.get(NAME), backbone=zoo.MobileViTBackbone(variant="nonsense"))
    with pytest.raises(ExportError, match="nonsense") as caught:
        compile_entry(entry, {})
    assert len(str(caught.value).splitlines()) == 1
    assert NAME in str(caught.value)
    assert "Traceback" in caught.value.detail


def test_a_module_that_does_not_agree_is_not_exported() -> None:
    entry = zoo.get(NAME)
    first, second = assemble.build(entry), assemble.build(entry)
    weights.random_(first, 0)
    weights.random_(second, 1)
    eager, other = assemble.served(entry, first), assemble.served(entry, second)
    with pytest.raises(ExportError, match="scripted_max_abs_diff"):
        parity.measure(eager, other, other, parity.sample_pixels(entry, 1))


def test_finite_weights_with_outputs_that_are_not_are_told_from_a_bug(tmp_path: Path) -> None:
    network = assemble.build(zoo.get(NAME))
    weights.random_(network, 0)
    with torch.no_grad():
        network.head.fc.weight.fill_(3e38)
    pixels = parity.sample_pixels(zoo.get(NAME), 1)
    module = assemble.served(zoo.get(NAME), network)
    with pytest.raises(ExportError, match="outputs are NaN or infinite, although its weights are finite"):
        parity.measure(module, module, module, pixels)
