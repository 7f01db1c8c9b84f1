"""`--expect`: one's own answer to one picture, right and wrong in each usual way, and files that are no answer."""

import io
import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from handlers.contract.card import Card, InputSize, Normalize, Preprocess, WeightsState
from model_store import zoo
from model_store.build import assemble, expect, export, parity, torchscript
from model_store.build.errors import ExportError
from model_store.build.expect_file import read
from model_store.demo import checkpoints
from model_store.weights import layouts
from model_store.weights import load as weights
from service.cli.main import app, read_picture

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
SIZE = InputSize(width=128, height=96)
PREPROCESS = Preprocess(mode="squash")
NORMALIZE = Normalize(channel_order="RGB", mean=(0.4, 0.45, 0.5), std=(0.2, 0.25, 0.3))
PICTURE = Path("docs/pictures/shapes_1.jpg")


@pytest.fixture(autouse=True)
def _in_the_project(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(expect.__file__).parents[2])


@cache
def network_of(name: str) -> Any:
    entry = zoo.get(name)
    network = assemble.build(entry)
    weights.load(network, checkpoints.read(name), layouts.get(entry.layout))
    return network


@cache
def module_bytes(name: str) -> bytes:
    entry = replace(zoo.get(name), input=SIZE, normalize=NORMALIZE)
    return torchscript.save(torchscript.script(assemble.served(entry, network_of(name))))


def card_of(name: str, **changed: Any) -> Card:
    entry = zoo.get(name)
    card = Card.model_construct(
        task=entry.task, input=SIZE, preprocess=PREPROCESS, normalize=NORMALIZE, labels=entry.labels.names
    )
    return card.model_copy(update=changed)


def by_hand(size: InputSize = SIZE) -> torch.Tensor:
    """The input of the network as a training script makes it: Pillow and numpy only."""
    with Image.open(PICTURE) as opened:
        image = opened.convert("RGB").resize((size.width, size.height), Image.Resampling.BILINEAR)
    values = (np.asarray(image, np.float32) / 255 - np.float32(NORMALIZE.mean)) / np.float32(NORMALIZE.std)
    return torch.from_numpy(values.transpose(2, 0, 1)[None])


def picture_size() -> tuple[int, int]:
    with Image.open(PICTURE) as opened:
        return opened.size


@cache
def raw_by_hand(name: str) -> Any:
    with torch.inference_mode():
        return network_of(name)(by_hand())


def logits() -> list[float]:
    return raw_by_hand("demo_classify")[0].tolist()  # type: ignore[no-any-return]


def check(name: str, folder: Path, answer: object, **changed: Any) -> str:
    path = folder / "answer.json"
    path.write_text(json.dumps(answer))
    expectation = expect.Expectation(path, PICTURE)
    return expect.check(card_of(name, **changed), module_bytes(name), expectation, read_picture)


