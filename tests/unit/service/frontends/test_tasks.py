import math
import tracemalloc
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from handlers.contract.card import Card, InputSize, Normalize, Output, Parity, Preprocess, Task, Weights, WeightsState
from service.core.errors import BackendFault, FieldOutOfRange
from service.core.types import Decoded, Geometry, Prediction
from service.frontends.tasks.base import model_used
from service.frontends.tasks.classify import checked_top_k, classify_response
from service.frontends.tasks.detect import checked_max_detections, checked_score_threshold, detect_response
from service.frontends.tasks.segment import checked_mask_encoding, segment_response
from service.pb.mobilevision.v1 import vision_pb2

LABELS = tuple(f"class {index}" for index in range(21))
PNG = vision_pb2.MASK_ENCODING_PNG
RLE = vision_pb2.MASK_ENCODING_COCO_RLE


def card(task: Task = Task.CLASSIFY, state: WeightsState = WeightsState.OFFICIAL) -> Card:
    return Card(
        name="tiny",
        version="1.2",
        task=task,
        family="tiny",
        variant="xs",
        head="head",
        paper="",
        input=InputSize(height=64, width=64),
        preprocess=Preprocess(mode="squash"),
        normalize=Normalize(),
        labels=LABELS,
        outputs=(Output(name="scores", dtype="float32", shape=(5,)),),
        parameters=1,
        macs=1,
        weights=Weights(state=state, source="seed 0", sha256="0" * 64),
        parity=Parity(scripted_max_abs_diff=0, reloaded_max_abs_diff=0, batch_row_max_abs_diff=0),
        module_sha256="0" * 64,
    )


def whole(width: int, height: int) -> Geometry:
    return Geometry(width_px=width, height_px=height, x0=0, y0=0, x1=width, y1=height)


def picture(geometry: Geometry) -> Decoded:
    return Decoded(pixels=np.zeros((64, 64, 3), np.uint8), geometry=geometry, format="JPEG")


def prediction(**outputs) -> Prediction:
    return Prediction(outputs=outputs, batch_size=1, queue_seconds=0, transport_seconds=0, inference_seconds=0)


class TestOptions:
    def test_defaults(self):
        assert checked_top_k(vision_pb2.ClassifyRequest()) == 5
        assert checked_score_threshold(vision_pb2.DetectRequest()) == 0.3
        assert checked_max_detections(vision_pb2.DetectRequest()) == 100
        assert checked_mask_encoding(vision_pb2.SegmentRequest()) == PNG

    def test_bounds_are_allowed(self):
        assert [checked_top_k(vision_pb2.ClassifyRequest(top_k=k)) for k in (1, 100)] == [1, 100]
        assert [checked_score_threshold(vision_pb2.DetectRequest(score_threshold=s)) for s in (0, 1)] == [0, 1]
        assert [checked_max_detections(vision_pb2.DetectRequest(max_detections=m)) for m in (1, 200)] == [1, 200]
        assert checked_mask_encoding(vision_pb2.SegmentRequest(mask_encoding=RLE)) == RLE

    @pytest.mark.parametrize(
        ("check", "request_", "field"),
        [
            (checked_top_k, vision_pb2.ClassifyRequest(top_k=0), "top_k"),
            (checked_top_k, vision_pb2.ClassifyRequest(top_k=101), "top_k"),
            (checked_score_threshold, vision_pb2.DetectRequest(score_threshold=-0.1), "score_threshold"),
            (checked_score_threshold, vision_pb2.DetectRequest(score_threshold=1.1), "score_threshold"),
            (checked_score_threshold, vision_pb2.DetectRequest(score_threshold=math.nan), "score_threshold"),
            (checked_max_detections, vision_pb2.DetectRequest(max_detections=0), "max_detections"),
            (checked_max_detections, vision_pb2.DetectRequest(max_detections=201), "max_detections"),
            (checked_mask_encoding, vision_pb2.SegmentRequest(mask_encoding=9), "mask_encoding"),
        ],
    )
    def test_out_of_range(self, check, request_, field):
        with pytest.raises(FieldOutOfRange, match=field) as raised:
            check(request_)
        assert raised.value.metadata == {"field": field}


