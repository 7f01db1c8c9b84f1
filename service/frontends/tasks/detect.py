"""Detection: threshold and limit of the request in, boxes in pixels of the picture out."""

from functools import partial

import numpy as np

from handlers.contract.card import Card, Task
from handlers.contract.frame import Array
from service.core.errors import FieldOutOfRange
from service.core.types import Decoded, Geometry, Prediction
from service.frontends.tasks.base import (
    Render,
    TaskFront,
    in_range,
    label_message,
    model_used,
    output,
    picture_message,
)
from service.pb.mobilevision.v1 import vision_pb2

DEFAULT_SCORE_THRESHOLD = 0.3
DEFAULT_MAX_DETECTIONS = 100
MAX_MAX_DETECTIONS = 200


def checked_score_threshold(request: vision_pb2.DetectRequest) -> float:
    """Return `score_threshold` of a request, or its default. Raises `FieldOutOfRange`."""
    if not request.HasField("score_threshold"):
        return DEFAULT_SCORE_THRESHOLD
    if not 0.0 <= request.score_threshold <= 1.0:  # false for NaN as well
        raise FieldOutOfRange(
            f"score_threshold is {request.score_threshold}; it must be within 0 to 1",
            metadata={"field": "score_threshold"},
        )
    return request.score_threshold


def checked_max_detections(request: vision_pb2.DetectRequest) -> int:
    """Return `max_detections` of a request, or its default. Raises `FieldOutOfRange`."""
    if not request.HasField("max_detections"):
        return DEFAULT_MAX_DETECTIONS
    return in_range("max_detections", request.max_detections, MAX_MAX_DETECTIONS)


def detect_response(
    card: Card, decoded: Decoded, prediction: Prediction, *, score_threshold: float, max_detections: int
) -> vision_pb2.DetectResponse:
    """Make the reply from the output tensors of a detector.

    `boxes` float32 [M, 4] (x0, y0, x1, y1) in 0..1 of the model input, `scores` float32 [M], `labels` int32 [M],
    `counts` int32 []: how many of the M are detections. Raises `BackendFault`.
    """
    count = int(output(card, prediction, "counts", 0))
    scores = output(card, prediction, "scores", 1)[:count]
    labels = output(card, prediction, "labels", 1)[:count]
    boxes = _in_picture(output(card, prediction, "boxes", 2)[:count], decoded.geometry)
    # A box outside the picture is empty after clipping. Comparisons with NaN are false, so NaN is dropped as well.
    keep = (scores >= np.float32(score_threshold)) & (boxes[:, 0] < boxes[:, 2]) & (boxes[:, 1] < boxes[:, 3])
    order = np.flatnonzero(keep)
    order = order[np.argsort(-scores[order], kind="stable")][:max_detections]
    detections = [
        vision_pb2.Detection(
            box=vision_pb2.Box(x_min=x_min, y_min=y_min, x_max=x_max, y_max=y_max),
            label=label_message(card, label, score),
        )
        for (x_min, y_min, x_max, y_max), label, score in zip(
            boxes[order].tolist(), labels[order].tolist(), scores[order].tolist(), strict=True
        )
    ]
    return vision_pb2.DetectResponse(model=model_used(card), picture=picture_message(decoded), detections=detections)


def _in_picture(boxes: Array, geometry: Geometry) -> Array:
    """Map boxes [M, 4] in 0..1 of the model input to float32 pixels of the picture, clipped to the picture."""
    scale = np.array([geometry.x1 - geometry.x0, geometry.y1 - geometry.y0] * 2)
    shift = np.array([geometry.x0, geometry.y0] * 2)
    upper = np.array([geometry.width_px, geometry.height_px] * 2)
    in_picture: Array = np.clip(boxes.astype(np.float64) * scale + shift, 0.0, upper).astype(np.float32)
    return in_picture


def _renderer(request: vision_pb2.DetectRequest) -> Render[vision_pb2.DetectResponse]:
    return partial(
        detect_response,
        score_threshold=checked_score_threshold(request),
        max_detections=checked_max_detections(request),
    )


DETECT = TaskFront(task=Task.DETECT, method="Detect", proto_task=vision_pb2.TASK_DETECT, renderer=_renderer)
