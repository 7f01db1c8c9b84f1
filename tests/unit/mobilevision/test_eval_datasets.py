"""Every layout is read as it is published, and unusable folders are refused."""

import json
from pathlib import Path

import eval_sets
import pytest

from mobilevision.eval import datasets
from mobilevision.eval.datasets import Layout
from mobilevision.eval.errors import UnusableDataset, UnusableModel
from mobilevision.tasks import Task

LABELS = eval_sets.LABELS
VOC21 = tuple(f"class {i}" for i in range(21))
ADE150 = tuple(f"class {i}" for i in range(150))


def labels_of(dataset: datasets.Dataset) -> dict[str, int]:
    return {sample.key: sample.label for sample in dataset.samples}


def test_imagenet_folders_in_ascending_order_are_the_labels(tmp_path: Path) -> None:
    folder = eval_sets.imagenet(tmp_path, [("n02", 1), ("n01", 0), ("n09", 2), ("n01", 0)])
    dataset = datasets.read(folder, task=Task.CLASSIFY, labels=LABELS)
    assert dataset.layout is Layout.IMAGENET
    assert labels_of(dataset) == {
        "val/n02/p0.JPEG": 1,
        "val/n01/p1.JPEG": 0,
        "val/n09/p2.JPEG": 2,
        "val/n01/p3.JPEG": 0,
    }


def test_imagenet_folders_named_like_labels(tmp_path: Path) -> None:
    folder = eval_sets.imagenet(tmp_path, [("bright", 2), ("dark", 0)])
    assert labels_of(datasets.read(folder, task=Task.CLASSIFY, labels=LABELS)) == {
        "val/bright/p0.JPEG": 2,
        "val/dark/p1.JPEG": 0,
    }


def test_a_part_of_imagenet_needs_the_list_of_all_classes(tmp_path: Path) -> None:
    folder = eval_sets.imagenet(tmp_path, [("n09", 2)])
    with pytest.raises(UnusableModel, match=r"1 classes, the model knows 3.*LOC_synset_mapping"):
        datasets.read(folder, task=Task.CLASSIFY, labels=LABELS)
    (folder / "LOC_synset_mapping.txt").write_text("n01 dark, darkness\nn02 gray\nn09 bright\n")
    assert labels_of(datasets.read(folder, task=Task.CLASSIFY, labels=LABELS)) == {"val/n09/p0.JPEG": 2}
    (folder / "LOC_synset_mapping.txt").write_text("n01 dark\nn02 gray\nn03 bright\n")
    with pytest.raises(UnusableDataset, match="n09"):
        datasets.read(folder, task=Task.CLASSIFY, labels=LABELS)
    (folder / "LOC_synset_mapping.txt").write_text("n01 dark\n")
    with pytest.raises(UnusableModel, match="1 classes, the model knows 3"):
        datasets.read(folder, task=Task.CLASSIFY, labels=LABELS)


@pytest.mark.parametrize("names", [("n01", "n02", "n09"), ("0", "1", "2"), ("dark", "gray", "bright")])
def test_imagenet_with_a_list_of_pictures(tmp_path: Path, names: tuple[str, ...]) -> None:
    for index in range(3):
        eval_sets.picture(tmp_path / "val" / f"p{index}.JPEG", index)
    (tmp_path / "val_map.txt").write_text("".join(f"p{i}.JPEG {name}\n" for i, name in enumerate(names)))
    assert labels_of(datasets.read(tmp_path, task=Task.CLASSIFY, labels=LABELS)) == {
        f"val/p{index}.JPEG": index for index in range(3)
    }


def test_coco_categories_become_labels_by_name(tmp_path: Path) -> None:
    folder = eval_sets.coco(tmp_path, [(0, [(1, [0, 0, 5, 5])]), (2, [])])
    dataset = datasets.read(folder, task=Task.DETECT, labels=("bright", "extra", "dark", "gray"))
    assert dataset.layout is Layout.COCO
    assert dataset.categories == {0: 21, 2: 7, 3: 14}
    assert {sample.image_id for sample in dataset.samples} == {10, 11}
    with pytest.raises(UnusableModel, match=r"no label for: gray; the model's 1 labels are dark"):
        datasets.read(folder, task=Task.DETECT, labels=("dark",))


@pytest.mark.parametrize("below", ["", "VOC2012", "VOCdevkit/VOC2012"])
def test_voc(tmp_path: Path, below: str) -> None:
    dataset = datasets.read(eval_sets.voc(tmp_path, [(0, 0), (1, 1)], below=below), task=Task.SEGMENT, labels=VOC21)
    assert dataset.layout is Layout.VOC
    assert dataset.public
    assert dataset.mask_values.of_value == {**{i: i for i in range(21)}, 255: 255}
    assert all(sample.mask and sample.mask.stem == sample.image.stem for sample in dataset.samples)
    assert not datasets.read(tmp_path, task=Task.SEGMENT, labels=LABELS).public


def test_ade20k(tmp_path: Path) -> None:
    dataset = datasets.read(eval_sets.ade20k(tmp_path, [(0, 0), (1, 1)]), task=Task.SEGMENT, labels=ADE150)
    assert dataset.layout is Layout.ADE20K
    assert dataset.public
    assert dataset.mask_values.of_value == {0: 255, **{i + 1: i for i in range(150)}, 255: 255}
    assert len(dataset.samples) == 2


