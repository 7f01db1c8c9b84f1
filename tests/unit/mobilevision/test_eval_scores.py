"""Scores against figures worked out by hand, and against pycocotools asked directly."""

import contextlib
import io
from pathlib import Path

import eval_sets
import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mobilevision.eval import datasets, scores
from mobilevision.eval.answers import NOTHING, Boxes, Found, Outcome, Overlap, Pixels, Top
from mobilevision.eval.errors import PackageMissing
from mobilevision.tasks import Task

LABELS = eval_sets.LABELS


def test_top_1_and_top_5() -> None:
    rows = [(3, Top((3, 1, 2, 4, 5))), (3, Top((1, 2, 4, 5, 3))), (3, Top((1, 2, 4, 5, 6))), (3, Top())]
    found = scores.top_k(rows, ("a", "b", "c", "d"))
    assert found.values == {"top1": 25.0, "top5": 50.0}
    assert (found.per_class, found.truth) == ({"d": 25.0}, {"d": 4})


def test_mean_iou_by_hand() -> None:
    truth = np.array([[0, 0, 1, 1], [0, 0, 1, NOTHING]], np.uint8)
    answer = np.array([[0, 1, 1, 1], [0, NOTHING, 0, 0]], np.uint8)
    pixels = scores.overlap(truth, answer, classes=3)
    # Class 0: 2 right; 4 true, 3 answered (the pixel of unknown truth is not counted): union 5. Class 1: 2 right; 3 and
    # 3: union 4. Class 2 occurs nowhere and is left out. 4 of 7 pixels are right.
    found = scores.mean_iou([pixels], LABELS)
    assert found.per_class == {"dark": pytest.approx(40.0), "gray": pytest.approx(50.0)}
    assert found.values == {"miou": pytest.approx(45.0), "pixel_accuracy": pytest.approx(400 / 7)}


def test_pixels_of_all_pictures_are_counted_together() -> None:
    large = Pixels((Overlap(0, 0, 90), Overlap(0, 1, 10)))
    small = Pixels((Overlap(1, 1, 10),))
    # dark: 90 of 100; gray: 10 of 20. The mean of the pictures' own figures would be another one.
    assert scores.mean_iou([large, small], LABELS).values["miou"] == pytest.approx((90 + 50) / 2)


def test_no_answer_misses_every_pixel_of_known_truth() -> None:
    truth = np.array([[0, 1, NOTHING]], np.uint8)
    assert scores.overlap(truth, None, classes=2) == Pixels((Overlap(0, NOTHING, 1), Overlap(1, NOTHING, 1)))
    assert scores.mean_iou([scores.overlap(truth, None, classes=2)], LABELS[:2]).values["miou"] == 0.0
    assert scores.mean_iou([Pixels()], LABELS).values == {}


def test_maps_that_do_not_belong_together_are_refused() -> None:
    truth = np.zeros((2, 3), np.uint8)
    with pytest.raises(ValueError, match="the truth is 3 x 2, the answer"):
        scores.overlap(truth, np.zeros((3, 3), np.uint8), classes=2)
    with pytest.raises(ValueError, match="class 9, the model knows 2"):
        scores.overlap(np.full((2, 3), 9, np.uint8), None, classes=2)


def detections(tmp_path: Path, boxes: list[tuple[int, list[tuple[int, float, list[float]]]]]) -> scores.Scores:
    """`boxes`: image id, and (label, score, box) found there; the truth is two boxes in one picture, one in another."""
    truth = [(0, [(0, [4.0, 4.0, 20.0, 20.0]), (2, [30.0, 10.0, 20.0, 30.0])]), (1, [(0, [8.0, 8.0, 40.0, 30.0])])]
    dataset = datasets.read(eval_sets.coco(tmp_path, truth), task=Task.DETECT, labels=LABELS)
    rows = [
        (image_id, Boxes(tuple(Found(label, score, *box) for label, score, box in found))) for image_id, found in boxes
    ]
    return scores.mean_average_precision(dataset, rows, LABELS)