@pytest.mark.parametrize("state", WeightsState)
def test_model_used_names_the_weights(state):
    used = model_used(card(state=state))
    assert (used.name, used.version) == ("tiny", "1.2")
    assert vision_pb2.WeightsState.Name(used.weights) == f"WEIGHTS_STATE_{state.name}"


class TestClassify:
    SCORES = np.array([0.5, 0.3, 0.1], np.float32)
    IDS = np.array([20, 0, 7], np.int32)

    def test_best_labels_with_names(self):
        reply = classify_response(
            card(), picture(whole(640, 480)), prediction(scores=self.SCORES, labels=self.IDS), top_k=2
        )
        assert [(label.id, label.name) for label in reply.labels] == [(20, "class 20"), (0, "class 0")]
        assert [label.score for label in reply.labels] == [np.float32(0.5), np.float32(0.3)]
        assert (reply.picture.width, reply.picture.height, reply.picture.format) == (640, 480, "JPEG")

    def test_fewer_classes_than_asked_for(self):
        reply = classify_response(
            card(), picture(whole(9, 9)), prediction(scores=self.SCORES, labels=self.IDS), top_k=100
        )
        assert len(reply.labels) == 3

    @pytest.mark.parametrize(
        "outputs",
        [
            {"scores": SCORES},
            {"scores": SCORES, "labels": IDS[None]},
            {"scores": SCORES, "labels": np.array([21, 0, 0], np.int32)},
            {"scores": SCORES, "labels": np.array([-1, 0, 0], np.int32)},
        ],
        ids=["missing", "shape", "label too large", "label negative"],
    )
    def test_a_row_that_contradicts_the_card_is_the_models_fault(self, outputs):
        with pytest.raises(BackendFault):
            classify_response(card(), picture(whole(9, 9)), prediction(**outputs), top_k=5)


def detections(boxes, scores, labels, *, count=None):
    return prediction(
        boxes=np.array(boxes, np.float32).reshape(-1, 4),
        scores=np.array(scores, np.float32),
        labels=np.array(labels, np.int32),
        counts=np.array(len(scores) if count is None else count, np.int32),
    )


def detect(geometry, tensors, *, score_threshold=0.3, max_detections=100):
    reply = detect_response(
        card(Task.DETECT),
        picture(geometry),
        tensors,
        score_threshold=score_threshold,
        max_detections=max_detections,
    )
    return [([d.box.x_min, d.box.y_min, d.box.x_max, d.box.y_max], d.label.id, d.label.score) for d in reply.detections]


class TestDetect:
    def test_boxes_come_back_in_pixels_of_the_picture(self):
        found = detect(whole(640, 480), detections([[0.25, 0.5, 0.75, 1.0]], [0.9], [3]))
        assert found == [([160.0, 240.0, 480.0, 480.0], 3, np.float32(0.9))]

    def test_crop_is_undone(self):
        geometry = Geometry(width_px=640, height_px=480, x0=80, y0=0, x1=560, y1=480)
        assert detect(geometry, detections([[0, 0, 1, 0.5]], [0.9], [3]))[0][0] == [80.0, 0.0, 560.0, 240.0]

    def test_boxes_are_clipped_and_empty_ones_dropped(self):
        geometry = Geometry(width_px=100, height_px=100, x0=-5, y0=-5, x1=105, y1=105)
        boxes = [
            [-0.5, -0.5, 1.5, 1.5],
            [0, 0, 0.04, 1],
            [0.5, 0.5, 0.5, 0.9],
            [0.6, 0.5, 0.4, 0.9],
            [math.nan, 0, 1, 1],
        ]
        found = detect(geometry, detections(boxes, [0.9] * 5, [0] * 5))
        assert [box for box, _, _ in found] == [[0.0, 0.0, 100.0, 100.0]]

    def test_threshold_keeps_equal_scores(self):
        found = detect(whole(10, 10), detections([[0, 0, 1, 1]] * 4, [0.7, 0.5, 0.3, 0.29], [0, 1, 2, 3]))
        assert [label for _, label, _ in found] == [0, 1, 2]

    def test_best_first_and_limited(self):
        tensors = detections([[0, 0, 1, 1]] * 4, [0.5, 0.9, math.nan, 0.7], [0, 1, 2, 3])
        assert [label for _, label, _ in detect(whole(10, 10), tensors, max_detections=2)] == [1, 3]

    def test_rows_behind_the_count_are_padding(self):
        assert len(detect(whole(10, 10), detections([[0, 0, 1, 1]] * 3, [0.9] * 3, [0] * 3, count=1))) == 1
        assert detect(whole(10, 10), detections([[0, 0, 1, 1]] * 3, [0.9] * 3, [99] * 3, count=0)) == []


