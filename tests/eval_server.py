"""Servers for evaluations in the test's own process, and the command that calls them.

`Servicer` is one toy classifier, which can refuse calls. `through_gateway` starts a whole gateway.
"""

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import eval_sets
import numpy as np
import typer
from fakes import running_gateway, toy_card
from typer.testing import CliRunner

from mobilevision.eval import commands
from mobilevision.tasks import Task
from service.core import errors
from service.frontends.grpc import status
from service.pb.mobilevision.v1 import vision_pb2, vision_pb2_grpc

LABELS = eval_sets.LABELS


class Servicer(vision_pb2_grpc.VisionServiceServicer):
    """One classifier that answers by brightness. `refuse` returns the error for the call with that number."""

    def __init__(self) -> None:
        self.calls = 0
        self.version = "1.0"
        self.digest = "a" * 64
        self.labels = LABELS
        self.weights = vision_pb2.WEIGHTS_STATE_CUSTOM
        self.refuse: Callable[[int], errors.ServiceError | None] = lambda _: None
        self.on_call: Callable[[int], None] = lambda _: None
        self._lock = threading.Lock()

    def _model(self) -> vision_pb2.Model:
        return vision_pb2.Model(
            name="toy",
            version=self.version,
            task=vision_pb2.TASK_CLASSIFY,
            weights=self.weights,
            is_default=True,
            labels=self.labels,
            published_scores={"top1": 69.0},
            module_sha256=self.digest,
        )

    def ListModels(self, request: Any, context: Any) -> Any:
        models = [self._model()] if request.task == vision_pb2.TASK_CLASSIFY else []
        return vision_pb2.ListModelsResponse(models=models)

    def GetModel(self, request: Any, context: Any) -> Any:
        if request.name != "toy":
            self._abort(context, errors.ModelNotFound("no model named that; did you mean toy?"))
        return vision_pb2.GetModelResponse(model=self._model())

    def Classify(self, request: Any, context: Any) -> Any:
        with self._lock:
            self.calls += 1
            call = self.calls
        self.on_call(call)
        if error := self.refuse(call):
            self._abort(context, error)
        shade = np.asarray(eval_sets.Image.open(eval_sets.io.BytesIO(request.image))).mean()
        best = int(shade // 86)
        found = [
            vision_pb2.Label(id=(best + i) % 3, name=LABELS[(best + i) % 3], score=(0.7, 0.2, 0.1)[i]) for i in range(3)
        ]
        used = vision_pb2.ModelUsed(name="toy", version=self.version)
        return vision_pb2.ClassifyResponse(model=used, labels=found)

    def _abort(self, context: Any, error: errors.ServiceError) -> None:
        context.set_trailing_metadata((status.status_trailer(error, request_id="id"),))
        context.abort(status.status_code(error), error.message)


def invoke(*arguments: object) -> Any:
    """Run `mobilevision eval` in this process."""
    app = typer.Typer()
    app.callback()(lambda: None)
    commands.register(app)
    return CliRunner(env={"COLUMNS": "150", "NO_COLOR": "1"}).invoke(app, ["eval", *map(str, arguments)])


async def through_gateway(
    task: Task, folder: Path, out: Path, *options: object, published: dict[str, float] | None = None
) -> Any:
    """Evaluate the toy model of the task, behind a gateway of its own."""
    card = toy_card(task)
    card = card.model_copy(update={"weights": card.weights.model_copy(update={"published": published or {}})})
    async with running_gateway([card]) as gateway:
        arguments = (task.value, folder, "--server", gateway.grpc, "--out", out, *options)
        return await asyncio.to_thread(invoke, *arguments)
