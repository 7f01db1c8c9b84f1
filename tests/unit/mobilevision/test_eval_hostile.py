"""Broken and hostile annotations end in one line that names the file, and cost little."""

import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import eval_sets
import numpy as np
import own_sets
import pytest
from PIL import Image

from mobilevision.eval import datasets, files
from mobilevision.eval.dataset import MaskValues
from mobilevision.eval.errors import EvalError, UnusableDataset
from mobilevision.eval.masks import read_map
from mobilevision.tasks import Task

BOX: dict[str, Any] = {"image_id": 0, "category_id": 7, "bbox": [0, 0, 5, 5]}
ANY = MaskValues(dict.fromkeys(range(256), 0), {})


def read(folder: Path, task: Task = Task.DETECT) -> datasets.Dataset:
    return datasets.read(folder, task=task, labels=eval_sets.LABELS)


def refused(folder: Path, task: Task = Task.DETECT) -> str:
    with pytest.raises(EvalError) as caught:
        read(folder, task)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert len(message) < 600 + len(str(folder))
    return message


def changed(key: str, value: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda content: content | {key: value}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda content: [content], "holds no JSON object"),
        (changed("images", None), "has no list 'images'"),
        (changed("images", [7]), "images[0] is no JSON object"),
        (changed("images", [{"id": 0}]), "images[0] has no file_name"),
        (changed("images", [{"id": True, "file_name": "a"}]), "id is True, a whole number from 0"),
        (changed("images", [{"id": 10**30, "file_name": "a"}]), "a whole number from 0"),
        (changed("images", [{"id": 0, "file_name": "a"}] * 2), "the id 0 occurs twice"),
        (changed("images", [{"id": 0, "file_name": "../../secret.jpg"}]), "is no path of a file in"),
        (changed("images", [{"id": 0, "file_name": "/etc/passwd"}]), "is no path of a file in"),
        (changed("images", [{"id": 0, "file_name": "C:\\secret.jpg"}]), "is no path of a file in"),
        (changed("images", [{"id": 0, "file_name": "gone.jpg"}]), "gone.jpg) are in none of"),
        (changed("annotations", [BOX | {"image_id": 5}]), "is of the picture 5, which the file does not list"),
        (changed("annotations", [BOX | {"category_id": 5}]), "is of the category 5, which the file does not list"),
        (changed("annotations", [BOX | {"bbox": [0, 0, 5]}]), "[x, y, width, height] in pixels is needed"),
        (changed("annotations", [BOX | {"bbox": [0, 0, -5, 5]}]), "[x, y, width, height] in pixels is needed"),
        (changed("annotations", [BOX | {"bbox": [0, 0, float("nan"), 5]}]), "bbox is [0, 0, nan, 5]"),
        (changed("annotations", [BOX | {"bbox": [0, 0, 10**400, 5]}]), "in pixels is needed"),
        (changed("annotations", [BOX | {"area": "big"}]), "area is 'big', a number is needed"),
        (changed("categories", [{"id": 7, "name": "x" * 10**6}]), "…"),
        (
            lambda content: (
                content
                | {"categories": [{"id": i, "name": "dark"} for i in (7, 8)]}
                | {"annotations": [BOX, BOX | {"category_id": 8}]}
            ),
            "two categories with boxes are named 'dark'",
        ),
    ],
)
def test_broken_coco(tmp_path: Path, change: Any, said: str) -> None:
    folder = own_sets.roboflow(tmp_path, [(0, [(0, [0, 0, 5, 5])])])
    path = folder / "valid" / "_annotations.coco.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    assert said in refused(folder)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe{}", b"[" * 1_000_000, b'{"images": ' + b"9" * 10_000 + b"}", b"null", b"\0" * 99]
)
def test_annotations_that_are_no_json(tmp_path: Path, content: bytes) -> None:
    folder = own_sets.roboflow(tmp_path, [(0, [])])
    (folder / "valid" / "_annotations.coco.json").write_bytes(content)
    assert "_annotations.coco.json" in refused(folder)


