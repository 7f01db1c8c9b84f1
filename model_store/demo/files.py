"""Write the held-out pictures as files that other tools read.

    images/shapes_00000.jpg ...     pictures of several shapes
    detect.json                     COCO instances: boxes of the above
    masks/shapes_00000.png ...      PASCAL VOC style palette PNG: 0 background, 1 + label, as large as the picture
    classify/<label>/00000.jpg ...  pictures of one shape, in the folder of their class as ImageNet's
    classify.json                   {"labels": [...], "images": [{"file": "classify/...", "label": 0}, ...]}

Labels are numbered as in the answers of the demo models (`labels/demo_shapes.txt`); COCO's category ids are one higher.
Masks have no pixel 255 (ignored): the truth is known everywhere.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from model_store.demo import annotations, dataset
from model_store.demo.dataset import Split


def write(
    folder: Path, *, pictures: int, seed: int, split: Split = "held_out", advance: Callable[[], None] = lambda: None
) -> None:
    """Write the first `pictures` pictures of several shapes, and as many of one, into `folder`.

    Args:
        folder: made if needed; files of an earlier call are written over.
        pictures: of each kind, 1 or more.
        seed: of the data set.
        split: of the data set.
        advance: called after each picture, twice `pictures` times in all.

    """
    for sub in ("images", "masks", *(f"classify/{name}" for name in dataset.LABELS)):
        (folder / sub).mkdir(parents=True, exist_ok=True)
    truth: dict[str, Any] = {
        "info": {"description": "mobilevision demo shapes", "seed": seed, "split": split},
        "licenses": [{"id": 1, "name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"}],
        "images": [],
        "annotations": [],
        "categories": annotations.categories(),
    }
    for index in range(pictures):
        scene = dataset.draw(seed=seed, split=split, index=index, kind="scene")
        name = f"shapes_{index:05d}"
        (folder / "images" / f"{name}.jpg").write_bytes(scene.jpeg)
        mask = Image.fromarray(scene.classes)
        mask.putpalette(voc_palette())
        mask.save(folder / "masks" / f"{name}.png", optimize=True)
        height, width = scene.classes.shape
        truth["images"].append(
            {"id": index, "file_name": f"{name}.jpg", "width": width, "height": height, "license": 1}
        )
        truth["annotations"] += annotations.of(scene, picture_id=index, first_id=len(truth["annotations"]) + 1)
        advance()
    (folder / "detect.json").write_text(json.dumps(truth))
    singles: list[dict[str, Any]] = []
    for index in range(pictures):
        scene = dataset.draw(seed=seed, split=split, index=index, kind="single")
        file = f"classify/{dataset.LABELS[scene.label]}/{index:05d}.jpg"
        (folder / file).write_bytes(scene.jpeg)
        singles.append({"file": file, "label": scene.label})
        advance()
    (folder / "classify.json").write_text(json.dumps({"labels": list(dataset.LABELS), "images": singles}))


def voc_palette() -> bytes:
    """256 RGB triples of the PASCAL VOC development kit: the bits of the index, spread over the channels' high bits."""
    palette = bytearray()
    for index in range(256):
        rgb = [0, 0, 0]
        rest, shift = index, 7
        while rest:
            for channel in range(3):
                rgb[channel] |= ((rest >> channel) & 1) << shift
            rest >>= 3
            shift -= 1
        palette += bytes(rgb)
    return bytes(palette)
