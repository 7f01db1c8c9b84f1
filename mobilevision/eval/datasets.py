"""Data sets on disk: a folder in one of the usual layouts in, pictures with their truth in the model's labels out.

docs/eval.md shows the layouts; each module in `layouts` reads one kind. Only annotations and lists are parsed here.
Of pictures at most the header is read, and of segmentation data sets some masks (`masks.check_some`). The folder is
never written to.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from mobilevision.eval import masks as truth_masks
from mobilevision.eval.dataset import Dataset, Found, Layout, Options, Sample, checked
from mobilevision.eval.errors import UnusableDataset
from mobilevision.eval.layouts import coco, demo, folders, masks, yolo
from mobilevision.tasks import Task

__all__ = ["Dataset", "Layout", "Options", "Sample", "detect", "read"]

Reader = Callable[[Path, tuple[str, ...], Options], Found]
_READERS: Mapping[Layout, Mapping[Task, Reader]] = {
    Layout.IMAGENET: {Task.CLASSIFY: folders.read},
    Layout.COCO: {Task.DETECT: coco.read},
    Layout.YOLO: {Task.DETECT: yolo.read},
    Layout.VOC: {Task.SEGMENT: masks.read_voc},
    Layout.ADE20K: {Task.SEGMENT: masks.read_ade20k},
    Layout.MASKS: {Task.SEGMENT: masks.read_masks},
    Layout.DEMO: {
        Task.CLASSIFY: demo.read_classify,
        Task.DETECT: demo.read_detect,
        Task.SEGMENT: demo.read_segment,
    },
}


def read(
    folder: Path,
    *,
    task: Task,
    labels: Sequence[str],
    layout: Layout | None = None,
    options: Options | None = None,
) -> Dataset:
    """Read a data set for a model with these `labels`. Without a `layout` the folder decides it (`detect`).

    Raises `UnusableDataset`, `UnusableModel` where the data set has other labels than the model, and `PackageMissing`.
    """
    if not folder.is_dir():
        raise UnusableDataset(f"{folder}: no such folder; name the folder of the data set")
    try:
        chosen = layout or detect(folder, task)
        readers = _READERS[chosen]
        if task not in readers:
            raise UnusableDataset(f"layout {chosen} has no truth for {task}, only for {', '.join(readers)}")
        dataset = checked(chosen, folder, task, readers[task](folder, tuple(labels), options or Options()))
        truth_masks.check_some(dataset, classes=len(labels))
    except (OSError, ValueError, LookupError, TypeError, ArithmeticError) as error:
        raise UnusableDataset(f"{folder} cannot be read: {type(error).__name__}: {error}") from error
    return dataset


def detect(folder: Path, task: Task) -> Layout:
    """The layout of a folder, of several the one with truth for the task.

    Raises `UnusableDataset` where the folder has none of them, and OSError.
    """
    found = {
        Layout.DEMO: (folder / "classify.json").is_file() or (folder / "detect.json").is_file(),
        Layout.COCO: coco.has_annotations(folder),
        Layout.YOLO: yolo.has_labels(folder),
        Layout.VOC: masks.voc_root(folder) is not None,
        Layout.ADE20K: masks.ade20k_places(folder) is not None,
        Layout.MASKS: masks.masks_places(folder) is not None,
    }
    matching = [layout for layout, matches in found.items() if matches]
    if not matching and folders.has_folders(folder / "val" if task is not Task.CLASSIFY else folder):
        matching = [Layout.IMAGENET]
    fitting = [layout for layout in matching if task in _READERS[layout]]
    if not matching:
        raise UnusableDataset(f"{folder} has none of the layouts {', '.join(Layout)}; docs/eval.md shows them")
    if not fitting:
        raise UnusableDataset(f"{folder} has layout {matching[0]}, which has no truth for {task}")
    return fitting[0]
