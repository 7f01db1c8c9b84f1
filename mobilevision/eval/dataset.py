"""A data set of one task with its truth in the labels of one model: the types, and what holds for every layout.

The order of the samples depends only on their names and mixes all classes, so that the first N samples are a fair
selection.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Any

from mobilevision.eval.errors import UnusableDataset
from mobilevision.eval.files import Skipped, key_of
from mobilevision.eval.labels import some
from mobilevision.tasks import Task


class Layout(StrEnum):
    """The layout of a data set on disk."""

    IMAGENET = "imagenet"
    COCO = "coco"
    YOLO = "yolo"
    VOC = "voc"
    ADE20K = "ade20k"
    MASKS = "masks"
    DEMO = "demo"


@dataclass(frozen=True, slots=True)
class Options:
    """What a folder cannot say itself. `first_class`: value of the model's first class in the masks, None for that of
    the layout. `ignore_index`: value of pixels of unknown class.
    """

    first_class: int | None = None
    ignore_index: int = 255


@dataclass(frozen=True, slots=True)
class Sample:
    """One picture and its truth. By task that is `label`, the COCO `image_id`, or the file `mask` with a class map."""

    key: str  # path below the folder of the data set
    image: Path
    label: int = -1
    image_id: int = -1
    mask: Path | None = None


@dataclass(frozen=True, slots=True)
class MaskValues:
    """How masks are read. `of_value` maps a value to a label, or to 255 where the class is unknown.

    Where `of_colour` has entries, it does the same for the RGB colours of masks in colours or with a palette.
    """

    of_value: Mapping[int, int]
    of_colour: Mapping[tuple[int, int, int], int]


@dataclass(frozen=True)
class Dataset:
    """A data set, with its truth in the labels of one model.

    `coco` holds the annotations as pycocotools needs them, and `categories` maps a label to its category id; both for
    detection only. `mask_values` is for segmentation only. `public` is whether it is the data that papers publish their
    scores for. `skipped` lists the files that take no part, `notes` says what else to know.
    `fingerprint` changes with the names and sizes of the files, the annotations and the truth read from them.
    """

    layout: Layout
    folder: Path
    task: Task
    samples: tuple[Sample, ...]
    fingerprint: str
    public: bool = False
    mask_values: MaskValues | None = None
    coco: Mapping[str, Any] | None = None
    categories: Mapping[int, int] | None = None
    skipped: tuple[Skipped, ...] = ()
    notes: tuple[str, ...] = ()

    def boxes_of(self, sample: Sample) -> Sequence[Mapping[str, Any]]:
        """The annotations of one picture."""
        return self._boxes.get(sample.image_id, [])

    @cached_property
    def _boxes(self) -> Mapping[int, list[Mapping[str, Any]]]:
        found: dict[int, list[Mapping[str, Any]]] = {}
        for row in (self.coco or {}).get("annotations", ()):
            found.setdefault(row["image_id"], []).append(row)
        return found

    @property
    def skipped_by_reason(self) -> Mapping[str, int]:
        """Number of skipped files per reason, most frequent first."""
        return dict(Counter(skipped.why for skipped in self.skipped).most_common())


@dataclass(frozen=True, slots=True)
class Found:
    """What a layout read from a folder, before the checks that hold for every layout. Fields as in `Dataset`.

    `truth` are texts that decide the truth beside the files' names and sizes.
    """

    samples: Sequence[Sample]
    truth: Iterable[str] = ()
    public: bool = False
    mask_values: MaskValues | None = None
    coco: Mapping[str, Any] | None = None
    categories: Mapping[int, int] | None = None
    skipped: Sequence[Skipped] = ()
    notes: Sequence[str] = ()


def checked(layout: Layout, folder: Path, task: Task, found: Found) -> Dataset:
    """Check that every file exists, mix the order, and compute the fingerprint. Raises `UnusableDataset`."""
    total = hashlib.sha256("\n".join([layout, task, *found.truth]).encode())
    absent = []
    for sample in found.samples:
        for path in (sample.image, sample.mask):
            if path is not None and not path.is_file():
                absent.append(key_of(path, folder))
            elif path is not None:
                total.update(f"\n{key_of(path, folder)} {path.stat().st_size}".encode())
    if absent:
        raise UnusableDataset(f"{len(absent)} of the files that {folder} should hold are missing: {some(absent)}")
    twice = [key for key, count in Counter(sample.key for sample in found.samples).items() if count > 1]
    if twice:
        raise UnusableDataset(f"{folder} lists a picture twice: {some(twice)}")
    if not found.samples:
        counts = ", ".join(f"{count} {why}" for why, count in Counter(s.why for s in found.skipped).most_common(3))
        skipped = f"; skipped files: {counts}" if counts else ""
        raise UnusableDataset(f"{folder} holds no pictures with truth in layout {layout}{skipped}")
    mixed = sorted(found.samples, key=lambda sample: hashlib.sha256(sample.key.encode()).digest())
    return Dataset(
        layout=layout,
        folder=folder,
        task=task,
        samples=tuple(mixed),
        fingerprint=total.hexdigest(),
        public=found.public,
        mask_values=found.mask_values,
        coco=found.coco,
        categories=found.categories,
        skipped=tuple(sorted(found.skipped, key=lambda skipped: skipped.file)),
        notes=tuple(found.notes),
    )
