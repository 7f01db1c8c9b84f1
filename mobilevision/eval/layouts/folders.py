"""Layout imagenet: one folder per class, in `val/` (or valid, validation, test) or in the folder itself.

Or pictures without class folders and `val_map.txt` with "<picture> <class>" on each line. A class becomes the label of
the first rule that applies: the model's label of that name; its number, where all names are numbers; its line in
LOC_synset_mapping.txt; with as many WordNet ids as labels, its place in ascending order (as torchvision reads them).
"""

import re
from pathlib import Path

from mobilevision.eval.dataset import Found, Options, Sample
from mobilevision.eval.errors import UnusableDataset, UnusableModel
from mobilevision.eval.files import Skipped, inside, key_of, pictures_below, read_names
from mobilevision.eval.labels import match, match_all, some
from mobilevision.eval.layouts import SPLITS

SYNSETS_FILE = "LOC_synset_mapping.txt"
LISTING = "val_map.txt"
_WORDNET_ID = re.compile(r"n\d+")
_IMAGENET_CLASSES = 1000


def read(folder: Path, labels: tuple[str, ...], options: Options) -> Found:
    """Read the pictures and their labels. Raises `UnusableDataset`, `UnusableModel`, OSError."""
    top = split_of(folder)
    listing = next((path for path in (folder / LISTING, top / LISTING) if path.is_file()), None)
    rows, skipped = _in_folders(folder, top) if listing is None else (_listed(folder, top, listing), [])
    of_class, are_wordnet_ids = _labels_of(folder, {name for _, name in rows}, labels)
    samples = [Sample(key_of(path, folder), path, label=of_class[name]) for path, name in rows]
    without = sorted(set(range(len(labels))) - set(of_class.values()))
    notes = [f"labels without a picture: {some(labels[number] for number in without)}"] if without else []
    return Found(
        samples,
        truth=[f"{sample.key} {sample.label}" for sample in sorted(samples, key=lambda sample: sample.key)],
        public=are_wordnet_ids and len(labels) == _IMAGENET_CLASSES,
        skipped=skipped,
        notes=notes,
    )


def split_of(folder: Path) -> Path:
    """The folder with the class folders. Raises `UnusableDataset` where there are training pictures only."""
    for name in SPLITS:
        top = folder / name
        listed = (folder / LISTING).is_file() or (top / LISTING).is_file()
        if top.is_dir() and (listed or has_folders(top)):
            return top
    if has_folders(folder / "train") and not any(path.name != "train" for path in _folders(folder)):
        raise UnusableDataset(
            f"{folder} has no {', '.join(SPLITS)}; to measure on the training pictures, name {folder / 'train'}"
        )
    return folder


def has_folders(folder: Path) -> bool:
    """Whether there are folders in the folder."""
    return folder.is_dir() and bool(_folders(folder))


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _in_folders(folder: Path, top: Path) -> tuple[list[tuple[Path, str]], list[Skipped]]:
    rows, skipped = [], []
    for path in top.iterdir():
        if path.is_dir() and not path.name.startswith("."):
            pictures, others = pictures_below(path, folder)
            rows += [(picture, path.name) for picture in pictures]
            skipped += others
        elif not path.is_dir():
            skipped.append(Skipped(key_of(path, folder), "in no class folder"))
    return rows, skipped


def _listed(folder: Path, top: Path, listing: Path) -> list[tuple[Path, str]]:
    rows = []
    for number, line in enumerate(read_names(listing), 1):
        name, _, label = line.partition(" ") if " " in line else line.partition("\t")
        if not label.strip():
            raise UnusableDataset(f"{listing}, entry {number}: '<picture> <class>' is needed, not {line[:60]!r}")
        rows.append((inside(folder, top, name), label.strip()))
    return rows


def _labels_of(folder: Path, classes: set[str], labels: tuple[str, ...]) -> tuple[dict[str, int], bool]:
    """The label of each class, and whether the classes are WordNet ids."""
    if len(match(classes, labels)) == len(classes):
        return match_all(classes, labels, f"classes of {folder}"), False
    if all(name.isdecimal() and int(name) < len(labels) for name in classes):
        return {name: int(name) for name in classes}, False
    are_wordnet_ids = all(_WORDNET_ID.fullmatch(name) for name in classes)
    synsets = folder / SYNSETS_FILE
    if synsets.is_file():
        order = [line.split(maxsplit=1)[0] for line in read_names(synsets)]
        if len(order) != len(labels):
            raise UnusableModel(f"{synsets} lists {len(order)} classes, the model knows {len(labels)}")
        if unknown := sorted(classes - set(order)):
            raise UnusableDataset(f"classes that are not in {synsets}: {some(unknown)}")
        return {name: order.index(name) for name in classes}, are_wordnet_ids
    if not are_wordnet_ids:
        return match_all(classes, labels, f"classes of {folder}"), False
    if len(classes) != len(labels):
        raise UnusableModel(
            f"{folder} has {len(classes)} classes, the model knows {len(labels)}, and the names differ; if the folder "
            f"holds some classes of ImageNet only, put {SYNSETS_FILE} (it comes with ILSVRC) into it"
        )
    return {name: index for index, name in enumerate(sorted(classes))}, True
