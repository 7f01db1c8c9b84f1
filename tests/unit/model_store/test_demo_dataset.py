"""The demo data set: what it says of a picture is what is in it."""

import json
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from model_store.cli.commands import models_app
from model_store.demo import dataset, files
from model_store.demo.dataset import LABELS, MIN_VISIBLE, Scene
from model_store.demo.shapes import OUTLINES
from model_store.demo_training import pool

SEED = 5


@cache
def scene(index: int) -> Scene:
    return dataset.draw(seed=SEED, split="train", index=index, kind="scene")


def scenes(count: int) -> list[Scene]:
    return [scene(index) for index in range(count)]


def test_a_picture_depends_on_its_number_alone() -> None:
    first = dataset.draw(seed=SEED, split="train", index=3, kind="scene")
    dataset.draw(seed=SEED, split="train", index=4, kind="scene")
    again = dataset.draw(seed=SEED, split="train", index=3, kind="scene")
    assert first.jpeg == again.jpeg
    assert first.shapes == again.shapes
    assert np.array_equal(first.instances, again.instances)


@pytest.mark.parametrize(
    ("seed", "split", "index", "kind"),
    [(6, "train", 3, "scene"), (5, "held_out", 3, "scene"), (5, "train", 4, "scene"), (5, "train", 3, "single")],
)
def test_anything_else_is_another_picture(seed: int, split: str, index: int, kind: str) -> None:
    other = dataset.draw(seed=seed, split=split, index=index, kind=kind)  # type: ignore[arg-type]
    assert other.jpeg != dataset.draw(seed=5, split="train", index=3, kind="scene").jpeg


def test_boxes_and_classes_are_exactly_those_of_the_visible_pixels() -> None:
    for drawn in scenes(25):
        assert drawn.picture().size == drawn.classes.shape[::-1]
        for number, shape in enumerate(drawn.shapes, start=1):
            ys, xs = np.nonzero(drawn.instances == number)
            assert shape.box == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
            assert set(drawn.classes[ys, xs].tolist()) == {shape.label + 1}
        assert not drawn.classes[drawn.instances == 0].any()
        assert drawn.instances.max() == len(drawn.shapes)


def test_what_lies_in_front_is_cut_out_of_what_lies_behind() -> None:
    every = [shape for drawn in scenes(60) for shape in drawn.shapes]
    assert all(MIN_VISIBLE <= shape.visible <= 1.0 for shape in every)
    assert sum(shape.visible < 0.98 for shape in every) > 10, "overlaps are part of the data set"
    assert all(drawn.shapes[-1].visible == 1.0 for drawn in scenes(60)), "nothing is drawn over the last one"


def test_the_colour_of_a_mask_pixel_is_the_shapes() -> None:
    # A shape's colour keeps its distance from the ground's, so the mask has to part the picture in two.
    single = dataset.draw(seed=SEED, split="train", index=2, kind="single")
    pixels = np.asarray(single.picture(), np.float64)
    inside, outside = pixels[single.instances == 1].mean(axis=0), pixels[single.instances == 0].mean(axis=0)
    assert np.linalg.norm(inside - outside) > 40


def test_single_pictures_are_balanced_and_hold_one_shape() -> None:
    singles = [dataset.draw(seed=SEED, split="train", index=index, kind="single") for index in range(24)]
    assert Counter(single.label for single in singles) == dict.fromkeys(range(len(LABELS)), 3)
    assert all(len(single.shapes) == 1 for single in singles)


def test_scenes_show_every_label_about_equally_often() -> None:
    counts = Counter(shape.label for drawn in scenes(100) for shape in drawn.shapes)
    expected = sum(counts.values()) / len(LABELS)
    assert all(0.5 * expected < counts[label] < 1.5 * expected for label in range(len(LABELS)))


