"""Classification: `top_k` of the request in, the labels with the highest scores out."""

from functools import partial

from handlers.contract.card import Card, Task
from service.core.types import Decoded, Prediction
from service.frontends.tasks.base import (
    Render,
    TaskFront,
    class_name,
    in_range,
    model_used,
    output,
    picture_message,
)
from service.pb.mobilevision.v1 import vision_pb2

DEFAULT_TOP_K = 5
MAX_TOP_K = 100


def checked_top_k(request: vision_pb2.ClassifyRequest) -> int:
    """Return `top_k` of a request, or its default. Raises `FieldOutOfRange`."""
    return in_range("top_k", request.top_k, MAX_TOP_K) if request.HasField("top_k") else DEFAULT_TOP_K


def classify_response(
    card: Card, decoded: Decoded, prediction: Prediction, *, top_k: int
) -> vision_pb2.ClassifyResponse:
    """Make the reply from `scores` float32 [K], sorted, and `labels` int32 [K]. Raises `BackendFault`."""
    scores = output(card, prediction, "scores", 1)[:top_k].tolist()
    labels = output(card, prediction, "labels", 1)[:top_k].tolist()
    reply = vision_pb2.ClassifyResponse(model=model_used(card), picture=picture_message(decoded))
    for label, score in zip(labels, scores, strict=True):
        reply.labels.add(id=label, name=class_name(card, label), score=score)
    return reply


def _renderer(request: vision_pb2.ClassifyRequest) -> Render[vision_pb2.ClassifyResponse]:
    return partial(classify_response, top_k=checked_top_k(request))


CLASSIFY = TaskFront(task=Task.CLASSIFY, method="Classify", proto_task=vision_pb2.TASK_CLASSIFY, renderer=_renderer)
