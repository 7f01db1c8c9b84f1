"""Layout coco: annotations in COCO's JSON, with categories that become labels by their names.

    annotations/instances_val2017.json and val2017/, or another JSON file in annotations/
    valid/_annotations.coco.json beside its pictures, as Roboflow exports it; also in val, test or the folder itself
    annotations.json, instances.json, coco.json or labels.json

Pictures are looked for beside the annotations and in the usual folders. A category without a box that is no label of
the model is left out: Roboflow adds one with the id 0.
"""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mobilevision.eval.dataset import Found, Options, Sample
from mobilevision.eval.errors import UnusableDataset
from mobilevision.eval.files import Skipped, inside, key_of, pictures_below, read_json
from mobilevision.eval.labels import match, match_all, short, some
from mobilevision.eval.layouts import SPLITS

PUBLIC_FILE = "instances_val2017.json"
ROBOFLOW_FILE = "_annotations.coco.json"
_ALONE = ("annotations.json", "instances.json", "coco.json", "labels.json")
_COCO_CATEGORIES = 80
_TRIED = 20  # pictures that are looked for in each folder


def has_annotations(folder: Path) -> bool:
    """Whether the folder holds a file of annotations, or several."""
    return any((folder / "annotations").glob("*.json")) or _elsewhere(folder) is not None


def annotations_of(folder: Path) -> Path | None:
    """The file with the annotations, None where there is none. Raises `UnusableDataset` where several may be meant."""
    listed = sorted((folder / "annotations").glob("*.json"))
    if listed:
        instances = [path for path in listed if path.name.startswith("instances")] or listed
        preferred = [path for path in instances if path.name == PUBLIC_FILE]
        preferred = preferred or [path for path in instances if "val" in path.stem.lower()] or instances
        if len(preferred) > 1:
            raise UnusableDataset(
                f"{folder / 'annotations'} has {len(preferred)} files that may be meant: "
                f"{some(path.name for path in preferred)}; name one of them {PUBLIC_FILE}"
            )
        return preferred[0]
    return _elsewhere(folder)


def _elsewhere(folder: Path) -> Path | None:
    places = [folder / split / ROBOFLOW_FILE for split in SPLITS]
    places += [folder / ROBOFLOW_FILE, *(folder / name for name in _ALONE)]
    return next((path for path in places if path.is_file()), None)


def read(folder: Path, labels: tuple[str, ...], options: Options) -> Found:
    """Read the annotations. Raises `UnusableDataset`, `UnusableModel`, OSError."""
    annotations = annotations_of(folder)
    if annotations is None:
        raise UnusableDataset(f"{folder} has no annotations/*.json and no {SPLITS[1]}/{ROBOFLOW_FILE}")
    return read_file(folder, annotations, labels)


def read_file(folder: Path, annotations: Path, labels: tuple[str, ...], *, pictures: Path | None = None) -> Found:
    """Read one file of annotations, with its pictures in `pictures` or else where the first of them are found.

    Raises `UnusableDataset`, `UnusableModel`, OSError.
    """
    images, boxes, named = parse(annotations)
    used = Counter(box["category_id"] for box in boxes)
    categories = _categories(annotations, named, used, labels)
    top = pictures or _pictures_folder(folder, annotations, [str(image["file_name"]) for image in images])
    samples = [
        Sample(key_of(path, folder), path, image_id=image["id"])
        for image in images
        for path in [inside(folder, top, image["file_name"])]
    ]
    notes = []
    if left_out := sorted({name for number, name in named if number not in categories.values()}):
        notes.append(f"categories without a box, left out: {some(left_out)}")
    public = annotations.name == PUBLIC_FILE and len(labels) == len(categories) == _COCO_CATEGORIES
    return found(
        samples, images, boxes, categories, labels, notes=notes, public=public, skipped=_others(folder, top, samples)
    )


def found(
    samples: list[Sample],
    images: list[dict[str, Any]],
    boxes: list[dict[str, Any]],
    categories: dict[int, int],
    labels: tuple[str, ...],
    *,
    skipped: Iterable[Skipped],
    notes: list[str],
    public: bool = False,
) -> Found:
    """The data set of these boxes. `categories` maps a label to its category id."""
    content = {
        "images": images,
        # pycocotools takes a match with the annotation 0 for no match, so that they are numbered from 1.
        "annotations": [{"id": number, **box} for number, box in enumerate(boxes, 1)],
        "categories": [{"id": number, "name": labels[label]} for label, number in categories.items()],
    }
    with_boxes = {box["category_id"] for box in boxes}
    without = [name for label, name in enumerate(labels) if categories.get(label) not in with_boxes]
    if without:
        notes = [*notes, f"labels without a box: {some(without)}"]
    truth = [hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()]
    return Found(
        samples,
        truth=truth,
        public=public,
        coco=content,
        categories=categories,
        skipped=tuple(skipped),
        notes=notes,
    )


