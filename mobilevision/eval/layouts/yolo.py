"""Layout yolo: pictures with one text file of labels each, "<class> <centre x> <centre y> <width> <height>" per line.

Numbers are shares of the upright picture's sides. Polygons ("<class> <x> <y> <x> <y> ...") become the boxes around
them. The class names come from data.yaml (`names`; `val` names the pictures), or from classes.txt or obj.names, one per
line. Labels lie in `labels/` where the pictures lie in `images/`, or else beside the pictures. A picture without a file
of labels shows nothing.
"""

import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mobilevision.eval.dataset import Found, Options, Sample
from mobilevision.eval.errors import UnusableDataset
from mobilevision.eval.files import (
    Skipped,
    inside,
    is_picture,
    key_of,
    pictures_below,
    read_names,
    read_text,
    read_yaml,
    upright_size,
)
from mobilevision.eval.labels import match_all, short, some
from mobilevision.eval.layouts import SPLITS
from mobilevision.eval.layouts.coco import found

YAML_FILES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
NAMES_FILES = ("classes.txt", "obj.names", "names.txt", "labels.txt")
_MAX_LABEL_BYTES = 4 << 20
_MAX_CLASSES = 100_000
_ROUNDED = 1.01  # some programs write shares a little above 1


def names_file(folder: Path) -> Path | None:
    """The file with the names of the classes, None where there is none."""
    places = [folder / name for name in (*YAML_FILES, *NAMES_FILES)]
    places += [folder / "labels" / NAMES_FILES[0]]
    return next((path for path in places if path.is_file()), None)


def has_labels(folder: Path) -> bool:
    """Whether the folder looks like this layout: a data.yaml, or pictures and labels in folders of these names."""
    if any((folder / name).is_file() for name in YAML_FILES):
        return True
    places = [folder, *(folder / split for split in SPLITS)]
    if any((place / "images").is_dir() and any((place / "labels").rglob("*.txt")) for place in places):
        return True
    return any((folder / name).is_file() for name in NAMES_FILES) and any((folder / "images").rglob("*.txt"))


def read(folder: Path, labels: tuple[str, ...], options: Options) -> Found:
    """Read pictures, labels and names. Raises `UnusableDataset`, `UnusableModel`, `PackageMissing`, OSError."""
    source = names_file(folder)
    if source is None:
        raise UnusableDataset(f"{folder} does not say what its classes are: data.yaml or classes.txt is needed")
    settings = read_yaml(source) if source.name in YAML_FILES else {"names": read_names(source)}
    names = _names(source, settings)
    pictures, skipped = _pictures(folder, source, settings)
    samples: list[Sample] = []
    images: list[dict[str, Any]] = []
    boxes: list[dict[str, Any]] = []
    label_files = set()
    for path in pictures:
        truth = _label_file(folder, path)
        rows = _rows(truth, len(names)) if truth.is_file() else []
        label_files |= {truth} if truth.is_file() else set()
        try:
            width, height = upright_size(path)
        except ValueError as error:
            skipped.append(Skipped(key_of(path, folder), f"its size is needed: {error}"))
            continue
        number = len(samples) + 1
        samples.append(Sample(key_of(path, folder), path, image_id=number))
        images.append({"id": number, "file_name": samples[-1].key})
        boxes += [_box(number, row, width, height) for row in rows]
    if pictures and not label_files:
        raise UnusableDataset(
            f"none of the {len(pictures)} pictures has labels; those of {key_of(pictures[0], folder)} would be in "
            f"{key_of(_label_file(folder, pictures[0]), folder)}"
        )
    used = {box["category_id"] - 1 for box in boxes}
    by_name = match_all([names[index] for index in sorted(used)], labels, f"classes of {source}")
    categories = {by_name[names[index]]: index + 1 for index in sorted(used)}
    bare = len(pictures) - len(label_files)
    notes = [f"{bare} pictures have no file of labels: nothing is to be found in them"] if bare else []
    return found(
        samples,
        images,
        boxes,
        dict(sorted(categories.items())),
        labels,
        skipped=_alone(folder, label_files, skipped),
        notes=notes,
    )


def _names(source: Path, settings: Any) -> list[str]:
    names = settings.get("names") if isinstance(settings, dict) else None
    if isinstance(names, dict) and set(names) == set(range(len(names))):
        names = [names[index] for index in range(len(names))]
    if not isinstance(names, list) or not 0 < len(names) <= _MAX_CLASSES:
        raise UnusableDataset(f"{source}: names is no list of class names")
    if wrong := [name for name in names if not isinstance(name, str | int | float)]:
        raise UnusableDataset(f"{source}: {short(repr(wrong[0]))} is no class name")
    count = settings.get("nc", len(names))
    if count != len(names):
        raise UnusableDataset(f"{source} says nc: {short(repr(count))}, and lists {len(names)} names")
    texts = [str(name) for name in names]
    if twice := sorted({name for name in texts if texts.count(name) > 1}) if len(texts) <= 2000 else []:
        raise UnusableDataset(f"{source} lists a name twice: {some(twice)}")
    return texts