def segment(geometry, classes, *, encoding=PNG, confidence=None):
    outputs = {"classes": classes} if confidence is None else {"classes": classes, "confidence": confidence}
    return segment_response(
        card(Task.SEGMENT),
        picture(geometry),
        prediction(**outputs),
        encoding=encoding,
        include_confidence=confidence is not None,
    )


def opened(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(BytesIO(png)))


def expected_mask(geometry: Geometry, classes: np.ndarray) -> np.ndarray:
    """Pixel by pixel, as the contract reads."""
    rows, columns = classes.shape
    mask = np.full((geometry.height_px, geometry.width_px), 255, np.uint8)
    for y in range(geometry.height_px):
        for x in range(geometry.width_px):
            column = math.floor((x + 0.5 - geometry.x0) / (geometry.x1 - geometry.x0) * columns)
            line = math.floor((y + 0.5 - geometry.y0) / (geometry.y1 - geometry.y0) * rows)
            if 0 <= column < columns and 0 <= line < rows:
                mask[y, x] = classes[line, column]
    return mask


GEOMETRIES = {
    "whole": whole(40, 30),
    "smaller than the map": whole(3, 2),
    "one pixel": whole(1, 1),
    "crop": Geometry(width_px=40, height_px=30, x0=5.3, y0=0, x1=34.7, y1=30),
    "crop of a tower": Geometry(width_px=2, height_px=90, x0=0.06, y0=44.06, x1=1.94, y1=45.94),
    "over the edge": Geometry(width_px=20, height_px=20, x0=-3.1, y0=-2.2, x1=21.7, y1=25.9),
}