def parse(path: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[tuple[int, str]]]:
    """Images, boxes without their ids, and categories as (id, name), of a file in COCO's JSON.

    Raises `UnusableDataset` naming the entry that is wrong, OSError.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise UnusableDataset(f"{path} holds no JSON object with images, annotations and categories")
    images, known = [], set()
    for where, row in _rows(path, content, "images"):
        image = {"id": _whole(where, row, "id"), "file_name": row.get("file_name")}
        if not isinstance(image["file_name"], str):
            raise UnusableDataset(f"{where} has no file_name")
        if image["id"] in known:
            raise UnusableDataset(f"{where}: the id {image['id']} occurs twice")
        known.add(image["id"])
        images.append(image)
    named = [(_whole(where, row, "id"), str(row.get("name", ""))) for where, row in _rows(path, content, "categories")]
    numbers = {number for number, _ in named}
    boxes = []
    for where, row in _rows(path, content, "annotations"):
        box = _box(where, row)
        if box["image_id"] not in known:
            raise UnusableDataset(f"{where} is of the picture {box['image_id']}, which the file does not list")
        if box["category_id"] not in numbers:
            raise UnusableDataset(f"{where} is of the category {box['category_id']}, which the file does not list")
        boxes.append(box)
    return images, boxes, named


def _rows(path: Path, content: dict[str, Any], key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    rows = content.get(key)
    if not isinstance(rows, list):
        raise UnusableDataset(f"{path} has no list {key!r}")
    for number, row in enumerate(rows):
        where = f"{path}: {key}[{number}]"
        if not isinstance(row, dict):
            raise UnusableDataset(f"{where} is no JSON object")
        yield where, row


def _whole(where: str, row: dict[str, Any], key: str) -> int:
    value = row.get(key)
    text = value if isinstance(value, str) and value.isdecimal() and len(value) < 19 else None
    if text is None and (not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 53):
        raise UnusableDataset(f"{where}: {key} is {short(repr(value))}, a whole number from 0 is needed")
    return int(value)  # type: ignore[arg-type]  # checked above


def _box(where: str, row: dict[str, Any]) -> dict[str, Any]:
    bbox = row.get("bbox")
    sides = bbox if isinstance(bbox, list) and len(bbox) == 4 else []
    if not sides or not all(_is_size(side) for side in sides) or min(sides[2:]) < 0:
        raise UnusableDataset(f"{where}: bbox is {short(repr(bbox))}, [x, y, width, height] in pixels is needed")
    area = row.get("area", sides[2] * sides[3])
    if not _is_size(area):
        raise UnusableDataset(f"{where}: area is {short(repr(area))}, a number is needed")
    return {
        "image_id": _whole(where, row, "image_id"),
        "category_id": _whole(where, row, "category_id"),
        "bbox": [float(side) for side in sides],
        "area": float(area),
        "iscrowd": int(bool(row.get("iscrowd", 0))),
    }


def _is_size(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < 1e15 and math.isfinite(value)


def _categories(
    path: Path, named: list[tuple[int, str]], used: Counter[int], labels: tuple[str, ...]
) -> dict[int, int]:
    """The category of each label that has one. A name that several categories have means those with boxes."""
    kept: dict[str, int] = {}
    for number, name in named:
        if not used[number] and (name in kept or not match([name], labels)):
            continue
        if name in kept and used[kept[name]]:
            raise UnusableDataset(f"{path}: two categories with boxes are named {short(name)!r}")
        kept[name] = number
    labelled = match_all(kept, labels, f"categories of {path}")
    return {label: kept[name] for name, label in sorted(labelled.items(), key=lambda item: item[1])}


def _pictures_folder(folder: Path, annotations: Path, names: list[str]) -> Path:
    split = annotations.stem.removeprefix("instances_")
    tops = [folder / split, folder / "images" / split, annotations.parent, folder / "images", folder / "data"]
    tops += [folder / name for name in SPLITS] + [folder / "images" / name for name in SPLITS] + [folder]
    for top in tops:
        if any(inside(folder, top, name).is_file() for name in names[:_TRIED]):
            return top
    if not names:
        return folder
    raise UnusableDataset(
        f"the pictures that {annotations} lists ({some(names)}) are in none of "
        f"{', '.join(dict.fromkeys(key_of(top, folder) for top in tops))}"
    )


def _others(folder: Path, top: Path, samples: list[Sample]) -> list[Skipped]:
    """Files in the folder of the pictures that the annotations do not list."""
    if top == folder:
        return []
    listed = {sample.image for sample in samples}
    pictures, others = pictures_below(top, folder, ignore=(".json",))
    return [
        *others,
        *(Skipped(key_of(path, folder), "not in the annotations") for path in pictures if path not in listed),
    ]