def _pictures(folder: Path, source: Path, settings: dict[str, Any]) -> tuple[list[Path], list[Skipped]]:
    """All pictures to measure on, each once."""
    stated = settings.get("val") or settings.get("test")
    if stated is None:
        tops = [_usual_folder(folder)]
    else:
        entries = stated if isinstance(stated, list) else [stated]
        tops = [_stated(folder, source, settings.get("path"), entry) for entry in entries[:_MAX_CLASSES]]
    pictures: list[Path] = []
    skipped: list[Skipped] = []
    for top in tops:
        if top.is_dir():
            more, others = pictures_below(top, folder, ignore=(".txt", ".cache", ".npy"))
            pictures += more
            skipped += others
        elif top.suffix == ".txt":
            listed = [_below(folder, top, line) for line in read_names(top)]
            pictures += [path for path in listed if is_picture(path)]
            skipped += [Skipped(key_of(path, folder), "not a picture") for path in listed if not is_picture(path)]
        else:
            raise UnusableDataset(f"{source} names {key_of(top, folder)}, which is no folder and no list of pictures")
    return list(dict.fromkeys(pictures)), skipped


def _usual_folder(folder: Path) -> Path:
    places = [folder / "images" / split for split in SPLITS] + [folder / split / "images" for split in SPLITS]
    place = next((place for place in places if place.is_dir()), folder / "images")
    if not place.is_dir():
        raise UnusableDataset(f"{folder} has no pictures in {key_of(places[0], folder)}, valid/images or images")
    return place


def _stated(folder: Path, source: Path, base: object, entry: object) -> Path:
    """What `val` names. `path` of data.yaml is often that of another machine, and Roboflow writes ../ before `val`."""
    text = str(entry).replace("\\", "/") if isinstance(entry, str) else ""
    while text.startswith(("../", "./")):
        text = text.partition("/")[2]
    top = Path(os.path.normpath(folder))
    parts = [str(base).replace("\\", "/")] if isinstance(base, str) else []
    for prefix in (*parts, ""):
        path = Path(os.path.normpath(folder / prefix / text))  # links stay links
        if text and path.exists() and path != top and path.is_relative_to(top):
            return folder / path.relative_to(top)
    raise UnusableDataset(f"{source}: val is {short(repr(entry))}, which is not in {folder}")


def _below(folder: Path, listing: Path, line: str) -> Path:
    """A picture of a list. Lists are relative to the data set's folder, or with ./ to the list itself."""
    path = inside(folder, listing.parent if line.startswith("./") else folder, line)
    if not path.is_file():
        raise UnusableDataset(f"{listing} lists {short(line)}, and there is no such file")
    return path


def _label_file(folder: Path, picture: Path) -> Path:
    parts = list(picture.relative_to(folder).parts)
    for index in range(len(parts) - 2, -1, -1):  # the last folder called images, as Ultralytics replaces it
        if parts[index] == "images":
            parts[index] = "labels"
            break
    swapped = folder.joinpath(*parts).with_suffix(".txt")
    beside = picture.with_suffix(".txt")
    return beside if not swapped.is_file() and beside.is_file() else swapped


def _rows(path: Path, classes: int) -> list[tuple[int, float, float, float, float]]:
    """Class, centre, width and height of each box, as shares of the picture. Equal lines count once."""
    rows: dict[tuple[int, float, float, float, float], None] = {}
    for number, line in enumerate(read_text(path, limit=_MAX_LABEL_BYTES).splitlines(), 1):
        if line.strip():
            rows[_row(f"{path}, line {number}", line.split(), classes)] = None
    return list(rows)


def _row(where: str, words: list[str], classes: int) -> tuple[int, float, float, float, float]:
    try:
        number, values = float(words[0]), [float(word) for word in words[1:]]
    except ValueError as error:
        raise UnusableDataset(f"{where}: {short(' '.join(words[:8]))!r} are no numbers") from error
    if not (math.isfinite(number) and number == int(number) and 0 <= number < classes):
        raise UnusableDataset(f"{where}: class {short(words[0])}, but there are the classes 0 to {classes - 1}")
    if not all(0 <= value <= _ROUNDED for value in values):
        raise UnusableDataset(f"{where}: values must be shares of the picture, from 0 to 1")
    if len(values) == 4:
        return (int(number), *values)  # type: ignore[return-value]  # four, as was checked
    if len(values) < 6 or len(values) % 2:
        raise UnusableDataset(f"{where}: {len(words)} values; 5 are needed, or a class and three points or more")
    across, down = values[0::2], values[1::2]
    left, right, top, bottom = min(across), max(across), min(down), max(down)
    return int(number), (left + right) / 2, (top + bottom) / 2, right - left, bottom - top


def _box(image_id: int, row: tuple[int, float, float, float, float], width: int, height: int) -> dict[str, Any]:
    number, x, y, across, down = row
    sides = [(x - across / 2) * width, (y - down / 2) * height, across * width, down * height]
    return {
        "image_id": image_id,
        "category_id": number + 1,
        "bbox": sides,
        "area": sides[2] * sides[3],
        "iscrowd": 0,
    }


def _alone(folder: Path, used: set[Path], skipped: Iterable[Skipped]) -> list[Skipped]:
    """The skipped files, and the files of labels without a picture beside those that have one."""
    found = [
        Skipped(key_of(path, folder), "labels without a picture")
        for place in sorted({path.parent for path in used})
        for path in sorted(place.glob("*.txt"))
        if path not in used and path.name not in NAMES_FILES
    ]
    return [*skipped, *found]
