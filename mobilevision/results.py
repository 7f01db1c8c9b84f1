"""What a call returns: the reply as the server sent it, its timings, and the answer as plain Python values.

In: protobuf replies. Out: frozen dataclasses, and numpy arrays for masks. Nothing is filtered and no server is called.
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Generic, TypeVar

import numpy as np
from google.protobuf.message import Message
from numpy.typing import NDArray
from PIL import Image

from service.pb.mobilevision.v1 import vision_pb2

OUTSIDE = 255  # value of a mask where the model did not see the pixel

Reply = TypeVar("Reply", bound=Message)


@dataclass(frozen=True, slots=True)
class Label:
    """A class of the model. `id` counts from 0 in the model's own list of labels; `score` is a probability, 0..1."""

    name: str
    score: float
    id: int


@dataclass(frozen=True, slots=True)
class Box:
    """An object that was found. Edges are in pixels of the upright picture; x grows to the right, y grows downwards."""

    label: Label
    x_min: float
    y_min: float
    x_max: float
    y_max: float


@dataclass(frozen=True)
class Result(Generic[Reply]):
    """A reply, and what the server reports about the call.

    `reply` is the protobuf message. `stage_ms` maps a stage (decode, queue, transport, inference, results) to the
    milliseconds the server spent in it. `batch_size` is the number of pictures in the same batch; it is None where the
    call ran no model. `elapsed_ms` is the time of the whole call, measured by the client.
    """

    reply: Reply
    request_id: str
    elapsed_ms: float
    stage_ms: Mapping[str, float] = field(default_factory=dict)
    batch_size: int | None = None


class Classification(Result[vision_pb2.ClassifyResponse]):
    """The result of `classify`."""

    @cached_property
    def labels(self) -> tuple[Label, ...]:
        """The best labels, highest score first."""
        return tuple(_label(found) for found in self.reply.labels)


class Detections(Result[vision_pb2.DetectResponse]):
    """The result of `detect`."""

    @cached_property
    def boxes(self) -> tuple[Box, ...]:
        """The objects that were found, highest score first."""
        return tuple(
            Box(_label(found.label), found.box.x_min, found.box.y_min, found.box.x_max, found.box.y_max)
            for found in self.reply.detections
        )


class Segmentation(Result[vision_pb2.SegmentResponse]):
    """The result of `segment`."""

    @cached_property
    def mask(self) -> NDArray[np.uint8] | None:
        """The class id of every pixel: uint8 (height, width) of the upright picture, 255 where the model did not look.

        None where the call asked for COCO run lengths: `reply.classes` holds those.
        """
        if not self.reply.mask_png:
            return None
        with Image.open(io.BytesIO(self.reply.mask_png)) as image:
            return np.asarray(image)


def _label(found: vision_pb2.Label) -> Label:
    return Label(name=found.name, score=found.score, id=found.id)
