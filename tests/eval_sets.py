"""Tiny data sets in every layout that `mobilevision eval` reads, for three labels: dark, gray, bright.

Pictures are of one shade each. The toy gateway of `fakes` (and its double in these tests) answers by it: 10 is dark,
128 gray, 200 bright, so the truth written here decides what the scores must be.
"""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

LABELS = ("dark", "gray", "bright")
SHADES = (10, 128, 200)
WIDTH, HEIGHT = 64, 48


def picture(path: Path, label: int) -> None:
    """A JPEG of the shade that is answered with this label."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (WIDTH, HEIGHT), (SHADES[label],) * 3).save(path, "JPEG")


def mask(path: Path, values: Any) -> None:
    """A class map, uint8 [HEIGHT, WIDTH]; what broadcasts to it will do."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.broadcast_to(np.asarray(values, np.uint8), (HEIGHT, WIDTH)).copy()).save(path, "PNG")


def imagenet(folder: Path, rows: list[tuple[str, int]]) -> Path:
    """`rows`: class folder, and what the picture looks like."""
    for index, (name, looks) in enumerate(rows):
        picture(folder / "val" / name / f"p{index}.JPEG", looks)
    return folder


def coco_json(boxes: list[list[tuple[int, list[float]]]], *, names: list[str], first_id: int = 10) -> dict[str, Any]:
    """COCO annotations. `boxes`: for each picture (label, [x, y, width, height]); category ids have gaps."""
    ids = {label: 7 * (label + 1) for label in range(len(LABELS))}
    rows = [
        {
            "image_id": first_id + index,
            "category_id": ids[label],
            "bbox": box,
            "area": box[2] * box[3],
            "iscrowd": 0,
        }
        for index, found in enumerate(boxes)
        for label, box in found
    ]
    return {
        "images": [
            {"id": first_id + index, "file_name": name, "width": WIDTH, "height": HEIGHT}
            for index, name in enumerate(names)
        ],
        "annotations": [{"id": 1 + index, **row} for index, row in enumerate(rows)],
        "categories": [{"id": ids[label], "name": name} for label, name in enumerate(LABELS)],
    }


def coco(folder: Path, rows: list[tuple[int, list[tuple[int, list[float]]]]]) -> Path:
    """`rows`: what the picture looks like, and its true boxes."""
    names = [f"{index:012}.jpg" for index in range(len(rows))]
    for name, (looks, _) in zip(names, rows, strict=True):
        picture(folder / "val2017" / name, looks)
    (folder / "annotations").mkdir()
    content = coco_json([boxes for _, boxes in rows], names=names)
    (folder / "annotations" / "instances_val2017.json").write_text(json.dumps(content))
    return folder


def voc(folder: Path, rows: list[tuple[int, Any]], *, below: str = "VOCdevkit/VOC2012") -> Path:
    """`rows`: what the picture looks like, and its true class map."""
    root = folder / below
    for index, (looks, values) in enumerate(rows):
        picture(root / "JPEGImages" / f"p{index}.jpg", looks)
        mask(root / "SegmentationClass" / f"p{index}.png", values)
    (root / "ImageSets" / "Segmentation").mkdir(parents=True)
    (root / "ImageSets" / "Segmentation" / "val.txt").write_text("".join(f"p{i}\n" for i in range(len(rows))))
    return folder


def ade20k(folder: Path, rows: list[tuple[int, Any]]) -> Path:
    """As `voc`; class maps hold label + 1."""
    for index, (looks, values) in enumerate(rows):
        picture(folder / "images" / "validation" / f"p{index}.jpg", looks)
        mask(folder / "annotations" / "validation" / f"p{index}.png", values)
    return folder


def png(values: np.ndarray) -> bytes:
    """Encode a class map."""
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, "PNG")
    return stream.getvalue()
