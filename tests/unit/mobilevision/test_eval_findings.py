"""What an evaluation tells beside the scores: confusion matrix, classes, worst pictures, JSON; and scores of own data
against pycocotools and numpy asked directly.
"""

import contextlib
import csv
import importlib.util
import io
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import eval_sets
import grpc
import numpy as np
import own_sets
import pytest
from eval_server import Servicer, invoke, through_gateway
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mobilevision.eval import boxes, confusion
from mobilevision.eval.answers import Found, Overlap, Pixels, Top
from mobilevision.eval.confusion import Confusion
from mobilevision.tasks import Task
from service.core import errors
from service.pb.mobilevision.v1 import vision_pb2, vision_pb2_grpc

LABELS = eval_sets.LABELS
TOY_BOX = [16.0, 12.0, 32.0, 12.0]  # what the toy detector answers for a picture of 64 x 48


def rows_of(path: Path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


# Counting


def test_the_confusion_of_labels() -> None:
    found = confusion.of_labels([(0, Top((0, 1))), (0, Top((2, 0))), (2, Top()), (2, Top((2,)))])
    assert found.names(LABELS) == ["dark", "bright", "(nothing)"]
    assert found.table().tolist() == [[1, 1, 0], [0, 1, 1], [0, 0, 0]]


def test_the_confusion_of_pixels() -> None:
    pixels = Pixels((Overlap(0, 0, 5), Overlap(0, 1, 3), Overlap(1, 255, 2)))
    found = confusion.of_pixels([pixels, pixels], 3)
    assert found.table().tolist() == [[10, 6, 0], [0, 0, 4], [0, 0, 0]]


def annotation(category: int, box: list[float], *, crowd: int = 0) -> dict[str, Any]:
    return {"category_id": category, "bbox": box, "iscrowd": crowd}


def test_boxes_are_paired_by_place_and_counted_by_label() -> None:
    truth = [
        annotation(7, [0, 0, 10, 10]),
        annotation(14, [20, 0, 10, 10]),
        annotation(7, [40, 0, 10, 10]),
        annotation(7, [0, 30, 40, 40], crowd=1),
    ]
    found = [
        Found(0, 0.9, 0, 0, 10, 9),  # right
        Found(0, 0.8, 20, 0, 10, 10),  # right place, wrong label
        Found(2, 0.7, 80, 80, 5, 5),  # nothing is there
        Found(0, 0.7, 1, 0, 10, 10),  # a second one of an object that has one
        Found(0, 0.6, 5, 35, 5, 5),  # in a crowd: not counted
        Found(0, 0.1, 40, 0, 10, 10),  # not confident
    ]
    pairs = boxes.pair(truth, found, {7: 0, 14: 1})
    assert sorted(pairs.together) == [(0, 0), (1, 0)]
    assert (pairs.missed, sorted(pairs.extra), pairs.wrong) == ((0,), [0, 2], 4)
    counted = confusion.of_boxes([pairs])
    assert counted.names(LABELS) == ["dark", "gray", "bright", "(nothing)"]
    assert counted.table().tolist() == [[1, 0, 0, 1], [1, 0, 0, 0], [0, 0, 0, 0], [1, 0, 1, 0]]
    nothing = boxes.pair([], [], {})
    assert (nothing.together, nothing.missed, nothing.extra) == ((), (), ())


def test_the_files_of_the_confusion(tmp_path: Path) -> None:
    labels = ("a, $b$", "クラス", "crane", "crane")
    found = Confusion({(0, 0): 3, (1, 2): 1, (3, -1): 2}, "pictures")
    files = confusion.write(found, labels, tmp_path / "new" / "c.csv")
    assert rows_of(files[0]) == [
        ["true \\ answered", "a, $b$", "クラス", "crane (2)", "crane (3)", "(nothing)"],
        ["a, $b$", "3", "0", "0", "0", "0"],
        ["クラス", "0", "0", "1", "0", "0"],
        ["crane (2)", "0", "0", "0", "0", "0"],
        ["crane (3)", "0", "0", "0", "0", "2"],
        ["(nothing)", "0", "0", "0", "0", "0"],
    ]
    with Image.open(files[1]) as picture:
        assert picture.format == "PNG"
    many = Confusion({(label, label): 1 for label in range(confusion.MAX_CLASSES + 1)}, "pictures")
    names = [str(label) for label in range(confusion.MAX_CLASSES + 1)]
    assert confusion.write(many, names, tmp_path / "many.csv") == []


def test_without_matplotlib_there_is_no_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    found = Confusion({(0, 0): 3}, "pictures")
    assert confusion.write(found, LABELS, tmp_path / "c.csv") == [tmp_path / "c.csv"]


# The command


@pytest.fixture
def servicer() -> Servicer:
    return Servicer()


@pytest.fixture
def target(servicer: Servicer) -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(4))
    vision_pb2_grpc.add_VisionServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Six pictures, of which p4 and p5 do not look like what they are; and a text."""
    rows = [("dark", 0), ("gray", 1), ("bright", 2), ("dark", 0), ("dark", 1), ("bright", 0)]
    folder = eval_sets.imagenet(tmp_path / "set", rows)
    (folder / "val" / "dark" / "notes.txt").write_text("a text")
    return folder


def test_a_classification_of_own_data(target: str, servicer: Servicer, pictures: Path, tmp_path: Path) -> None:
    out, drawn = tmp_path / "out" / "report.json", tmp_path / "worst"
    options = ("--server", target, "--out", out, "--worst", 3, drawn)
    result = invoke("classify", pictures, *options)
    assert result.exit_code == 0, result.output
    assert "1 files skipped: 1 not a picture" in result.stderr
    assert "val/dark/notes.txt: not a picture" in result.stderr
    content = json.loads(out.read_text())
    assert content["skipped"]["files"] == [{"file": "val/dark/notes.txt", "reason": "not a picture"}]
    assert content["per_class"] == {"dark": pytest.approx(200 / 3), "gray": 100.0, "bright": 50.0}
    table = rows_of(tmp_path / "out" / "report.confusion.csv")
    assert table[1:] == [["dark", "2", "1", "0"], ["gray", "0", "1", "0"], ["bright", "1", "0", "1"]]
    # p4 is gray, then bright, then dark in the answer (truth at 0.1); p5 is dark, gray, bright (truth at 0.1).
    assert sorted(row["picture"] for row in content["worst"]) == ["val/bright/p5.JPEG", "val/dark/p4.JPEG"]
    assert sorted(path.name for path in drawn.iterdir()) == [
        "001-val_bright_p5.JPEG.png",
        "002-val_dark_p4.JPEG.png",
    ]
    with Image.open(drawn / "001-val_bright_p5.JPEG.png") as picture:
        assert picture.width > 2 * 320
    assert servicer.calls == 6 + 2


def test_the_report_as_json(target: str, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    result = invoke("classify", pictures, "--server", target, "--out", out, "--json")
    [line] = result.stdout.splitlines()
    assert json.loads(line) == json.loads(out.read_text())


def test_a_published_score_stands_beside_its_own_data_only(
    target: str, servicer: Servicer, pictures: Path, tmp_path: Path
) -> None:
    servicer.weights = vision_pb2.WEIGHTS_STATE_OFFICIAL
    out = tmp_path / "report.json"
    result = invoke("classify", pictures, "--server", target, "--out", out)
    assert "69.00" not in result.stdout
    assert "the published scores are for other data, and are not shown" in result.stdout
    assert json.loads(out.read_text())["published"] == {}
    servicer.labels = (*LABELS, *(f"class {index}" for index in range(3, 1000)))
    for index, name in enumerate(LABELS):
        (pictures / "val" / name).rename(pictures / "val" / f"n0000000{index}")
    synsets = "".join(f"n{index:08} words\n" for index in range(1000))
    (pictures / "LOC_synset_mapping.txt").write_text(synsets)
    result = invoke("classify", pictures, "--server", target, "--out", out)
    assert json.loads(out.read_text())["published"] == {"top1": 69.0}
    assert "69.00" in result.stdout


def test_a_picture_that_cannot_be_drawn_is_said(
    target: str, servicer: Servicer, pictures: Path, tmp_path: Path
) -> None:
    servicer.refuse = lambda call: errors.ImageCorrupt("no more") if call > 6 else None
    result = invoke(
        "classify", pictures, "--server", target, "--out", tmp_path / "r.json", "--worst", 1, tmp_path / "w"
    )
    assert result.exit_code == 0, result.output
    assert "not drawn: val/bright/p5.JPEG: INVALID_ARGUMENT IMAGE_CORRUPT: no more" in result.stderr
    [worst] = json.loads((tmp_path / "r.json").read_text())["worst"]
    assert worst["not_drawn"].endswith("no more")


def test_an_interrupted_drawing_does_not_lose_the_answers(
    target: str, servicer: Servicer, pictures: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("no folder")
    options = ("--server", target, "--out", tmp_path / "r.json", "--worst", 2)
    result = invoke("classify", pictures, *options, tmp_path / "file")
    assert result.exit_code == 1
    assert "cannot write" in result.stderr
    assert not (tmp_path / "r.json").exists()
    servicer.calls = 0
    result = invoke("classify", pictures, *options, tmp_path / "folder")
    assert result.exit_code == 0, result.output
    assert servicer.calls == 2  # the two that are drawn
    assert json.loads((tmp_path / "r.json").read_text())["run"]["resumed"] == 6


@pytest.mark.parametrize("options", [("--worst", 0, "DIR"), ("--worst", 3), ("--ignore-index", 256)])
def test_wrong_usage(pictures: Path, options: tuple[object, ...]) -> None:
    assert invoke("classify", pictures, *options).exit_code == 2


# Through a whole gateway, against other programs


async def test_own_detections_are_scored_as_pycocotools_does(tmp_path: Path) -> None:
    looks = [0, 1, 2, 0, 1]
    moved = [TOY_BOX[0] + 3, TOY_BOX[1], 30.0, 12.0]
    truth = [(0, TOY_BOX), (0, TOY_BOX), (2, moved), (0, moved), (1, [0.0, 0.0, 9.0, 9.0])]
    folder = own_sets.roboflow(tmp_path / "coco", [(look, [row]) for look, row in zip(looks, truth, strict=True)])
    lines = [
        f"{label} {(x + w / 2) / 64!r} {(y + h / 2) / 48!r} {w / 64!r} {h / 48!r}\n" for label, (x, y, w, h) in truth
    ]
    other = own_sets.yolo(tmp_path / "yolo", list(zip(looks, lines, strict=True)))
    for each in (folder, other):
        drawn = tmp_path / f"worst-{each.name}"
        result = await through_gateway(Task.DETECT, each, tmp_path / f"{each.name}.json", "--worst", 2, drawn)
        assert result.exit_code == 0, result.output
        assert len(list(drawn.iterdir())) == 2
    found = json.loads((tmp_path / "coco.json").read_text())
    same = json.loads((tmp_path / "yolo.json").read_text())
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        rows = [
            {"id": 1 + i, "image_id": i, "category_id": label, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
            for i, (label, box) in enumerate(truth)
        ]
        categories = [{"id": label, "name": name} for label, name in enumerate(LABELS)]
        coco.dataset = {"info": {}, "images": [{"id": i} for i in range(5)], "annotations": rows}
        coco.dataset["categories"] = categories
        coco.createIndex()
        answers = [{"image_id": i, "category_id": look, "bbox": TOY_BOX, "score": 1.0} for i, look in enumerate(looks)]
        reference = COCOeval(coco, coco.loadRes(answers), "bbox")
        reference.evaluate()
        reference.accumulate()
        reference.summarize()
    assert 1 < found["scores"]["map"] < 99
    for content in (found, same):
        assert content["scores"]["map"] == pytest.approx(100 * reference.stats[0])
        assert content["scores"]["map75"] == pytest.approx(100 * reference.stats[2])
        assert content["truth_per_class"] == {"dark": 3, "gray": 1, "bright": 1}
    assert rows_of(tmp_path / "coco.confusion.csv") == rows_of(tmp_path / "yolo.confusion.csv")


async def test_own_masks_are_scored_as_numpy_does(tmp_path: Path) -> None:
    random = np.random.default_rng(5)
    maps = [random.choice([0, 1, 2, 255], (48, 64)).astype(np.uint8) for _ in range(3)]
    folder = own_sets.masks(tmp_path / "set", list(zip((0, 1, 2), maps, strict=True)))
    out = tmp_path / "report.json"
    result = await through_gateway(Task.SEGMENT, folder, out, "--worst", 1, tmp_path / "worst")
    assert result.exit_code == 0, result.output
    content = json.loads(out.read_text())
    truth, answer = np.stack(maps), np.stack([np.full((48, 64), look, np.uint8) for look in (0, 1, 2)])
    known = truth != 255
    for label, name in enumerate(LABELS):
        hits = (known & (truth == label) & (answer == label)).sum()
        union = (known & ((truth == label) | (answer == label))).sum()
        assert content["per_class"][name] == pytest.approx(100 * hits / union)
        assert content["truth_per_class"][name] == (truth == label).sum()
    table = np.array([row[1:] for row in rows_of(tmp_path / "report.confusion.csv")[1:]], int)
    assert table.tolist() == [
        [int((known & (truth == row) & (answer == column)).sum()) for column in range(3)] for row in range(3)
    ]
    assert content["scores"]["miou"] == pytest.approx(np.mean(list(content["per_class"].values())))
    assert len(list((tmp_path / "worst").iterdir())) == 1


async def test_every_format_is_answered_by_a_gateway(tmp_path: Path) -> None:
    endings = ["jpg", "png", "webp", "bmp", "gif", "tif", "tiff", "jfif", "bin"]
    for label, name in enumerate(LABELS):
        for ending in endings:
            own_sets.picture(tmp_path / "set" / name / f"p.{ending}", label)
    result = await through_gateway(Task.CLASSIFY, tmp_path / "set", tmp_path / "report.json")
    assert result.exit_code == 0, result.output
    content = json.loads((tmp_path / "report.json").read_text())
    assert (content["dataset"]["evaluated"], content["scores"]["top1"]) == (27, 100.0)
