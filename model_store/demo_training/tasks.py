"""What differs by task when a demo model is trained: the pictures, the loss and the scores. One line per task."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from torch import Tensor

from handlers.contract.card import Task
from model_store import zoo
from model_store.demo.dataset import Kind
from model_store.demo_training import losses, scores
from model_store.demo_training.pool import Batch
from model_store.demo_training.recipes import Recipe
from model_store.demo_training.scores import Answer
from model_store.networks.heads.anchors import cvnets_anchors


@dataclass(frozen=True)
class DemoTask:
    """One task.

    Attributes:
        kind: of the pictures that a model is scored on.
        loss: (raw outputs of the network, batch, recipe) to a scalar.
        score: scenes and answers to metrics in 0..1 by name.

    """

    kind: Kind
    loss: Callable[[Any, Batch, Recipe], Tensor]
    score: Callable[[Iterator[Answer]], dict[str, float]]


def _classification_loss(logits: Tensor, batch: Batch, _recipe: Recipe) -> Tensor:
    return losses.classification_loss(logits, batch)


def _detection_loss(raw: tuple[Tensor, Tensor], batch: Batch, recipe: Recipe) -> Tensor:
    class_logits, box_deltas = raw
    height, width = batch.pixels.shape[1:3]
    stride = zoo.get(recipe.entry).backbone.output_stride
    anchors, _ = cvnets_anchors(height=height, width=width, output_stride=stride)
    return losses.detection_loss(class_logits, box_deltas, batch, anchors)


def _segmentation_loss(logits: Tensor, batch: Batch, recipe: Recipe) -> Tensor:
    return losses.segmentation_loss(logits, batch, dice=recipe.dice)


DEMO_TASKS: Mapping[Task, DemoTask] = MappingProxyType(
    {
        Task.CLASSIFY: DemoTask(kind="single", loss=_classification_loss, score=scores.top_k),
        Task.DETECT: DemoTask(kind="scene", loss=_detection_loss, score=scores.mean_average_precision),
        Task.SEGMENT: DemoTask(kind="scene", loss=_segmentation_loss, score=scores.mean_iou),
    }
)
