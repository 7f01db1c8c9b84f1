"""Requests for one picture: the picture and the options of a task in, a proto message out.

Options that are None or left out take the server's defaults. Never calls a server.
"""

import os
from pathlib import Path

from service.pb.mobilevision.v1 import vision_pb2

Picture = bytes | str | os.PathLike[str]
"""A picture: its encoded bytes (JPEG, PNG, ...), or the path of its file."""

PictureRequest = vision_pb2.ClassifyRequest | vision_pb2.DetectRequest | vision_pb2.SegmentRequest


def classify_request(
    image: Picture,
    *,
    model: str = "",
    top_k: int | None = None,
    priority: vision_pb2.Priority.ValueType = vision_pb2.PRIORITY_UNSPECIFIED,
) -> vision_pb2.ClassifyRequest:
    """Ask for the best labels, at most `top_k`, 1..100. Raises OSError."""
    return vision_pb2.ClassifyRequest(model=model, image=_bytes_of(image), top_k=top_k, priority=priority)


def detect_request(
    image: Picture,
    *,
    model: str = "",
    score_threshold: float | None = None,
    max_detections: int | None = None,
    priority: vision_pb2.Priority.ValueType = vision_pb2.PRIORITY_UNSPECIFIED,
) -> vision_pb2.DetectRequest:
    """Ask for boxes: scores from `score_threshold` (0..1), at most `max_detections` (1..200). Raises OSError."""
    return vision_pb2.DetectRequest(
        model=model,
        image=_bytes_of(image),
        score_threshold=score_threshold,
        max_detections=max_detections,
        priority=priority,
    )


def segment_request(
    image: Picture,
    *,
    model: str = "",
    mask_encoding: vision_pb2.MaskEncoding.ValueType = vision_pb2.MASK_ENCODING_UNSPECIFIED,
    include_confidence: bool = False,
    priority: vision_pb2.Priority.ValueType = vision_pb2.PRIORITY_UNSPECIFIED,
) -> vision_pb2.SegmentRequest:
    """Ask for the class of every pixel. Raises OSError."""
    return vision_pb2.SegmentRequest(
        model=model,
        image=_bytes_of(image),
        mask_encoding=mask_encoding,
        include_confidence=include_confidence,
        priority=priority,
    )


def _bytes_of(image: Picture) -> bytes:
    return image if isinstance(image, bytes) else Path(image).read_bytes()