def test_perfect_boxes_score_100_and_labels_without_truth_are_left_out(tmp_path: Path) -> None:
    first = (10, [(0, 0.9, [4.0, 4.0, 20.0, 20.0]), (2, 0.8, [30.0, 10.0, 20.0, 30.0])])
    found = detections(tmp_path, [first, (11, [(0, 0.7, [8.0, 8.0, 40.0, 30.0])])])
    assert found.values["map"] == pytest.approx(100.0)
    assert found.per_class == {"dark": pytest.approx(100.0), "bright": pytest.approx(100.0)}
    assert "map_large" not in found.values  # no box of the truth is that large


def test_average_precision_by_hand(tmp_path: Path) -> None:
    # dark: a false one ranks first, then one of two is found: precision 1/2 up to recall 1/2, that is at 51 of the 101
    # recall points, at every IoU. bright: found with IoU 600/1200 = 0.5, so at the first of ten thresholds only.
    first = [(0, 0.9, [50.0, 40.0, 8.0, 8.0]), (0, 0.8, [4.0, 4.0, 20.0, 20.0]), (2, 0.5, [30.0, 10.0, 20.0, 60.0])]
    found = detections(tmp_path, [(10, first), (11, [])])
    assert found.per_class["dark"] == pytest.approx(100 * 0.5 * 51 / 101)
    assert found.per_class["bright"] == pytest.approx(10.0)
    assert found.values["map"] == pytest.approx((100 * 0.5 * 51 / 101 + 10) / 2)
    assert found.values["map50"] == pytest.approx((100 * 0.5 * 51 / 101 + 100) / 2)


def test_the_same_as_pycocotools_on_random_boxes(tmp_path: Path) -> None:
    random = np.random.default_rng(0)

    def box() -> list[float]:
        x, y = random.uniform(0, 30, 2)
        return [float(x), float(y), *(float(side) for side in random.uniform(4, 18, 2))]

    truth = [(0, [(int(random.integers(3)), box()) for _ in range(4)]) for _ in range(8)]
    dataset = datasets.read(eval_sets.coco(tmp_path, truth), task=Task.DETECT, labels=LABELS)
    rows, plain = [], []
    for index, (_, boxes) in enumerate(truth):
        found = []
        for label, near in boxes:
            guess = [edge + float(noise) for edge, noise in zip(near, random.normal(0, 1.5, 4), strict=True)]
            found.append(Found(label, float(random.random()), *guess))
            plain.append(
                {"image_id": 10 + index, "category_id": 7 * (label + 1), "bbox": guess, "score": found[-1].score}
            )
        rows.append((10 + index, Boxes(tuple(found))))
    ours = scores.mean_average_precision(dataset, rows, LABELS)
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {"info": {}, **(dataset.coco or {})}
        coco.createIndex()
        reference = COCOeval(coco, coco.loadRes(plain), "bbox")
        reference.evaluate()
        reference.accumulate()
        reference.summarize()
    assert 1 < ours.values["map"] < 99
    assert ours.values["map"] == pytest.approx(100 * reference.stats[0])
    assert ours.values["map50"] == pytest.approx(100 * reference.stats[1])
    assert ours.values["map_small"] == pytest.approx(100 * reference.stats[3])


def test_nothing_found_at_all(tmp_path: Path) -> None:
    assert detections(tmp_path, [(10, []), (11, [])]).values["map"] == 0.0


def test_pictures_that_were_not_asked_about_do_not_count(tmp_path: Path) -> None:
    only = [(11, [(0, 0.7, [8.0, 8.0, 40.0, 30.0]), (1, 0.9, [0.0, 0.0, 9.0, 9.0])])]
    found = detections(tmp_path, only)
    assert found.values["map"] == pytest.approx(100.0)
    assert found.per_class == {"dark": pytest.approx(100.0)}


def test_a_missing_pycocotools_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pycocotools.mask", None)
    with pytest.raises(PackageMissing, match=r"mobilevision\[eval\]"):
        scores.require_pycocotools()


@pytest.mark.parametrize(
    "outcome",
    [
        Outcome("a", Top((3, 1), (0.1 + 0.2, 1e-9))),
        Outcome("b", Boxes((Found(1, 0.1 + 0.2, 1e-7, 2.0, 3.3, 4.0),))),
        Outcome("c", Pixels((Overlap(1, 255, 12),))),
        Outcome("d", Top(), "IMAGE_CORRUPT", "broken"),
    ],
)
def test_outcomes_survive_json(outcome: Outcome) -> None:
    assert Outcome.from_json(outcome.to_json()) == outcome
