"""Results as plain Python values."""

import numpy as np
import picture_files
from PIL import Image

from mobilevision.results import Box, Classification, Detections, Label, Segmentation
from service.pb.mobilevision.v1 import vision_pb2


def test_labels_are_plain_values_best_first() -> None:
    found = [vision_pb2.Label(id=1, name="cat", score=0.75), vision_pb2.Label(id=0, name="dog", score=0.25)]
    result = Classification(vision_pb2.ClassifyResponse(labels=found), "id", 1.0)
    assert result.labels == (Label("cat", 0.75, 1), Label("dog", 0.25, 0))


def test_boxes_are_plain_values() -> None:
    found = vision_pb2.Detection(
        label=vision_pb2.Label(id=2, name="car", score=0.5), box=vision_pb2.Box(x_min=1, y_min=2, x_max=3.5, y_max=4)
    )
    result = Detections(vision_pb2.DetectResponse(detections=[found]), "id", 1.0)
    assert result.boxes == (Box(Label("car", 0.5, 2), 1.0, 2.0, 3.5, 4.0),)


def test_a_mask_is_an_array_of_class_ids() -> None:
    classes = np.array([[0, 1, 255], [1, 1, 0]], np.uint8)
    png = picture_files.encoded(Image.fromarray(classes), "PNG")
    mask = Segmentation(vision_pb2.SegmentResponse(mask_png=png), "id", 1.0).mask
    assert mask is not None
    assert (mask.dtype, mask.tolist()) == (np.uint8, classes.tolist())


def test_without_a_png_there_is_no_mask() -> None:
    assert Segmentation(vision_pb2.SegmentResponse(), "id", 1.0).mask is None