class TestSegment:
    @pytest.mark.parametrize("name", GEOMETRIES)
    def test_class_map_lies_where_the_model_looked(self, name):
        geometry = GEOMETRIES[name]
        classes = np.random.default_rng(1).integers(0, 21, (9, 13), np.uint8)
        reply = segment(geometry, classes)
        mask = expected_mask(geometry, classes)
        np.testing.assert_array_equal(opened(reply.mask_png), mask)
        areas = [found.area_fraction for found in reply.classes]
        assert areas == sorted(areas, reverse=True)
        for found in reply.classes:
            assert found.area_fraction == pytest.approx((mask == found.id).mean())
            assert found.name == LABELS[found.id]
            assert found.rle_counts == b""
        assert {found.id for found in reply.classes} == set(np.unique(mask).tolist()) - {255}
        assert reply.confidence_png == b""

    def test_palette(self):
        image = Image.open(BytesIO(segment(whole(8, 8), np.array([[0, 1], [2, 15]], np.uint8)).mask_png))
        assert image.mode == "P"
        colours = image.convert("RGB")
        corners = [colours.getpixel(place) for place in ((0, 0), (7, 0), (0, 7), (7, 7))]
        assert corners == [(0, 0, 0), (128, 0, 0), (0, 128, 0), (192, 128, 128)]  # VOC: nothing, plane, bicycle, person
        assert np.array(image.getpalette()).reshape(-1, 3)[255].tolist() == [224, 224, 224]

    def test_where_the_model_saw_no_pixel_centre_there_is_no_class(self):
        geometry = Geometry(width_px=1, height_px=10000, x0=0.03, y0=4999.53, x1=0.97, y1=5000.47)
        reply = segment(geometry, np.zeros((9, 9), np.uint8), confidence=np.zeros((9, 9), np.uint8))
        assert len(reply.classes) == 0
        assert (opened(reply.mask_png) == 255).all()
        assert opened(reply.confidence_png).shape == (10000, 1)

    @pytest.mark.parametrize("name", GEOMETRIES)
    def test_rle_is_what_pycocotools_writes(self, name):
        mask_api = pytest.importorskip("pycocotools.mask")
        random = np.random.default_rng(2)
        geometry = GEOMETRIES[name]
        for classes in (
            random.integers(0, 21, (9, 13), np.uint8),
            random.integers(0, 2, (64, 64), np.uint8),
            np.full((5, 5), 7, np.uint8),
        ):
            reply = segment(geometry, classes, encoding=RLE)
            mask = expected_mask(geometry, classes)
            assert reply.mask_png == b""
            for found in reply.classes:
                theirs = mask_api.encode(np.asfortranarray((mask == found.id).astype(np.uint8)))
                assert found.rle_counts == theirs["counts"]

    def test_rle_by_hand(self):
        reply = segment(whole(3, 2), np.array([[1, 0, 1], [1, 0, 0]], np.uint8), encoding=RLE)
        # Column by column: 1 1 | 0 0 | 1 0. Class 1: 0 zeros, 2 ones, 2 zeros, then 1 - 2 ones, 1 - 2 zeros.
        assert {found.id: found.rle_counts for found in reply.classes} == {1: b"022OO", 0: b"221O"}

    def test_confidence_is_smooth_and_of_the_pictures_size(self):
        confidence = np.tile(np.arange(0, 256, 51, dtype=np.uint8), (4, 1))  # 0, 51 ... 255 from left to right
        geometry = Geometry(width_px=80, height_px=40, x0=10, y0=0, x1=70, y1=40)
        shown = opened(segment(geometry, np.zeros((4, 6), np.uint8), confidence=confidence).confidence_png)
        assert shown.shape == (40, 80)
        assert shown[:, :10].max() == 0
        assert shown[:, 70:].max() == 0
        centres = np.arange(10, 70) + 0.5
        expected = np.interp((centres - 10) / 10, np.arange(6) + 0.5, confidence[0])
        assert np.abs(shown[20, 10:70] - expected).max() <= 1

    def test_confidence_asked_for_but_not_there_is_the_models_fault(self):
        with pytest.raises(BackendFault, match="confidence"):
            segment_response(
                card(Task.SEGMENT),
                picture(whole(4, 4)),
                prediction(classes=np.zeros((2, 2), np.uint8)),
                encoding=PNG,
                include_confidence=True,
            )

    def test_a_class_the_card_does_not_name_is_the_models_fault(self):
        with pytest.raises(BackendFault, match="label 40"):
            segment(whole(4, 4), np.full((2, 2), 40, np.uint8))

    def test_a_large_picture(self):
        classes = np.zeros((512, 512), np.uint8)
        classes[100:300, 200:400] = 5
        geometry = whole(12000, 9000)
        reply = segment(geometry, classes, encoding=RLE)
        assert [found.id for found in reply.classes] == [0, 5]
        assert reply.classes[1].area_fraction == pytest.approx(200 * 200 / 512**2, rel=1e-3)


@pytest.mark.parametrize("sides", [(1_000_000, 1), (1, 1_000_000), (4000, 1000)])
@pytest.mark.parametrize("encoding", [PNG, RLE])
def test_memory_of_masks_is_bounded_by_the_pixels_of_the_picture(sides, encoding):
    classes = np.kron(np.arange(400).reshape(20, 20) % 21, np.ones((26, 26))).astype(np.uint8)  # 520 x 520
    tracemalloc.start()
    try:
        segment_response(
            card(Task.SEGMENT),
            picture(whole(*sides)),
            prediction(classes=classes),
            encoding=encoding,
            include_confidence=False,
        )
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 150 * math.prod(sides)