def test_a_picture_that_is_listed_and_absent(tmp_path: Path) -> None:
    folder = own_sets.roboflow(tmp_path, [(0, []), (1, [])])
    (folder / "valid" / "p1_png.rf.abc.jpg").unlink()
    assert "1 of the files" in refused(folder)
    assert "valid/p1_png.rf.abc.jpg" in refused(folder)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("names: [a\n", "no usable YAML"),
        ("names: !!python/object/apply:os.system ['true']\n", "no usable YAML"),
        ("a: &a [x, x]\nb: &b [*a, *a]\nnames: [*b, *b]\n", "aliases"),
        ("names: " + "[" * 5000, "brackets"),
        ("- " * 30_000, "10 deep"),
        ("names: [" + "x," * 40_000, "larger than the 64 KiB"),
        ("names: 7\n", "names is no list of class names"),
        ("names: {0: a, 7: b}\n", "names is no list of class names"),
        ("names: [[a]]\n", "is no class name"),
        ("names: [dark, dark]\n", "lists a name twice: dark"),
        ("names: [dark]\nnc: 5\n", "says nc: 5, and lists 1 names"),
        ("names: [dark]\nval: /etc\n", "val is '/etc', which is not in"),
        ("names: [dark]\nval: ../..\n", "which is not in"),
        ("names: [dark]\nval: data.yaml\n", "no folder and no list of pictures"),
        ("names: [dark]\nval: list.txt\n", "is no path of a file in"),
    ],
)
def test_broken_data_yaml(tmp_path: Path, text: str, said: str) -> None:
    folder = own_sets.yolo(tmp_path, [(0, "0 0.5 0.5 0.1 0.1\n")])
    (folder / "data.yaml").write_text(text)
    (folder / "list.txt").write_text("../outside.jpg\n")
    assert said in refused(folder)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("0 0.5 0.5 0.1", "4 values; 5 are needed"),
        ("0 0.5 0.5 0.1 0.1 0.9", "6 values; 5 are needed"),
        ("0 64 32 10 10", "must be shares of the picture"),
        ("0 0.5 0.5 nan 0.1", "must be shares of the picture"),
        ("0 0.5 0.5 -0.1 0.1", "must be shares of the picture"),
        ("3 0.5 0.5 0.1 0.1", "class 3, but there are the classes 0 to 2"),
        ("-1 0.5 0.5 0.1 0.1", "class -1, but"),
        ("inf 0.5 0.5 0.1 0.1", "class inf, but"),
        ("0.5 0.5 0.5 0.1 0.1", "class 0.5, but"),
        ("dark 0.5 0.5 0.1 0.1", "are no numbers"),
        ("9" * 100_000, "class 9999"),
    ],
)
def test_broken_files_of_labels(tmp_path: Path, line: str, said: str) -> None:
    folder = own_sets.yolo(tmp_path, [(0, f"0 0.5 0.5 0.1 0.1\n{line}\n")])
    message = refused(folder)
    assert said in message
    assert "p0.txt, line 2" in message


def test_a_large_file_of_labels_is_not_read(tmp_path: Path) -> None:
    folder = own_sets.yolo(tmp_path, [(0, "0 0.5 0.5 0.1 0.1\n" * 250_000)])
    assert "larger than the 4096 KiB" in refused(folder)


def test_yolo_without_any_labels_and_pictures_that_cannot_be_opened(tmp_path: Path) -> None:
    folder = own_sets.yolo(tmp_path, [(0, ""), (1, "")])
    assert "none of the 2 pictures has labels" in refused(folder)
    own_sets.yolo(folder, [(0, "0 0.5 0.5 0.1 0.1\n")])
    (folder / "images" / "val" / "p1.jpg").write_bytes(b"\xff\xd8\xff broken")
    [skipped] = read(folder).skipped
    assert (skipped.file, skipped.why[:19]) == ("images/val/p1.jpg", "its size is needed:")


def png(width: int, height: int) -> bytes:
    """A PNG that states any size, and holds nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (png(60_000, 60_000), "DecompressionBomb|states 60000 x 60000 pixels"),
        (png(64, 48), "cannot be read"),
        (b"", "cannot be read"),
    ],
    ids=["bomb", "empty data", "empty file"],
)
def test_broken_masks(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "m.png").write_bytes(content)
    with pytest.raises(ValueError, match=said):
        read_map(tmp_path / "m.png", ANY)


def test_a_mask_of_another_size_is_not_decoded(tmp_path: Path) -> None:
    (tmp_path / "m.png").write_bytes(png(9000, 9000))
    with pytest.raises(ValueError, match=r"m\.png is 9000 x 9000 pixels, its picture 64 x 48"):
        read_map(tmp_path / "m.png", ANY, expected=(64, 48))


def test_masks_of_more_than_8_bits(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 300, np.uint16)).save(tmp_path / "m.png")
    with pytest.raises(ValueError, match="holds the value 300; classes are values of 8 bits"):
        read_map(tmp_path / "m.png", ANY)


@pytest.mark.parametrize("line", ["dark", "dark:1,2", "dark:1,2,300::", "dark:1,2,-3::", "dark:a,b,c::"])
def test_a_broken_labelmap(tmp_path: Path, line: str) -> None:
    folder = own_sets.masks(tmp_path, [(0, 0)])
    (folder / "labelmap.txt").write_text(line + "\n")
    assert "'<name>:<red>,<green>,<blue>::' is needed" in refused(folder, Task.SEGMENT)


@pytest.mark.parametrize("line", ["p0.png", "../../p0.png dark", "/p0.png dark"])
def test_a_broken_val_map(tmp_path: Path, line: str) -> None:
    own_sets.picture(tmp_path / "val" / "p0.png", 0)
    (tmp_path / "val_map.txt").write_text(line + "\n")
    message = refused(tmp_path, Task.CLASSIFY)
    assert "'<picture> <class>' is needed" in message or "is no path of a file" in message


def test_absent_names_in_the_list_of_voc(tmp_path: Path) -> None:
    folder = eval_sets.voc(tmp_path, [(0, 0)], below=".")
    with (folder / "ImageSets" / "Segmentation" / "val.txt").open("a") as file:
        file.write("../../secret\ngone\n")
    assert "2 of the names in ImageSets/Segmentation/val.txt have no picture" in refused(folder, Task.SEGMENT)


def test_files_are_read_up_to_a_limit(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes(b"x" * 5000)
    with pytest.raises(UnusableDataset, match="larger than the 4 KiB"):
        files.read_text(tmp_path / "list.txt", limit=4096)
    with pytest.raises(UnusableDataset, match="is no file"):
        files.read_text(tmp_path)
