"""Data sets on disk: a folder in one of the usual layouts in, pictures with their truth in the model's labels out.

    imagenet   val/<class>/*.JPEG, or val/*.JPEG with val_map.txt ("<picture> <class>" per line). A class is a folder
               name; its label is the model's of that name; else its line in LOC_synset_mapping.txt; else, where there
               are as many classes as labels, its place in ascending order (WordNet ids, as torchvision reads them).
    coco       annotations/instances_val2017.json and val2017/; categories become labels by their names.
    voc        JPEGImages/, SegmentationClass/, ImageSets/Segmentation/val.txt, here or in VOC2012 or VOCdevkit/VOC2012.
    ade20k     images/validation/, annotations/validation/: class 0 is "other" and ignored, class i is label i - 1.
    demo       what `mobilevision models demo-data` writes: images/*.jpg with detect.json (as COCO) and masks/*.png;
               classify.json: {"labels": [...], "images": [{"file": "classify/...", "label": <index>}]}.

Nothing is decoded here but JSON and lists; files are checked to exist. The folder is never written to. Samples come in
an order that depends on their names only and mixes all classes, so that the first N of them are a fair selection.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from model_store.card import Task
from service.eval.errors import UnusableDataset, UnusableModel

SYNSETS_FILE = "LOC_synset_mapping.txt"
_PICTURES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
_VOC_CLASSES = 21
_ADE20K_CLASSES = 150


class Layout(StrEnum):
    """How a data set lies on disk."""

    IMAGENET = "imagenet"
    COCO = "coco"
    VOC = "voc"
    ADE20K = "ade20k"
    DEMO = "demo"


@dataclass(frozen=True, slots=True)
class Sample:
    """One picture. Its truth, by task: `label`, the COCO `image_id`, or the class map at `mask`."""

    key: str  # its path below the folder
    image: Path
    label: int = -1
    image_id: int = -1
    mask: Path | None = None


@dataclass(frozen=True, slots=True)
class Dataset:
    """A data set as one model is asked about it.

    `coco`: the annotations, and `categories` the COCO category id of each label the data set has; detection only.
    `zero_is_ignored`: class maps hold label + 1, and 0 where the truth is unknown (255 is unknown in any case).
    `fingerprint` changes with the names and sizes of the files, the annotations and the truth read from them.
    """

    layout: Layout
    folder: Path
    task: Task
    samples: tuple[Sample, ...]
    fingerprint: str
    zero_is_ignored: bool = False
    coco: Mapping[str, Any] | None = None
    categories: Mapping[int, int] | None = None


def read(folder: Path, *, task: Task, labels: Sequence[str], layout: Layout | None = None) -> Dataset:
    """Read a data set for a model with these `labels`. Without a `layout` it is told from the folder.

    Raises `UnusableDataset`, or `UnusableModel` where the labels are not those of the data set.
    """
    if not folder.is_dir():
        raise UnusableDataset(f"{folder}: no such folder")
    chosen = layout or detect(folder)
    readers = _READERS[chosen]
    if task not in readers:
        raise UnusableDataset(f"layout {chosen} has no truth for {task}, only for {', '.join(readers)}")
    try:
        dataset = readers[task](folder, tuple(labels))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UnusableDataset(f"{folder} cannot be read as {chosen}: {type(error).__name__}: {error}") from error
    if not dataset.samples:
        raise UnusableDataset(f"{folder} holds no pictures with truth in layout {chosen}")
    return dataset


def detect(folder: Path) -> Layout:
    """The layout of a folder. Raises `UnusableDataset` where it is none."""
    found = {
        Layout.DEMO: (folder / "classify.json").is_file() or (folder / "detect.json").is_file(),
        Layout.COCO: any((folder / "annotations").glob("instances_*.json")),
        Layout.VOC: _voc_root(folder) is not None,
        Layout.ADE20K: _ade20k_root(folder) is not None,
        Layout.IMAGENET: (folder / "val").is_dir(),
    }
    for layout, matches in found.items():
        if matches:
            return layout
    raise UnusableDataset(f"{folder} is in none of the layouts {', '.join(Layout)}; docs/eval.md shows them")


def _imagenet(folder: Path, labels: tuple[str, ...]) -> Dataset:
    val, listing = folder / "val", folder / "val_map.txt"
    listing = listing if listing.is_file() else val / "val_map.txt"
    if listing.is_file():
        pairs = [line.split(maxsplit=1) for line in listing.read_text().splitlines() if line.strip()]
        pictures = [(val / name, label.strip()) for name, label in pairs]
    else:
        classes = [path for path in val.iterdir() if path.is_dir()]
        pictures = [(path, folder.name) for folder in classes for path in _pictures_in(folder)]
    of_class = _labels_of_classes(folder, {name for _, name in pictures}, labels)
    samples = [Sample(_key(path, folder), path, label=of_class[name]) for path, name in pictures]
    return _dataset(Layout.IMAGENET, folder, Task.CLASSIFY, samples, truth=[str(s.label) for s in samples])


def _labels_of_classes(folder: Path, classes: set[str], labels: tuple[str, ...]) -> dict[str, int]:
    if classes <= set(labels):
        return {name: labels.index(name) for name in classes}
    if all(name.isdecimal() and int(name) < len(labels) for name in classes):  # val_map.txt may hold the index itself
        return {name: int(name) for name in classes}
    synsets = folder / SYNSETS_FILE
    if synsets.is_file():
        order = [line.split(maxsplit=1)[0] for line in synsets.read_text().splitlines() if line.strip()]
        if len(order) != len(labels):
            raise UnusableModel(f"{synsets} lists {len(order)} classes, the model knows {len(labels)}")
        if unknown := sorted(classes - set(order)):
            raise UnusableDataset(f"classes that are not in {synsets}: {_some(unknown)}")
        return {name: order.index(name) for name in classes}
    if len(classes) != len(labels):
        raise UnusableModel(
            f"{folder} has {len(classes)} classes, the model knows {len(labels)}, and the names differ; if the folder "
            f"holds some classes of ImageNet only, put {SYNSETS_FILE} (it comes with ILSVRC) into it"
        )
    return {name: index for index, name in enumerate(sorted(classes))}


def _coco(folder: Path, labels: tuple[str, ...]) -> Dataset:
    annotations = folder / "annotations" / "instances_val2017.json"
    if not annotations.is_file():
        found = sorted((folder / "annotations").glob("instances_*.json"))
        if len(found) != 1:
            raise UnusableDataset(f"{folder / 'annotations'} has {len(found)} files instances_*.json; one is needed")
        annotations = found[0]
    pictures = folder / annotations.stem.removeprefix("instances_")
    return _boxes(Layout.COCO, folder, annotations, pictures, labels)


def _boxes(layout: Layout, folder: Path, annotations: Path, pictures: Path, labels: tuple[str, ...]) -> Dataset:
    content = annotations.read_bytes()
    coco = json.loads(content)
    named = {category["name"]: int(category["id"]) for category in coco["categories"]}
    if unknown := sorted(set(named) - set(labels)):
        raise UnusableModel(f"categories of {annotations} that the model has no label for: {_some(unknown)}")
    samples = [
        Sample(_key(pictures / image["file_name"], folder), pictures / image["file_name"], image_id=int(image["id"]))
        for image in coco["images"]
    ]
    categories = {label: named[name] for label, name in enumerate(labels) if name in named}
    truth = [hashlib.sha256(content).hexdigest()]
    return _dataset(layout, folder, Task.DETECT, samples, truth=truth, coco=coco, categories=categories)


def _voc(folder: Path, labels: tuple[str, ...]) -> Dataset:
    root = _voc_root(folder)
    if root is None:
        raise UnusableDataset(f"{folder} has no ImageSets/Segmentation/val.txt")
    _check_classes(labels, _VOC_CLASSES, "VOC with background")
    names = (root / "ImageSets" / "Segmentation" / "val.txt").read_text().split()
    samples = [
        _masked(folder, root / "JPEGImages" / f"{name}.jpg", root / "SegmentationClass" / f"{name}.png")
        for name in names
    ]
    return _dataset(Layout.VOC, folder, Task.SEGMENT, samples)


def _ade20k(folder: Path, labels: tuple[str, ...]) -> Dataset:
    root = _ade20k_root(folder)
    if root is None:
        raise UnusableDataset(f"{folder} has no annotations/validation")
    _check_classes(labels, _ADE20K_CLASSES, "ADE20K")
    masks = root / "annotations" / "validation"
    samples = [
        _masked(folder, path, masks / f"{path.stem}.png") for path in _pictures_in(root / "images" / "validation")
    ]
    return _dataset(Layout.ADE20K, folder, Task.SEGMENT, samples, zero_is_ignored=True)


def _demo_classify(folder: Path, labels: tuple[str, ...]) -> Dataset:
    content = json.loads((folder / "classify.json").read_bytes())
    names = [str(name) for name in content["labels"]]
    if unknown := sorted(set(names) - set(labels)):
        raise UnusableModel(f"labels of {folder / 'classify.json'} that the model does not know: {_some(unknown)}")
    samples = [
        Sample(str(image["file"]), folder / image["file"], label=labels.index(names[image["label"]]))
        for image in content["images"]
    ]
    return _dataset(Layout.DEMO, folder, Task.CLASSIFY, samples, truth=[str(s.label) for s in samples])


def _demo_detect(folder: Path, labels: tuple[str, ...]) -> Dataset:
    return _boxes(Layout.DEMO, folder, folder / "detect.json", folder / "images", labels)


def _demo_segment(folder: Path, labels: tuple[str, ...]) -> Dataset:
    coco = json.loads((folder / "detect.json").read_bytes())
    names = [category["name"] for category in sorted(coco["categories"], key=lambda category: int(category["id"]))]
    if list(labels[1:]) != names:  # class 0 is the background
        raise UnusableModel(f"the model's classes are {_some(labels)}; those of {folder} background, {_some(names)}")
    pictures = [folder / "images" / image["file_name"] for image in coco["images"]]
    samples = [_masked(folder, path, folder / "masks" / f"{path.stem}.png") for path in pictures]
    return _dataset(Layout.DEMO, folder, Task.SEGMENT, samples)


Reader = Callable[[Path, tuple[str, ...]], Dataset]
_READERS: Mapping[Layout, Mapping[Task, Reader]] = {
    Layout.IMAGENET: {Task.CLASSIFY: _imagenet},
    Layout.COCO: {Task.DETECT: _coco},
    Layout.VOC: {Task.SEGMENT: _voc},
    Layout.ADE20K: {Task.SEGMENT: _ade20k},
    Layout.DEMO: {Task.CLASSIFY: _demo_classify, Task.DETECT: _demo_detect, Task.SEGMENT: _demo_segment},
}


def _voc_root(folder: Path) -> Path | None:
    candidates = (folder, folder / "VOC2012", folder / "VOCdevkit" / "VOC2012")
    return next((c for c in candidates if (c / "ImageSets" / "Segmentation" / "val.txt").is_file()), None)


def _ade20k_root(folder: Path) -> Path | None:
    candidates = (folder, folder / "ADEChallengeData2016")
    return next((c for c in candidates if (c / "annotations" / "validation").is_dir()), None)


def _check_classes(labels: tuple[str, ...], classes: int, of_what: str) -> None:
    if len(labels) != classes:
        raise UnusableModel(f"the model knows {len(labels)} classes, {of_what} has {classes}")


def _pictures_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in _PICTURES)


def _masked(folder: Path, image: Path, mask: Path) -> Sample:
    return Sample(_key(image, folder), image, mask=mask)


def _key(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more


def _dataset(
    layout: Layout,
    folder: Path,
    task: Task,
    samples: Sequence[Sample],
    *,
    truth: Iterable[str] = (),
    zero_is_ignored: bool = False,
    coco: Mapping[str, Any] | None = None,
    categories: Mapping[int, int] | None = None,
) -> Dataset:
    """Check that every file is there, mix the order, and take the fingerprint."""
    total = hashlib.sha256("\n".join([layout, task, *truth]).encode())
    absent = []
    for sample in samples:
        for path in (sample.image, sample.mask):
            if path is not None and not path.is_file():
                absent.append(_key(path, folder))
            elif path is not None:
                total.update(f"\n{_key(path, folder)} {path.stat().st_size}".encode())
    if absent:
        raise UnusableDataset(f"{len(absent)} of the files that {folder} should hold are missing: {_some(absent)}")
    if len({sample.key for sample in samples}) != len(samples):
        raise UnusableDataset(f"{folder} lists a picture twice")
    mixed = sorted(samples, key=lambda sample: hashlib.sha256(sample.key.encode()).digest())
    return Dataset(
        layout=layout,
        folder=folder,
        task=task,
        samples=tuple(mixed),
        fingerprint=total.hexdigest(),
        zero_is_ignored=zero_is_ignored,
        coco=coco,
        categories=categories,
    )