@pytest.mark.parametrize("label", LABELS)
def test_every_label_has_an_outline_within_the_unit_circle_that_equals_its_mirror_image(label: str) -> None:
    for outline in OUTLINES[label]:
        assert np.hypot(*outline.T).max() <= 1 + 1e-9
        mirrored = {(round(x, 6) + 0.0, round(-y, 6) + 0.0) for x, y in outline}
        assert mirrored == {(round(x, 6) + 0.0, round(y, 6) + 0.0) for x, y in outline}


def test_a_turned_picture_and_its_turned_boxes_still_fit(tmp_path: Path) -> None:
    drawn = pool.load(folder=tmp_path, seed=SEED, kind="scene", pictures=6, side_px=64)
    seen = 0
    for step in range(6):
        batch = pool.batch(drawn, seed=1, step=step, size=3, side_px=64)
        for classes, boxes, labels in zip(batch.classes, batch.boxes, batch.box_labels, strict=True):
            for box, label in zip(boxes, labels, strict=True):
                ys, xs = (classes == label + 1).nonzero().unbind(1)
                x0, y0, x1, y1 = (box * 64).tolist()
                inside = (xs >= x0 - 1) & (xs <= x1) & (ys >= y0 - 1) & (ys <= y1)
                assert inside.any()
                if int((labels == label).sum()) == 1:  # then the box is the extent of all pixels of the class
                    assert inside.all()
                    assert xs.min() - x0 < 2
                    assert y1 - ys.max() < 3
                    seen += 1
    assert seen > 10


def test_every_picture_is_shown_once_per_round(tmp_path: Path) -> None:
    drawn = pool.load(folder=tmp_path, seed=SEED, kind="single", pictures=8, side_px=32)
    again = pool.load(folder=tmp_path, seed=SEED, kind="single", pictures=8, side_px=32)
    assert np.array_equal(drawn.pixels, again.pixels)
    shown = [pool.batch(drawn, seed=1, step=step, size=4, side_px=32) for step in range(2)]
    assert sorted(label for batch in shown for label in batch.labels.tolist()) == list(range(8))


def test_files_say_what_the_scenes_say(tmp_path: Path) -> None:
    files.write(tmp_path, pictures=9, seed=SEED)
    truth = json.loads((tmp_path / "detect.json").read_text())
    assert len(truth["images"]) == 9
    assert [row["name"] for row in truth["categories"]] == list(LABELS)
    assert len({row["id"] for row in truth["annotations"]}) == len(truth["annotations"])
    for image in truth["images"]:
        drawn = dataset.draw(seed=SEED, split="held_out", index=image["id"], kind="scene")
        assert (tmp_path / "images" / image["file_name"]).read_bytes() == drawn.jpeg
        with Image.open(tmp_path / "masks" / f"{Path(image['file_name']).stem}.png") as mask:
            assert mask.mode == "P"
            assert mask.size == (image["width"], image["height"])
            assert mask.getpalette()[3:6] == [128, 0, 0]
            assert np.array_equal(np.asarray(mask), drawn.classes)
        mine = [row for row in truth["annotations"] if row["image_id"] == image["id"]]
        for row, shape in zip(mine, drawn.shapes, strict=True):
            x, y, width, height = row["bbox"]
            assert (x, y, x + width, y + height) == shape.box
            assert row["category_id"] == shape.label + 1
    singles = json.loads((tmp_path / "classify.json").read_text())
    assert len(singles["images"]) == 9
    for row in singles["images"]:
        assert (tmp_path / row["file"]).is_file()
        assert row["file"].split("/")[1] == LABELS[row["label"]]


def test_the_command_writes_the_set(tmp_path: Path) -> None:
    written = CliRunner().invoke(models_app(), ["demo-data", "--out", str(tmp_path / "set"), "--count", "2"])
    assert written.exit_code == 0, written.output
    assert len(list((tmp_path / "set" / "images").glob("*.jpg"))) == 2
    (tmp_path / "file").write_text("in the way")
    refused = CliRunner().invoke(models_app(), ["demo-data", "--out", str(tmp_path / "file"), "--count", "1"])
    assert refused.exit_code == 1
