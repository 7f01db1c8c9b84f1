"""Data sets of one's own: class folders, COCO exports, YOLO labels and masks, with the labels of one's own model."""

import json
from pathlib import Path
from typing import Any

import eval_sets
import numpy as np
import own_sets
import pytest
from PIL import Image

from mobilevision.eval import datasets, files
from mobilevision.eval.datasets import Layout, Options
from mobilevision.eval.errors import PackageMissing, UnusableDataset, UnusableModel
from mobilevision.eval.masks import read_truth
from mobilevision.tasks import Task
from service.preprocess.formats import SUPPORTED_FORMATS, format_of

LABELS = eval_sets.LABELS
CLASSIFY, DETECT, SEGMENT = Task.CLASSIFY, Task.DETECT, Task.SEGMENT


def read(folder: Path, task: Task, labels: tuple[str, ...] = LABELS, **options: Any) -> datasets.Dataset:
    return datasets.read(folder, task=task, labels=labels, options=Options(**options))


# Class folders


@pytest.mark.parametrize("top", ["", "val", "valid", "validation", "test"])
def test_class_folders_with_and_without_a_split(tmp_path: Path, top: str) -> None:
    for label, name in enumerate(LABELS):
        own_sets.picture(tmp_path / top / name / "deeper" / "p.png", label)
    if top:
        own_sets.picture(tmp_path / "train" / "dark" / "p.png", 0)
    dataset = read(tmp_path, CLASSIFY)
    assert dataset.layout is Layout.IMAGENET
    assert {Path(s.key).parts[-3]: s.label for s in dataset.samples} == {"dark": 0, "gray": 1, "bright": 2}
    assert not dataset.public


def test_training_pictures_alone_are_not_measured_by_accident(tmp_path: Path) -> None:
    own_sets.picture(tmp_path / "train" / "dark" / "p.png", 0)
    with pytest.raises(UnusableDataset, match="to measure on the training pictures, name"):
        read(tmp_path, CLASSIFY)
    assert len(read(tmp_path / "train", CLASSIFY).samples) == 1


