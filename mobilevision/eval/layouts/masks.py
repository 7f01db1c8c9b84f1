"""Layouts voc, ade20k and masks: pictures with a class map each, for the classes of any model.

    voc      JPEGImages/, SegmentationClass/, ImageSets/Segmentation/val.txt; here, in VOC2012/ or VOCdevkit/VOC2012/
    ade20k   images/validation/, annotations/validation/; or val. The value 1 is the model's first class, 0 is unknown
    masks    images/ and masks/, or img_dir/val and ann_dir/val; the value 0 is the model's first class

The values are the model's classes in their order. Where the folder lists names (class_names.txt, classes.txt or
labels.txt, one per line; or CVAT's labelmap.txt, "<name>:<red>,<green>,<blue>::"), classes become labels by name.
"""

from pathlib import Path

from mobilevision.eval.answers import NOTHING
from mobilevision.eval.dataset import Found, MaskValues, Options, Sample
from mobilevision.eval.errors import UnusableDataset, UnusableModel
from mobilevision.eval.files import Skipped, key_of, pictures_below, read_names
from mobilevision.eval.labels import match_all, short, some
from mobilevision.eval.layouts import SPLITS

COLOURS_FILE = "labelmap.txt"
NAMES_FILES = ("class_names.txt", "classes.txt", "labels.txt")
_VOC_CLASSES = 21
_ADE20K_CLASSES = 150
_VALUES = 256


def voc_root(folder: Path) -> Path | None:
    """The folder with ImageSets, None where there is none."""
    candidates = (folder, folder / "VOC2012", folder / "VOCdevkit" / "VOC2012")
    return next((c for c in candidates if _voc_list(c) is not None), None)


def ade20k_places(folder: Path) -> tuple[Path, Path] | None:
    """The folders of the pictures and of the masks, None where there are none."""
    for root in (folder, folder / "ADEChallengeData2016"):
        for split in ("validation", "val", "valid", "test"):
            places = root / "images" / split, root / "annotations" / split
            if all(place.is_dir() for place in places):
                return places
    return None


def masks_places(folder: Path) -> tuple[Path, Path] | None:
    """As `ade20k_places`, of layout masks."""
    for images, masks in (("images", "masks"), ("img_dir", "ann_dir"), ("images", "annotations")):
        for split in (*SPLITS, "."):
            places = folder / images / split, folder / masks / split
            if places[0].is_dir() and places[1].is_dir() and any(places[1].rglob("*.png")):
                return places
    return None


def read_voc(folder: Path, labels: tuple[str, ...], options: Options) -> Found:
    """Read the pictures that val.txt lists. Raises `UnusableDataset`, `UnusableModel`, OSError."""
    root = voc_root(folder)
    listing = None if root is None else _voc_list(root)
    if root is None or listing is None:
        raise UnusableDataset(f"{folder} has no ImageSets/Segmentation/val.txt")
    values, named = _values(root, labels, options, first_class=0)
    pictures, skipped = pictures_below(root / "JPEGImages", folder)
    by_stem = {path.stem: path for path in pictures}
    samples = []
    absent = []
    for line in read_names(listing):
        path = by_stem.get(line.split()[0])
        mask = None if path is None else root / "SegmentationClass" / f"{path.stem}.png"
        if path is None or mask is None or not mask.is_file():
            absent.append(line.split()[0])
        else:
            samples.append(Sample(key_of(path, folder), path, mask=mask))
    if absent:
        raise UnusableDataset(
            f"{len(absent)} of the names in {key_of(listing, folder)} have no picture in JPEGImages, or no mask in "
            f"SegmentationClass: {some(absent)}"
        )
    public = not named and listing.name == "val.txt" and len(labels) == _VOC_CLASSES
    return _found(samples, skipped, values, labels, public=public)


def read_ade20k(folder: Path, labels: tuple[str, ...], options: Options) -> Found:
    """Read pictures and masks of the same name. Raises `UnusableDataset`, `UnusableModel`, OSError."""
    places = ade20k_places(folder)
    if places is None:
        raise UnusableDataset(f"{folder} has no images/validation and annotations/validation")
    values, named = _values(places[1].parent.parent, labels, options, first_class=1)
    samples, skipped = _pairs(folder, *places)
    public = not named and options.first_class is None and len(labels) == _ADE20K_CLASSES
    return _found(samples, skipped, values, labels, public=public)


