"""Segmentation: the mask encoding of the request in, masks of the size of the picture out."""

from functools import partial

import numpy as np

from handlers.contract.card import Card, Task
from service.core.errors import FieldOutOfRange
from service.core.types import Decoded, Prediction
from service.frontends.masks import OUTSIDE, Placement, confidence_png, mask_png, rle_by_class
from service.frontends.tasks.base import Render, TaskFront, class_name, model_used, output, picture_message
from service.pb.mobilevision.v1 import vision_pb2

_ENCODINGS = {
    vision_pb2.MASK_ENCODING_UNSPECIFIED: vision_pb2.MASK_ENCODING_PNG,
    vision_pb2.MASK_ENCODING_PNG: vision_pb2.MASK_ENCODING_PNG,
    vision_pb2.MASK_ENCODING_COCO_RLE: vision_pb2.MASK_ENCODING_COCO_RLE,
}


def checked_mask_encoding(request: vision_pb2.SegmentRequest) -> vision_pb2.MaskEncoding.ValueType:
    """Return `mask_encoding` of a request, or its default. Raises `FieldOutOfRange`."""
    encoding = _ENCODINGS.get(request.mask_encoding)
    if encoding is None:
        raise FieldOutOfRange(
            f"mask_encoding is {request.mask_encoding}; this server knows 1 (PNG) and 2 (COCO RLE)",
            metadata={"field": "mask_encoding"},
        )
    return encoding


def segment_response(
    card: Card,
    decoded: Decoded,
    prediction: Prediction,
    *,
    encoding: vision_pb2.MaskEncoding.ValueType,
    include_confidence: bool,
) -> vision_pb2.SegmentResponse:
    """Make the reply from `classes` uint8 [h, w], and from `confidence` uint8 [h', w'] if the request asks for it.

    Takes milliseconds per million pixels of the picture, so it runs in a thread. Raises `BackendFault`.
    """
    classes = output(card, prediction, "classes", 2)
    geometry = decoded.geometry
    placement = Placement.of(geometry, classes.shape)
    area = placement.area_px(classes)  # float64 [256], pixels
    present = [int(label) for label in np.argsort(-area, kind="stable") if area[label] > 0 and label != OUTSIDE]
    as_rle = encoding == vision_pb2.MASK_ENCODING_COCO_RLE
    counts = rle_by_class(classes, placement, present) if as_rle else {}
    confidence = output(card, prediction, "confidence", 2) if include_confidence else None
    picture_px = geometry.width_px * geometry.height_px
    return vision_pb2.SegmentResponse(
        model=model_used(card),
        picture=picture_message(decoded),
        classes=[
            vision_pb2.SegmentedClass(
                id=label,
                name=class_name(card, label),
                area_fraction=area[label] / picture_px,
                rle_counts=counts.get(label, b""),
            )
            for label in present
        ],
        mask_png=b"" if as_rle else mask_png(classes, placement),
        confidence_png=b"" if confidence is None else confidence_png(confidence, geometry),
    )


def _renderer(request: vision_pb2.SegmentRequest) -> Render[vision_pb2.SegmentResponse]:
    return partial(
        segment_response,
        encoding=checked_mask_encoding(request),
        include_confidence=request.include_confidence,
    )


SEGMENT = TaskFront(task=Task.SEGMENT, method="Segment", proto_task=vision_pb2.TASK_SEGMENT, renderer=_renderer)