def test_the_same_logits_agree_in_every_form(tmp_path: Path) -> None:
    names = zoo.get("demo_classify").labels.names
    forms: list[object] = [
        logits(),
        [logits()],
        {"logits": logits()},
        dict(zip(names, logits(), strict=True)),
        torch.tensor(logits()).softmax(0).tolist(),
        {"probabilities": torch.tensor(logits()).double().softmax(0).tolist()},
    ]
    for form in forms:
        assert "as answer.json says" in check("demo_classify", tmp_path, form)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"normalize": NORMALIZE.model_copy(update={"channel_order": "BGR"})}, 'with channels = "RGB"'),
        ({"preprocess": Preprocess(mode="crop", shorter_side_px=110)}, 'with resize = "squash" it is'),
        ({"preprocess": Preprocess(mode="squash", antialias=False)}, 'with interpolation = "bilinear" and antialias'),
        ({"preprocess": Preprocess(mode="squash", interpolation="bicubic")}, 'with interpolation = "bilinear"'),
        ({"normalize": Normalize(mean=(0.0, 0.1, 0.2))}, "no other channels, mean"),
    ],
)
def test_a_usual_mistake_is_named(tmp_path: Path, wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ExportError) as caught:
        check("demo_classify", tmp_path, logits(), **wrong)
    assert said in str(caught.value)
    assert "allowed: 0.01" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_two_mistakes_are_named_together(tmp_path: Path) -> None:
    imagenet = Normalize(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    answer = expected_with(imagenet)
    wrong = {"normalize": Normalize(channel_order="BGR"), "preprocess": PREPROCESS}
    with pytest.raises(ExportError, match=r'channels = "RGB" and mean = \[0.485, 0.456, 0.406\]'):
        check("demo_classify", tmp_path, answer, **wrong)


def expected_with(normalize: Normalize) -> list[float]:
    """The logits of a training with another mean and std."""
    back = by_hand() * torch.tensor(NORMALIZE.std).view(1, 3, 1, 1) + torch.tensor(NORMALIZE.mean).view(1, 3, 1, 1)
    x = (back - torch.tensor(normalize.mean).view(1, 3, 1, 1)) / torch.tensor(normalize.std).view(1, 3, 1, 1)
    with torch.inference_mode():
        return network_of("demo_classify")(x)[0].tolist()  # type: ignore[no-any-return]


def test_permuted_labels_are_named(tmp_path: Path) -> None:
    names = zoo.get("demo_classify").labels.names
    with pytest.raises(ExportError, match="the labels are permuted") as caught:
        check("demo_classify", tmp_path, [*logits()[1:], logits()[0]])
    assert f"{names[0]!r} in the file has the number of {names[1]!r}" in str(caught.value)


def boxes_by_hand() -> dict[str, Any]:
    entry = replace(zoo.get("demo_detect"), input=SIZE, normalize=NORMALIZE)
    served: Any = assemble.served(entry, network_of("demo_detect"))
    with torch.inference_mode():
        boxes, scores, labels, _ = served.postprocess.detections(*raw_by_hand("demo_detect"))
    rows = scores[0] > 0.3
    assert rows.any()
    width, height = picture_size()
    in_picture = boxes[0, rows] * torch.tensor([width, height, width, height])
    names = [entry.labels.names[label] for label in labels[0, rows].tolist()]
    return {"boxes": in_picture.tolist(), "scores": scores[0, rows].tolist(), "labels": names}


def test_boxes_in_pixels_of_the_picture_agree(tmp_path: Path) -> None:
    answer = boxes_by_hand()
    assert "overlap" in check("demo_detect", tmp_path, answer)
    rows = [
        {"box": box, "score": score, "label": label}
        for box, score, label in zip(answer["boxes"], answer["scores"], answer["labels"], strict=True)
    ]
    assert "as answer.json says" in check("demo_detect", tmp_path, rows)
    answer["boxes"][0][0] += 50
    with pytest.raises(ExportError, match="unlike answer"):
        check("demo_detect", tmp_path, answer)


def test_swapped_channels_of_a_detector_are_named(tmp_path: Path) -> None:
    wrong = NORMALIZE.model_copy(update={"channel_order": "BGR"})
    with pytest.raises(ExportError, match='with channels = "RGB"'):
        check("demo_detect", tmp_path, boxes_by_hand(), normalize=wrong)


def test_a_class_map_of_the_pictures_size_agrees(tmp_path: Path) -> None:
    raw = raw_by_hand("demo_segment")
    size = picture_size()
    full = torch.nn.functional.interpolate(raw, (size[1], size[0]), mode="bilinear", align_corners=False)
    classes = full[0].argmax(0).to(torch.uint8).numpy()
    buffer = io.BytesIO()
    Image.fromarray(classes).save(buffer, "PNG")
    path = tmp_path / "map.png"
    path.write_bytes(buffer.getvalue())
    align = zoo.get("demo_segment").head.align_corners  # type: ignore[attr-defined]
    assert align is False
    card, module = card_of("demo_segment"), module_bytes("demo_segment")
    assert "pixels" in expect.check(card, module, expect.Expectation(path, PICTURE), read_picture)
    np.save(tmp_path / "logits.npy", raw.numpy())
    said = expect.check(card, module, expect.Expectation(tmp_path / "logits.npy", PICTURE), read_picture)
    assert "logit" in said
    np.save(tmp_path / "map.npy", np.zeros((96, 128), np.uint8))
    with pytest.raises(ExportError, match="share of pixels"):
        expect.check(card, module, expect.Expectation(tmp_path / "map.npy", PICTURE), read_picture)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("demo_classify", "[1, 2]", "shape [2], and the model has"),
        ("demo_classify", "{", "not an answer"),
        ("demo_classify", '{"cat": 1}', "no number for the label"),
        ("demo_classify", '["a"]', "not an answer"),
        ("demo_detect", "{}", "has no 'boxes'"),
        ("demo_detect", '{"boxes": [], "scores": [], "labels": []}', "proves nothing"),
        ("demo_detect", '{"boxes": [[0, 0, 1, 1]], "scores": [1], "labels": ["yeti"]}', "'yeti' is no label"),
        ("demo_detect", '{"boxes": [[0, 0, 1, 1]], "scores": [], "labels": [1]}', "one score and one label"),
        ("demo_segment", "[1, 2]", "needs a class map"),
    ],
)
def test_a_file_that_is_no_answer_is_one_line(tmp_path: Path, name: str, text: str, said: str) -> None:
    path = tmp_path / "answer.json"
    path.write_text(text)
    with pytest.raises(ExportError) as caught:
        read(path, card_of(name))
    assert said in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_picture_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    answer, picture = tmp_path / "answer.json", tmp_path / "picture.jpg"
    answer.write_text(json.dumps(logits()))
    picture.write_bytes(b"no picture")
    for path in (picture, tmp_path / "absent.jpg"):
        expectation = expect.Expectation(answer, path)
        with pytest.raises(ExportError, match=path.name):
            expect.check(card_of("demo_classify"), module_bytes("demo_classify"), expectation, read_picture)