def read_masks(folder: Path, labels: tuple[str, ...], options: Options) -> Found:
    """Read pictures and masks of the same name. Raises `UnusableDataset`, `UnusableModel`, OSError."""
    places = masks_places(folder)
    if places is None:
        raise UnusableDataset(f"{folder} has no images/ and masks/ with PNG files")
    values, _ = _values(folder, labels, options, first_class=0)
    samples, skipped = _pairs(folder, *places)
    return _found(samples, skipped, values, labels)


def plain_values(labels: tuple[str, ...], options: Options, *, first_class: int) -> MaskValues:
    """The values of masks without a list of names. Raises `UnusableModel` where a byte cannot hold them."""
    first = first_class if options.first_class is None else options.first_class
    if len(labels) > NOTHING or first + len(labels) > _VALUES:
        raise UnusableModel(f"the model knows {len(labels)} classes; masks of 8 bits hold {_VALUES - 1 - first} here")
    of_value = dict.fromkeys(range(first), NOTHING) | {first + label: label for label in range(len(labels))}
    return MaskValues(of_value | {options.ignore_index: NOTHING}, {})


def _found(
    samples: list[Sample], skipped: list[Skipped], values: MaskValues, labels: tuple[str, ...], *, public: bool = False
) -> Found:
    of_value = sorted(values.of_value.items())
    unknown = [str(value) for value, label in of_value if label == NOTHING]
    first = next(((value, label) for value, label in of_value if label != NOTHING), None)
    classes = "" if first is None else f"value {first[0]} is {short(labels[first[1]])}, "
    truth = [str(of_value), str(sorted(values.of_colour.items()))]
    note = f"masks: {classes}{some(unknown)} {'is' if len(unknown) == 1 else 'are'} unknown"
    if values.of_colour:
        note += f", {len(values.of_colour)} colours have a class"
    return Found(samples, truth=truth, public=public, mask_values=values, skipped=skipped, notes=[note])


def _voc_list(root: Path) -> Path | None:
    places = [root / "ImageSets" / "Segmentation" / f"{split}.txt" for split in (*SPLITS, "default")]
    return next((path for path in places if path.is_file()), None)


def _pairs(folder: Path, images: Path, masks: Path) -> tuple[list[Sample], list[Skipped]]:
    """Pictures and masks of the same path without the ending. What has no partner is skipped."""
    pictures, skipped = pictures_below(images, folder)
    maps, others = pictures_below(masks, folder)
    skipped += others
    by_name = {path.relative_to(masks).with_suffix("").as_posix(): path for path in maps}
    samples = []
    for path in pictures:
        mask = by_name.pop(path.relative_to(images).with_suffix("").as_posix(), None)
        if mask is None:
            skipped.append(Skipped(key_of(path, folder), "no mask of this name"))
        else:
            samples.append(Sample(key_of(path, folder), path, mask=mask))
    skipped += [Skipped(key_of(path, folder), "mask without a picture") for path in by_name.values()]
    return samples, skipped


def _values(root: Path, labels: tuple[str, ...], options: Options, *, first_class: int) -> tuple[MaskValues, bool]:
    """How masks are read, and whether the folder lists names."""
    source = next((root / name for name in (COLOURS_FILE, *NAMES_FILES) if (root / name).is_file()), None)
    if source is None:
        return plain_values(labels, options, first_class=first_class), False
    rows = [_name_and_colour(source, line) for line in read_names(source) if not line.startswith("#")]
    if not 0 < len(rows) < _VALUES:
        raise UnusableDataset(f"{source} lists {len(rows)} classes; from 1 to {_VALUES - 1} are possible")
    if len({name for name, _ in rows}) < len(rows):
        raise UnusableDataset(f"{source} lists a name twice")
    by_name = match_all([name for name, _ in rows], labels, f"classes of {source}")
    first = first_class if options.first_class is None else options.first_class
    of_value = dict.fromkeys(range(first), NOTHING) | {
        first + index: by_name[name] for index, (name, _) in enumerate(rows)
    }
    of_colour = {colour: by_name[name] for name, colour in rows if colour is not None}
    return MaskValues(of_value | {options.ignore_index: NOTHING}, of_colour), True


def _name_and_colour(source: Path, line: str) -> tuple[str, tuple[int, int, int] | None]:
    if source.name != COLOURS_FILE:
        return line, None
    name, _, rest = line.partition(":")
    values = rest.partition(":")[0].split(",")
    if len(values) != 3 or not all(v.strip().isdecimal() and len(v.strip()) < 4 and int(v) < _VALUES for v in values):
        raise UnusableDataset(f"{source}: {short(line)!r}; '<name>:<red>,<green>,<blue>::' is needed")
    red, green, blue = (int(value) for value in values)
    return name.strip(), (red, green, blue)