def test_every_format_that_the_server_reads_takes_part_and_other_files_are_listed(tmp_path: Path) -> None:
    endings = [".jpg", ".JPG", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff", ".bin"]
    paths = [own_sets.picture(tmp_path / "val" / "dark" / f"p{i}{ending}", 0) for i, ending in enumerate(endings)]
    (tmp_path / "val" / "dark" / "notes.txt").write_text("a text")
    (tmp_path / "val" / "dark" / ".DS_Store").write_text("x")
    own_sets.picture(tmp_path / "val" / "lost.png", 0)
    (tmp_path / "val" / "gray").mkdir()
    dataset = read(tmp_path, CLASSIFY)
    assert {sample.image for sample in dataset.samples} == set(paths)
    assert {format_of(path.read_bytes()) for path in paths} == set(SUPPORTED_FORMATS)
    assert {(skipped.file, skipped.why) for skipped in dataset.skipped} == {
        ("val/dark/notes.txt", "not a picture"),
        ("val/dark/.DS_Store", "hidden file"),
        ("val/lost.png", "in no class folder"),
    }
    assert dataset.notes == ("labels without a picture: gray, bright",)


def test_names_of_folders_that_are_no_labels_are_listed_with_the_nearest(tmp_path: Path) -> None:
    for name in ("dark", "grey", "Bright"):
        own_sets.picture(tmp_path / "val" / name / "p.png", 0)
    with pytest.raises(UnusableModel, match=r"no label for: grey \(did you mean gray\?\)$"):
        read(tmp_path, CLASSIFY)
    (tmp_path / "val" / "grey").rename(tmp_path / "val" / "xyz")
    with pytest.raises(UnusableModel, match="no label for: xyz; the model's 3 labels are dark, gray, bright"):
        read(tmp_path, CLASSIFY)


def test_own_class_names_never_become_labels_by_their_order(tmp_path: Path) -> None:
    # As many folders as labels, in another language: the order would be wrong for all of them.
    for name in ("dunkel", "grau", "hell"):
        own_sets.picture(tmp_path / "val" / name / "p.png", 0)
    with pytest.raises(UnusableModel, match=r"no label for: dunkel, grau \(did you mean gray\?\), hell"):
        read(tmp_path, CLASSIFY)


def test_case_and_underscores_do_not_matter_where_one_label_is_meant(tmp_path: Path) -> None:
    own_sets.picture(tmp_path / "val" / "Golden_Retriever" / "p.png", 0)
    assert read(tmp_path, CLASSIFY, ("cat", "golden retriever")).samples[0].label == 1
    with pytest.raises(UnusableModel, match="Golden_Retriever"):
        read(tmp_path, CLASSIFY, ("golden-retriever", "golden retriever"))
    own_sets.picture(tmp_path / "val" / "golden-retriever" / "p.png", 0)
    with pytest.raises(UnusableModel, match="are one label of the model"):
        read(tmp_path, CLASSIFY, ("cat", "golden retriever"))


def test_a_name_of_two_labels_is_refused(tmp_path: Path) -> None:
    own_sets.picture(tmp_path / "val" / "crane" / "p.png", 0)
    with pytest.raises(UnusableModel, match=r"crane \(the model has 2 labels of this name\)"):
        read(tmp_path, CLASSIFY, ("crane", "cat", "crane"))


def test_published_scores_belong_to_imagenet_by_wordnet_ids(tmp_path: Path) -> None:
    own_sets.picture(tmp_path / "val" / "n01440764" / "p.png", 0)
    ids = ["n01440764", *(f"n{number:08}" for number in range(20_000_000, 20_000_999))]
    (tmp_path / "LOC_synset_mapping.txt").write_text("".join(f"{name} words\n" for name in ids))
    assert read(tmp_path, CLASSIFY, tuple(f"class {i}" for i in range(1000))).public


# COCO


def test_the_coco_export_of_roboflow(tmp_path: Path) -> None:
    folder = own_sets.roboflow(tmp_path, [(0, [(0, [1, 2, 30, 20])]), (1, [(1, [0, 0, 9, 9])])])
    own_sets.picture(folder / "valid" / "extra.jpg", 0)
    dataset = read(folder, DETECT)
    assert dataset.layout is Layout.COCO
    assert dataset.categories == {0: 7, 1: 14, 2: 21}
    assert "categories without a box, left out: shades" in dataset.notes
    assert dataset.coco is not None
    assert [row["id"] for row in dataset.coco["annotations"]] == [1, 2]  # pycocotools takes 0 for no match
    assert [(s.file, s.why) for s in dataset.skipped] == [("valid/extra.jpg", "not in the annotations")]
    assert read(folder / "valid", DETECT).samples[0].image.parent == folder / "valid"
    assert not dataset.public


@pytest.mark.parametrize(
    ("file", "pictures"),
    [
        ("annotations/instances_default.json", "images/default"),
        ("annotations/val.json", "val"),
        ("annotations/own.json", "images"),
        ("annotations.json", "images"),
        ("labels.json", "data"),
        ("_annotations.coco.json", ""),
    ],
)
def test_coco_with_own_categories(tmp_path: Path, file: str, pictures: str) -> None:
    own_sets.picture(tmp_path / pictures / "p.jpg", 0)
    content = eval_sets.coco_json([[(2, [0, 0, 5, 5])]], names=["p.jpg"])
    for row in content["annotations"]:
        del row["area"], row["iscrowd"], row["id"]  # some programs leave these out
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(json.dumps(content))
    dataset = read(tmp_path, DETECT, ("Bright", "other"))
    assert dataset.categories == {0: 21}
    assert dataset.samples[0].image == tmp_path / pictures / "p.jpg"
    assert dataset.boxes_of(dataset.samples[0])[0]["area"] == 25
    assert "labels without a box: other" in dataset.notes


def test_several_files_of_annotations(tmp_path: Path) -> None:
    folder = eval_sets.coco(tmp_path, [(0, [])])
    (folder / "annotations" / "instances_train2017.json").write_text("{}")
    assert read(folder, DETECT).layout is Layout.COCO
    (folder / "annotations" / "instances_val2017.json").rename(folder / "annotations" / "instances_other.json")
    with pytest.raises(UnusableDataset, match=r"2 files that may be meant: instances_other\.json, instances_train2017"):
        read(folder, DETECT)


def test_coco_categories_that_are_no_labels(tmp_path: Path) -> None:
    folder = own_sets.roboflow(tmp_path, [(0, [(1, [1, 2, 30, 20])])])
    with pytest.raises(UnusableModel, match=r"no label for: gray \(did you mean grey\?\)$"):
        read(folder, DETECT, ("dark", "grey"))


# YOLO


@pytest.mark.parametrize("split", ["images/val", "valid/images", "images"])
def test_yolo_boxes_are_those_of_the_upright_picture(tmp_path: Path, split: str) -> None:
    text = "0 0.5 0.25 0.5 0.5\n0 0.5 0.25 0.5 0.5\n2 0.25 0.5 0.75 0.5 0.75 1.0 0.25 1.0\n"
    folder = own_sets.yolo(tmp_path, [(0, text), (1, "")], split=split)
    turned = folder / split / "p0.jpg"
    exif = Image.Exif()
    exif[274] = 6  # a picture of 64 x 48 that is shown as 48 x 64
    Image.open(turned).save(turned, exif=exif)
    dataset = read(folder, DETECT)
    assert dataset.layout is Layout.YOLO
    assert dataset.categories == {0: 1, 2: 3}
    boxes = {sample.image.name: [row["bbox"] for row in dataset.boxes_of(sample)] for sample in dataset.samples}
    assert boxes == {"p0.jpg": [[12.0, 0.0, 24.0, 32.0], [12.0, 32.0, 24.0, 32.0]], "p1.jpg": []}
    assert "1 pictures have no file of labels: nothing is to be found in them" in dataset.notes


def test_yolo_with_a_list_of_names_only(tmp_path: Path) -> None:
    folder = own_sets.yolo(tmp_path, [(0, "1 0.5 0.5 0.5 0.5\n")])
    (folder / "data.yaml").unlink()
    with pytest.raises(UnusableDataset, match=r"data\.yaml or classes\.txt is needed"):
        read(folder, DETECT)
    (folder / "classes.txt").write_text("\ufeffdark\r\ngray\r\n")
    (folder / "labels" / "val" / "alone.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    dataset = read(folder, DETECT)
    assert dataset.categories == {1: 2}
    assert [(s.file, s.why) for s in dataset.skipped] == [("labels/val/alone.txt", "labels without a picture")]


@pytest.mark.parametrize("val", ["../valid/images", "./valid/images", "[valid/images]", "list.txt"])
def test_yolo_finds_what_val_names(tmp_path: Path, val: str) -> None:
    folder = own_sets.yolo(tmp_path, [(0, "0 0.5 0.5 0.5 0.5\n")], split="valid/images")
    (folder / "list.txt").write_text("./valid/images/p0.jpg\n")
    (folder / "data.yaml").write_text(f"val: {val}\nnc: 1\nnames: [dark]\n")
    assert read(folder, DETECT).samples[0].key == "valid/images/p0.jpg"


def test_yolo_needs_pyyaml_for_data_yaml_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = own_sets.yolo(tmp_path, [(0, "0 0.5 0.5 0.5 0.5\n")])
    monkeypatch.setitem(__import__("sys").modules, "yaml", None)
    with pytest.raises(PackageMissing, match=r"mobilevision\[eval\].*classes\.txt"):
        read(folder, DETECT)
    (folder / "data.yaml").rename(folder / "unused.yaml")
    (folder / "classes.txt").write_text("dark\n")
    assert read(folder, DETECT).categories == {0: 1}


# Masks


@pytest.mark.parametrize("of", [("images", "masks"), ("images/val", "masks/val"), ("img_dir/val", "ann_dir/val")])
def test_masks_of_own_classes(tmp_path: Path, of: tuple[str, str]) -> None:
    folder = own_sets.masks(tmp_path, [(0, own_sets.HALF), (1, 2), (1, [[255]])], of=of)
    own_sets.picture(folder / of[0] / "bare.png", 0)
    eval_sets.mask(folder / of[1] / "alone.png", 0)
    dataset = read(folder, SEGMENT)
    assert dataset.layout is Layout.MASKS
    assert len(dataset.samples) == 3
    assert {s.why for s in dataset.skipped} == {"no mask of this name", "mask without a picture"}
    assert dataset.notes == ("masks: value 0 is dark, 255 is unknown",)


def truths(dataset: datasets.Dataset) -> dict[str, list[int]]:
    assert dataset.mask_values is not None
    return {s.image.stem: np.unique(read_truth(s, dataset.mask_values)).tolist() for s in dataset.samples}


def test_the_values_of_masks_can_be_said(tmp_path: Path) -> None:
    own_sets.masks(tmp_path, [(0, own_sets.HALF + 1), (0, [[0, 3] * 32])])
    with pytest.raises(
        UnusableModel, match=r"value 3, which is no class here; known are 0 to 2, 255 \(the model has 3"
    ):
        read(tmp_path, SEGMENT)
    assert truths(read(tmp_path, SEGMENT, first_class=1)) == {"p0": [0, 1], "p1": [2, 255]}
    assert truths(read(tmp_path, SEGMENT, ignore_index=3)) == {"p0": [1, 2], "p1": [0, 255]}
    assert read(tmp_path, SEGMENT, first_class=1).fingerprint != read(tmp_path, SEGMENT, ignore_index=3).fingerprint


def test_voc_and_ade20k_with_own_labels(tmp_path: Path) -> None:
    voc = read(eval_sets.voc(tmp_path / "voc", [(0, own_sets.HALF), (0, 2)]), SEGMENT)
    assert (voc.layout, voc.public, truths(voc)) == (Layout.VOC, False, {"p0": [0, 1], "p1": [2]})
    ade = read(eval_sets.ade20k(tmp_path / "ade", [(0, own_sets.HALF), (0, 3)]), SEGMENT)
    assert (ade.layout, ade.public, truths(ade)) == (Layout.ADE20K, False, {"p0": [0, 255], "p1": [2]})
    with pytest.raises(UnusableModel, match="value 3, which is no class"):
        read(tmp_path / "ade", SEGMENT, LABELS[:2])


def test_names_of_classes_in_the_folder_decide(tmp_path: Path) -> None:
    own_sets.masks(tmp_path, [(0, own_sets.HALF)])
    (tmp_path / "classes.txt").write_text("bright\ndark\n")
    assert truths(read(tmp_path, SEGMENT)) == {"p0": [0, 2]}
    (tmp_path / "classes.txt").write_text("brigth\ndark\n")
    with pytest.raises(UnusableModel, match=r"brigth \(did you mean bright\?\)"):
        read(tmp_path, SEGMENT)


def test_masks_with_a_palette_are_read_by_index_and_colours_by_labelmap(tmp_path: Path) -> None:
    plain = Image.fromarray(np.broadcast_to(own_sets.HALF, (48, 64)).copy())
    palette = plain.convert("P")
    palette.putpalette([200, 0, 0, 0, 0, 200] + [0] * 762)
    own_sets.masks(tmp_path, [(0, palette)])
    assert truths(read(tmp_path, SEGMENT)) == {"p0": [0, 1]}
    own_sets.masks(tmp_path, [(0, palette), (0, palette.convert("RGB"))])
    (tmp_path / "masks" / "p0.png").unlink()
    with pytest.raises(UnusableDataset, match=r"p1\.png is a picture of mode RGB.*labelmap\.txt"):
        read(tmp_path, SEGMENT)
    own_sets.masks(tmp_path, [(0, palette)])
    (tmp_path / "labelmap.txt").write_text("# label:color_rgb:parts:actions\ngray:0,0,200::\nbright:200,0,0::\n")
    assert truths(read(tmp_path, SEGMENT)) == {"p0": [1, 2], "p1": [1, 2]}
    (tmp_path / "labelmap.txt").write_text("gray:0,0,200::\n")
    with pytest.raises(UnusableModel, match=r"the colour \(200, 0, 0\), which labelmap\.txt does not list"):
        read(tmp_path, SEGMENT)


def test_masks_of_another_size_and_of_black_and_white(tmp_path: Path) -> None:
    own_sets.masks(tmp_path, [(0, Image.new("L", (32, 24)))])
    with pytest.raises(UnusableDataset, match=r"p0\.png is 32 x 24 pixels, its picture 64 x 48"):
        read(tmp_path, SEGMENT)
    own_sets.masks(tmp_path, [(0, own_sets.HALF * 255)])
    with pytest.raises(UnusableDataset, match="the values 0 and 255 only"):
        read(tmp_path, SEGMENT)


def test_no_folder_is_left_out_of_the_messages(tmp_path: Path) -> None:
    for task in Task:
        with pytest.raises(UnusableDataset, match="none of the layouts imagenet, coco, yolo, voc, ade20k, masks, demo"):
            read(tmp_path, task)
    assert files.is_picture(own_sets.picture(tmp_path / "p.bin", 0))
