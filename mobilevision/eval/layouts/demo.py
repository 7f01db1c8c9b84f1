"""Layout demo: the output of `mobilevision models demo-data`.

images/*.jpg with detect.json (as COCO) and masks/*.png; classify.json:
{"labels": [...], "images": [{"file": "classify/...", "label": <index>}]}.
"""

from pathlib import Path

from mobilevision.eval.dataset import Found, Options, Sample
from mobilevision.eval.errors import UnusableModel
from mobilevision.eval.files import inside, key_of, read_json
from mobilevision.eval.labels import match_all, some
from mobilevision.eval.layouts import coco
from mobilevision.eval.layouts.masks import plain_values


def read_classify(folder: Path, labels: tuple[str, ...], options: Options) -> Found:
    """Read classify.json. Raises `UnusableDataset`, `UnusableModel`, and KeyError, TypeError or IndexError."""
    content = read_json(folder / "classify.json")
    names = [str(name) for name in content["labels"]]
    numbers = match_all(names, labels, f"labels of {folder / 'classify.json'}")
    samples = []
    for image in content["images"]:
        path = inside(folder, folder, image["file"])
        samples.append(Sample(key_of(path, folder), path, label=numbers[names[image["label"]]]))
    return Found(samples, truth=[str(sample.label) for sample in samples])


def read_detect(folder: Path, labels: tuple[str, ...], options: Options) -> Found:
    """Read detect.json. Raises `UnusableDataset`, `UnusableModel`, OSError."""
    return coco.read_file(folder, folder / "detect.json", labels, pictures=folder / "images")


def read_segment(folder: Path, labels: tuple[str, ...], options: Options) -> Found:
    """Read detect.json and the masks. Raises `UnusableDataset`, `UnusableModel`, OSError."""
    images, _, named = coco.parse(folder / "detect.json")
    names = [name for _, name in sorted(named)]
    if list(labels[1:]) != names:  # class 0 is the background
        raise UnusableModel(f"the model's classes are {some(labels)}; those of {folder} background, {some(names)}")
    samples = []
    for image in images:
        path = inside(folder, folder / "images", image["file_name"])
        samples.append(Sample(key_of(path, folder), path, mask=folder / "masks" / f"{path.stem}.png"))
    return Found(samples, mask_values=plain_values(labels, options, first_class=0))
