"""What the tasks of a front share: the `TaskFront` of each task, checks of fields, parts of replies.

In: proto requests, cards, predictions. Out: proto messages in the coordinates of the picture. A prediction that
contradicts its card is a `BackendFault`, never an error of the caller.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from google.protobuf.message import Message

from handlers.contract.card import Card, Task, WeightsState
from handlers.contract.frame import Array
from service.core.errors import BackendFault, FieldOutOfRange
from service.core.types import Decoded, Prediction, Priority
from service.pb.mobilevision.v1 import vision_pb2

WEIGHTS_STATES = {
    WeightsState.RANDOM: vision_pb2.WEIGHTS_STATE_RANDOM,
    WeightsState.DEMO: vision_pb2.WEIGHTS_STATE_DEMO,
    WeightsState.CUSTOM: vision_pb2.WEIGHTS_STATE_CUSTOM,
    WeightsState.OFFICIAL: vision_pb2.WEIGHTS_STATE_OFFICIAL,
}
_PRIORITIES: dict[int, Priority] = {
    vision_pb2.PRIORITY_UNSPECIFIED: Priority.INTERACTIVE,
    vision_pb2.PRIORITY_INTERACTIVE: Priority.INTERACTIVE,
    vision_pb2.PRIORITY_BATCH: Priority.BATCH,
}


class InferenceRequest(Protocol):
    """The fields that the requests of all tasks have."""

    model: str
    image: bytes
    priority: vision_pb2.Priority.ValueType


RequestT = TypeVar("RequestT", bound=InferenceRequest)
ReplyT = TypeVar("ReplyT", bound=Message)

Render = Callable[[Card, Decoded, Prediction], ReplyT]


@dataclass(frozen=True, slots=True)
class TaskFront(Generic[RequestT, ReplyT]):
    """How a front presents one task.

    `method` is the name of its method in VisionService, `proto_task` its value in the proto's enum. `renderer` checks
    the options of a request and returns the function that makes its reply. It raises `FieldOutOfRange`.
    """

    task: Task
    method: str
    proto_task: vision_pb2.Task.ValueType
    renderer: Callable[[RequestT], Render[ReplyT]]


def checked_priority(request: InferenceRequest) -> Priority:
    """Return the priority of a request, or its default. Raises `FieldOutOfRange`."""
    priority = _PRIORITIES.get(request.priority)
    if priority is None:
        raise FieldOutOfRange(
            f"priority is {request.priority}; this server knows 1 (interactive) and 2 (batch)",
            metadata={"field": "priority"},
        )
    return priority


def in_range(field: str, value: int, most: int) -> int:
    """Return `value` if it is within 1 to `most`. Raises `FieldOutOfRange`."""
    if not 1 <= value <= most:
        raise FieldOutOfRange(f"{field} is {value}; it must be within 1 to {most}", metadata={"field": field})
    return value


def output(card: Card, prediction: Prediction, name: str, dimensions: int) -> Array:
    """Return one output tensor of a prediction, of any shape that has so many `dimensions`.

    Raises `BackendFault` if it is missing or has more or fewer dimensions.
    """
    array = prediction.outputs.get(name)
    if array is None or array.ndim != dimensions:
        found = "is missing" if array is None else f"has shape {array.shape}"
        raise BackendFault(f"output {name!r} of model {card.name} {found}; expected {dimensions} dimensions")
    return array


def class_name(card: Card, label: int) -> str:
    """Return the name of a class. Raises `BackendFault` if the card does not name it."""
    if not 0 <= label < len(card.labels):
        raise BackendFault(f"model {card.name} answered label {label}; its card names {len(card.labels)} labels")
    return card.labels[label]


def label_message(card: Card, label: int, score: float) -> vision_pb2.Label:
    """Return a label with its name. `score` is 0 to 1. Raises `BackendFault` if the card does not name the label."""
    return vision_pb2.Label(id=label, name=class_name(card, label), score=score)


def model_used(card: Card) -> vision_pb2.ModelUsed:
    """Return which model and version answered."""
    return vision_pb2.ModelUsed(name=card.name, version=card.version, weights=WEIGHTS_STATES[card.weights.state])


def picture_message(decoded: Decoded) -> vision_pb2.Picture:
    """Return size (pixels, upright) and format of the picture."""
    geometry = decoded.geometry
    return vision_pb2.Picture(width=geometry.width_px, height=geometry.height_px, format=decoded.format)