def test_the_module_is_the_one_that_is_compared(tmp_path: Path) -> None:
    """The answer by hand is that of the network; the same numbers come from the bytes of the module."""
    module = torchscript.load(module_bytes("demo_classify"))
    pixels, _ = read_picture(PICTURE.read_bytes(), SIZE, PREPROCESS)
    found = parity.raw_outputs(module, torch.from_numpy(np.array(pixels))[None])[0]
    torch.testing.assert_close(found, raw_by_hand("demo_classify"), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("form", ["options", "file"])
def test_build_writes_nothing_unless_the_answer_is_the_expected_one(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command compares before it writes. What is compared is tested above."""
    seen: list[expect.Expectation] = []

    def fake(card: Card, module_bytes: bytes, expectation: expect.Expectation, reader: object) -> str:
        assert reader is read_picture
        seen.append(expectation)
        raise ExportError("answers unlike")

    made = export.Exported(Card.model_construct(name="mine", weights=WeightsState.CUSTOM), b"")
    monkeypatch.setattr(expect, "check", fake)
    monkeypatch.setattr(export, "export_definition", lambda *_, **__: export.Defined(made, {}))
    answer, picture = tmp_path / "a.json", tmp_path / "p.jpg"
    answer.write_text("[]")
    picture.write_bytes(b"")
    out = tmp_path / "out"
    if form == "options":
        what = ["--base", "mobilevit_xxs_classify", "--name", "mine", "--expect", str(answer), str(picture)]
    else:
        what = [str(tmp_path / "mine.toml")]
        text = 'name = "mine"\nbase = "mobilevit_xxs_classify"\n[expect]\nanswer = "a.json"\npicture = "p.jpg"\n'
        (tmp_path / "mine.toml").write_text(text)
    done = CliRunner(env={"COLUMNS": "300"}).invoke(app, ["models", "build", *what, "--out", str(out)])
    assert done.exit_code == 1, done.output
    assert "mine: answers unlike" in done.output
    assert seen == [expect.Expectation(answer, picture)]
    assert not out.exists()


def test_files_that_are_not_there_are_named_before_the_build(tmp_path: Path) -> None:
    asked = ["models", "build", "mobilevit_xxs_classify", "--out", str(tmp_path), "--expect", "absent.json", "p.jpg"]
    done = CliRunner(env={"COLUMNS": "300"}).invoke(app, asked)
    assert done.exit_code == 2
    assert "absent.json: no such file" in done.output