@pytest.fixture
def demo(tmp_path: Path) -> Path:
    """As `mobilevision models demo-data` writes it."""
    for index in range(2):
        eval_sets.picture(tmp_path / "images" / f"shapes_{index}.jpg", index)
        eval_sets.mask(tmp_path / "masks" / f"shapes_{index}.png", index)
        eval_sets.picture(tmp_path / "classify" / LABELS[index] / f"{index}.jpg", index)
    boxes = eval_sets.coco_json([[(0, [0, 0, 5, 5])], []], names=["shapes_0.jpg", "shapes_1.jpg"])
    (tmp_path / "detect.json").write_text(json.dumps(boxes))
    singles = [{"file": f"classify/{LABELS[index]}/{index}.jpg", "label": index} for index in range(2)]
    (tmp_path / "classify.json").write_text(json.dumps({"labels": LABELS, "images": singles}))
    return tmp_path


def test_demo(demo: Path) -> None:
    classify = datasets.read(demo, task=Task.CLASSIFY, labels=("bright", "dark", "gray"))
    assert classify.layout is Layout.DEMO
    assert labels_of(classify) == {"classify/dark/0.jpg": 1, "classify/gray/1.jpg": 2}
    assert datasets.read(demo, task=Task.DETECT, labels=LABELS).categories == {0: 7, 1: 14, 2: 21}
    segment = datasets.read(demo, task=Task.SEGMENT, labels=("background", *LABELS))
    assert {sample.mask for sample in segment.samples} == {demo / "masks" / f"shapes_{i}.png" for i in range(2)}
    for task, labels in ((Task.CLASSIFY, ("cat",)), (Task.DETECT, ("cat",)), (Task.SEGMENT, ("background", "cat"))):
        with pytest.raises(UnusableModel):
            datasets.read(demo, task=task, labels=labels)


def test_the_demo_set_as_it_is_really_written(tmp_path: Path) -> None:
    files = pytest.importorskip("model_store.demo.files")
    shapes = pytest.importorskip("model_store.demo.dataset").LABELS
    files.write(tmp_path, pictures=2, seed=3)
    for task, labels in ((Task.CLASSIFY, shapes), (Task.DETECT, shapes), (Task.SEGMENT, ("background", *shapes))):
        assert len(datasets.read(tmp_path, task=task, labels=labels).samples) == 2


def test_the_order_mixes_classes_and_does_not_depend_on_the_folder(tmp_path: Path) -> None:
    rows = [(f"n0{i % 3}", i % 3) for i in range(60)]
    first = datasets.read(eval_sets.imagenet(tmp_path / "a", rows), task=Task.CLASSIFY, labels=LABELS)
    second = datasets.read(eval_sets.imagenet(tmp_path / "b", rows), task=Task.CLASSIFY, labels=LABELS)
    assert [s.key for s in first.samples] == [s.key for s in second.samples]
    assert len({sample.label for sample in first.samples[:10]}) == 3
    assert first.fingerprint == second.fingerprint


def test_the_fingerprint_changes_with_pictures_and_truth(tmp_path: Path) -> None:
    folder = eval_sets.coco(tmp_path, [(0, [(1, [0, 0, 5, 5])]), (2, [])])
    prints = {datasets.read(folder, task=Task.DETECT, labels=LABELS).fingerprint}
    annotations = folder / "annotations" / "instances_val2017.json"
    annotations.write_text(annotations.read_text().replace("[0, 0, 5, 5]", "[0, 0, 5, 6]"))
    prints.add(datasets.read(folder, task=Task.DETECT, labels=LABELS).fingerprint)
    (folder / "val2017" / "000000000001.jpg").write_bytes(b"another picture")
    prints.add(datasets.read(folder, task=Task.DETECT, labels=LABELS).fingerprint)
    assert len(prints) == 3


def test_unusable_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnusableDataset, match="no such folder"):
        datasets.read(tmp_path / "nowhere", task=Task.CLASSIFY, labels=LABELS)
    with pytest.raises(UnusableDataset, match="none of the layouts imagenet, coco"):
        datasets.read(tmp_path, task=Task.CLASSIFY, labels=LABELS)
    folder = eval_sets.coco(tmp_path, [(0, []), (1, [])])
    with pytest.raises(UnusableDataset, match="layout coco, which has no truth for classify"):
        datasets.read(folder, task=Task.CLASSIFY, labels=LABELS)
    with pytest.raises(UnusableDataset, match="no truth for classify, only for detect"):
        datasets.read(folder, task=Task.CLASSIFY, labels=LABELS, layout=Layout.COCO)
    (folder / "val2017" / "000000000001.jpg").unlink()
    with pytest.raises(UnusableDataset, match=r"1 of the files.*val2017/000000000001\.jpg"):
        datasets.read(folder, task=Task.DETECT, labels=LABELS)
    (folder / "annotations" / "instances_val2017.json").write_text("{")
    with pytest.raises(UnusableDataset, match="JSONDecodeError"):
        datasets.read(folder, task=Task.DETECT, labels=LABELS)
    with pytest.raises(UnusableDataset, match=r"val\.txt"):
        datasets.read(folder, task=Task.SEGMENT, labels=VOC21, layout=Layout.VOC)


def test_an_empty_set_is_refused(tmp_path: Path) -> None:
    (tmp_path / "val" / "dark").mkdir(parents=True)
    with pytest.raises(UnusableDataset, match="no pictures"):
        datasets.read(tmp_path, task=Task.CLASSIFY, labels=LABELS)
