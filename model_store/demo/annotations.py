"""A scene's shapes in COCO's form. Category id i + 1 is label i; boxes are (x, y, width, height) in pixels."""

from typing import Any

import numpy as np

from model_store.demo import dataset
from model_store.demo.dataset import Scene


def categories() -> list[dict[str, Any]]:
    """COCO's list of categories for the demo labels."""
    return [{"id": label + 1, "name": name, "supercategory": "shape"} for label, name in enumerate(dataset.LABELS)]


def of(scene: Scene, *, picture_id: int, first_id: int) -> list[dict[str, Any]]:
    """COCO's annotations of a scene, numbered from `first_id`; the area counts visible pixels."""
    rows = []
    for position, shape in enumerate(scene.shapes):
        x0, y0, x1, y1 = shape.box
        rows.append(
            {
                "id": first_id + position,
                "image_id": picture_id,
                "category_id": shape.label + 1,
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "area": int(np.count_nonzero(scene.instances == position + 1)),
                "iscrowd": 0,
            }
        )
    return rows
