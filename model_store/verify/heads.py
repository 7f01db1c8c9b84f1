"""Choose the comparison for a golden file of a head or of boxes (fields `what`, `source` and `model`).

In: the content of a golden file. Out: a list of `Check`. Weights go through the loader, as for backbones. Tolerances
are those of the README beside the files: raw outputs 2e-4 absolute (5e-5 of their standard deviation in the files of
pyramids), scores 1e-4, boxes 1e-4 (fractions) or 0.05 (pixels), class maps equal in 99.9 % of pixels. Detections and
class maps are compared on `lively` cases only. In the other cases the outputs hardly depend on the picture, so that
rounding decides which class is best.
"""

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from handlers.contract.card import Task
from model_store import zoo
from model_store.verify.boxes import check_boxops
from model_store.verify.detectors import (
    check_box_coder,
    check_postprocess,
    check_ssdlite,
    check_torchvision_boxes,
    check_torchvision_postprocess,
)
from model_store.verify.golden import Check, GoldenError
from model_store.verify.pyramids import check_pspnet, check_semantic_fpn
from model_store.verify.retinanet import check_operations, check_retinanet, check_retinanet_postprocess
from model_store.verify.segmenters import check_deeplabv3

_CVNETS = {"ml-cvnets", "transformers"}
_EMO = {"EMO down-stream-tasks/mmdetection", "EMO down-stream-tasks/mmsegmentation"}


# How `what` begins in the files that need no network.
_BOXES: Mapping[str, Callable[[Mapping[str, Any]], list[Check]]] = MappingProxyType(
    {
        "IoU, greedy NMS": check_boxops,
        "EMO/mmdetection SSD anchors": check_box_coder,
        "torchvision default boxes": check_torchvision_boxes,
        "RetinaNet: ": check_retinanet_postprocess,
        "RetinaNet and RPN anchors": check_operations,
    }
)

# The same for the files of a whole network, with the task of the entry that they are about.
_NETWORKS: Mapping[str, tuple[Task, Callable[[Mapping[str, Any], zoo.ModelSpec], list[Check]]]] = MappingProxyType(
    {"SSDLite": (Task.DETECT, check_ssdlite), "DeepLabv3": (Task.SEGMENT, check_deeplabv3)}
)

# Likewise with the name of the head in that of the entry. These come first: some names of projects are those above.
_PYRAMIDS: Mapping[str, tuple[str, Callable[[Mapping[str, Any], zoo.ModelSpec], list[Check]]]] = MappingProxyType(
    {
        "RetinaNet, ": ("retinanet", check_retinanet),
        "PSPNet, ": ("pspnet", check_pspnet),
        "Semantic FPN, ": ("semantic_fpn", check_semantic_fpn),
    }
)


def check_heads(content: Mapping[str, Any]) -> list[Check]:
    """All checks of a head file. Raises `GoldenError` for a project or backbone that is not here."""
    what = str(content["what"])
    for beginning, check in _BOXES.items():
        if what.startswith(beginning):
            return check(content)
    for beginning, (head, check_pyramid) in _PYRAMIDS.items():
        if what.startswith(beginning):
            return check_pyramid(content, _entry(content, head))
    project = content["source"].get("project", "")
    if project == "torchvision" and "synthetic" in content:
        return check_torchvision_postprocess(content)
    if project not in _CVNETS | _EMO:
        raise GoldenError(f"no model of the project {project!r} is here ({what})")
    if "synthetic" in content:
        return check_postprocess(content)
    for beginning, (task, check_network) in _NETWORKS.items():
        if what.startswith(beginning):
            return check_network(content, _entry(content, task.value))
    raise GoldenError(f"no head is called {what!r} here")


def _entry(content: Mapping[str, Any], last: str) -> zoo.ModelSpec:
    """The entry of the zoo that the file is about: EMO's files name their variant in the configuration's name only.

    `last` is the end of the entry's name: its task or its head.
    """
    if "variant" in content["source"]:
        backbone = f"swiftformer_{str(content['source']['variant']).lower()}"
    elif content["source"]["project"] in _EMO:
        found = re.search(r"_emo_(\d+M)_", content["source"]["config"])
        backbone = f"emo_{found[1].lower()}" if found else "emo"
    else:
        backbone = str(content["model"]["backbone"])
    try:
        return zoo.get(f"{backbone}_{last}")
    except zoo.UnknownModel as error:
        raise GoldenError(str(error)) from error
