"""Tiny data sets of one's own for `mobilevision eval`: class folders, Roboflow's COCO, YOLO, masks. See `eval_sets`."""

import json
from pathlib import Path
from typing import Any

import eval_sets
import numpy as np
from PIL import Image

HALF = np.repeat(np.array([[0], [1]], np.uint8), eval_sets.HEIGHT // 2, axis=0)  # upper half 0, lower half 1


def picture(path: Path, label: int, *, size: tuple[int, int] = (eval_sets.WIDTH, eval_sets.HEIGHT)) -> Path:
    """A picture in the format of its ending (".bin": a PNG whose name does not say so)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = {".jpg": "JPEG", ".jpe": "JPEG", ".jfif": "JPEG", ".tif": "TIFF", ".dib": "BMP", ".bin": "PNG"}
    name = kind.get(path.suffix.lower(), path.suffix[1:].upper())
    Image.new("RGB", size, (eval_sets.SHADES[label],) * 3).save(path, name)
    return path


def roboflow(folder: Path, rows: list[tuple[int, list[tuple[int, list[float]]]]]) -> Path:
    """As Roboflow exports COCO: pictures beside the file, ids from 0, an empty category 0."""
    names = [f"p{index}_png.rf.abc.jpg" for index in range(len(rows))]
    for name, (looks, _) in zip(names, rows, strict=True):
        picture(folder / "valid" / name, looks)
    content = eval_sets.coco_json([boxes for _, boxes in rows], names=names, first_id=0)
    for number, row in enumerate(content["annotations"]):
        row["id"] = number
    content["categories"].insert(0, {"id": 0, "name": "shades", "supercategory": "none"})
    (folder / "valid" / "_annotations.coco.json").write_text(json.dumps(content))
    (folder / "train").mkdir()
    (folder / "train" / "_annotations.coco.json").write_text("{}")
    (folder / "README.roboflow.txt").write_text("exported\n")
    return folder


def yolo(folder: Path, rows: list[tuple[int, str]], *, split: str = "images/val", names: Any = None) -> Path:
    """`rows`: what the picture looks like, and its file of labels ("": there is none)."""
    for index, (looks, text) in enumerate(rows):
        path = picture(folder / split / f"p{index}.jpg", looks)
        truth = Path(str(path).replace("images", "labels")).with_suffix(".txt")
        truth.parent.mkdir(parents=True, exist_ok=True)
        if text:
            truth.write_text(text)
    listed = "".join(f"  {index}: {name}\n" for index, name in enumerate(names or eval_sets.LABELS))
    (folder / "data.yaml").write_text(f"path: ../datasets/own\ntrain: images/train\nval: {split}\nnames:\n{listed}")
    return folder


def masks(folder: Path, rows: list[tuple[int, Any]], *, of: tuple[str, str] = ("images", "masks")) -> Path:
    """`rows`: what the picture looks like, and its class map, or a picture to save as the mask."""
    for index, (looks, values) in enumerate(rows):
        picture(folder / of[0] / f"p{index}.png", looks)
        path = folder / of[1] / f"p{index}.png"
        if isinstance(values, Image.Image):
            path.parent.mkdir(parents=True, exist_ok=True)
            values.save(path)
        else:
            eval_sets.mask(path, values)
    return folder
