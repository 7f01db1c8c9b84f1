"""Agreement of two versions, on outputs made by hand."""

import numpy as np
import pytest

from handlers.contract.card import Task
from handlers.contract.frame import Array
from service.core.types import Geometry
from service.serving.agreement import ModelOutput
from service.serving.tasks import TASKS

WHOLE = Geometry(width_px=100, height_px=100, x0=0, y0=0, x1=100, y1=100)
LEFT = Geometry(width_px=100, height_px=100, x0=0, y0=0, x1=50, y1=100)


def agreement(task: Task, one: ModelOutput, other: ModelOutput) -> float:
    return TASKS[task].agreement(one, other)


def test_every_task_has_its_own_metric() -> None:
    assert TASKS.keys() == set(Task)
    assert [TASKS[task].metric for task in Task] == ["top1", "box_f1", "miou"]


def found(
    *boxes: tuple[float, ...], labels: tuple[int, ...], scores: tuple[float, ...], place: Geometry = WHOLE
) -> ModelOutput:
    padded = np.zeros((5, 4), np.float32)
    padded[: len(boxes)] = np.array(boxes, np.float32).reshape(-1, 4)
    outputs = {
        "boxes": padded,
        "scores": np.array([*scores, *[0.0] * (5 - len(boxes))], np.float32),
        "labels": np.array([*labels, *[0] * (5 - len(boxes))], np.int32),
        "counts": np.int32(len(boxes)),
    }
    return ModelOutput(outputs, place)  # type: ignore[arg-type]


def painted(classes: Array, place: Geometry = WHOLE) -> ModelOutput:
    return ModelOutput({"classes": classes.astype(np.uint8)}, place)


def test_the_best_class_counts() -> None:
    def seen(*labels: int) -> ModelOutput:
        return ModelOutput({"labels": np.array(labels, np.int32)}, WHOLE)

    assert agreement(Task.CLASSIFY, seen(3, 1), seen(3, 2)) == 1
    assert agreement(Task.CLASSIFY, seen(3, 1), seen(1, 3)) == 0


def test_boxes_pair_once_by_label_and_overlap() -> None:
    one = found((0, 0, 0.5, 0.5), (0.5, 0.5, 1, 1), labels=(1, 2), scores=(0.9, 0.8))
    assert agreement(Task.DETECT, one, one) == 1
    # One of two has another label: one pair of four boxes.
    other = found((0, 0, 0.5, 0.5), (0.5, 0.5, 1, 1), labels=(1, 3), scores=(0.9, 0.8))
    assert agreement(Task.DETECT, one, other) == pytest.approx(0.5)
    # Two boxes on one: only one of them has it.
    twice = found((0, 0, 0.5, 0.5), (0, 0, 0.5, 0.5), labels=(1, 1), scores=(0.9, 0.8))
    once = found((0, 0, 0.5, 0.5), labels=(1,), scores=(0.9,))
    assert agreement(Task.DETECT, twice, once) == pytest.approx(2 / 3)
    shifted = found((0.3, 0, 0.8, 0.5), labels=(1,), scores=(0.9,))  # IoU 0.25
    assert agreement(Task.DETECT, once, shifted) == 0


def test_boxes_that_callers_do_not_see_do_not_count() -> None:
    nothing = found(labels=(), scores=())
    doubtful = found((0, 0, 0.5, 0.5), labels=(1,), scores=(0.2,))
    sure = found((0, 0, 0.5, 0.5), labels=(1,), scores=(0.4,))
    assert agreement(Task.DETECT, nothing, doubtful) == 1
    assert agreement(Task.DETECT, nothing, sure) == 0


def test_boxes_are_compared_in_the_picture() -> None:
    whole = found((0, 0, 0.5, 1), labels=(1,), scores=(0.9,))
    half = found((0, 0, 1, 1), labels=(1,), scores=(0.9,), place=LEFT)
    assert agreement(Task.DETECT, whole, half) == 1


def test_class_maps_agree_by_mean_iou() -> None:
    one = np.zeros((4, 4))
    one[:, 2:] = 1
    assert agreement(Task.SEGMENT, painted(one), painted(one)) == 1
    other = one.copy()
    other[:, 2] = 0  # class 0: 8 of 12, class 1: 4 of 8
    assert agreement(Task.SEGMENT, painted(one), painted(other)) == pytest.approx((8 / 12 + 4 / 8) / 2)


def test_class_maps_of_other_sizes_and_crops_are_compared_where_both_saw() -> None:
    one = np.zeros((4, 4))
    one[:, 2:] = 1
    assert agreement(Task.SEGMENT, painted(one), painted(one.repeat(3, 0).repeat(3, 1))) == 1
    assert agreement(Task.SEGMENT, painted(one), painted(np.zeros((8, 8)), LEFT)) == 1
    assert agreement(Task.SEGMENT, painted(one), painted(np.ones((8, 8)), LEFT)) == 0
