"""The methods of VisionService: proto requests in, proto replies out, the pipeline in between.

The methods of the tasks come from `service.frontends.tasks.registry`. Options are checked before any work is done.
Errors are raised as `ServiceError`. Knows proto messages, but not gRPC: any front whose messages are those of the proto
can use it.
"""

from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any

from handlers.contract.card import Card, Task
from service.core.call_scope import CallScope
from service.core.catalog import LONGEST_NAME, Catalog
from service.core.errors import ClientError, NoDefaultModel, PermissionDenied
from service.core.types import Priority, engine_of
from service.frontends.recording.recorder import Recorder
from service.frontends.request_bounds import Method, bounded
from service.frontends.tasks.base import WEIGHTS_STATES, TaskFront, checked_priority
from service.frontends.tasks.registry import TASKS
from service.pb.mobilevision.v1 import vision_pb2
from service.serving.health import Health
from service.serving.pipeline import Pipeline, Request

# What a call asks, in its metadata: see `VisionServicer.first_looks`.
MODEL_KEY = "mobilevision-model"
PRIORITY_KEY = "mobilevision-priority"
_PRIORITIES = {"interactive": Priority.INTERACTIVE, "batch": Priority.BATCH}

Metadata = Collection[tuple[str, str | bytes]]
FirstLook = Callable[[Metadata, CallScope], None]
"""Raises a `ServiceError` for a call that is refused anyway, by its metadata alone."""


class VisionServicer:
    """Answers requests. `methods` are the methods of VisionService with one request and one reply, `task_methods` those
    of them that run a model.

    `engine`: name of the engine, for replies. `recorder` records the calls of the tasks; None: nothing is recorded.
    """

    def __init__(
        self, *, pipeline: Pipeline, catalog: Catalog, health: Health, engine: str, recorder: Recorder | None = None
    ) -> None:
        self._pipeline = pipeline
        self._catalog = catalog
        self._health = health
        self._engine = engine
        self._recorder = recorder

    @property
    def methods(self) -> Mapping[str, Method]:
        """The methods by their names in the proto. Each takes a proto request and raises `ServiceError`."""
        return {
            "ListModels": bounded(self.list_models),
            "GetModel": bounded(self.get_model),
            **{TASKS[task].method: method for task, method in self.task_methods.items()},
        }

    @property
    def task_methods(self) -> Mapping[Task, Method]:
        """The methods that run a model, by task."""
        methods = {task: bounded(partial(self.infer, front)) for task, front in TASKS.items()}
        if self._recorder is not None:
            methods = {task: self._recorder.recorded(method) for task, method in methods.items()}
        return methods

    @property
    def first_looks(self) -> Mapping[str, FirstLook]:
        """What refuses calls of these methods before their pictures arrive, by the names of the methods.

        Empty if calls are recorded: a recorded call has its picture.
        """
        if self._recorder is not None:
            return {}
        return {front.method: partial(self._first_look, front.task) for front in TASKS.values()}

    def _first_look(self, task: Task, metadata: Metadata, scope: CallScope) -> None:
        hints = dict(metadata)
        model, priority = hints.get(MODEL_KEY), hints.get(PRIORITY_KEY, "interactive")
        if not isinstance(model, str) or priority not in _PRIORITIES:
            return
        try:
            model = self._permitted(model, task, scope)
            self._pipeline.first_look(task, model, _PRIORITIES[str(priority)], scope)
        except ClientError:
            return  # the hint is wrong, or the message is: the message decides

    async def infer(self, front: TaskFront[Any, Any], request: Any, scope: CallScope) -> Any:
        """Answer the request of one task. Raises a `ServiceError`."""
        render = front.renderer(request)
        model = self._permitted(request.model, front.task, scope)
        wanted = Request(task=front.task, model=model, image=request.image, priority=checked_priority(request))
        del request  # it holds another copy of the picture
        reply = await self._pipeline.run(wanted, scope, render)
        used, record = reply.model, scope.record
        used.module_sha256, used.engine, used.dtype, used.device = (
            record.module_sha256,
            engine_of(self._engine, record),
            record.dtype,
            record.device,
        )
        return reply

    async def list_models(
        self, request: vision_pb2.ListModelsRequest, scope: CallScope
    ) -> vision_pb2.ListModelsResponse:
        """List the models of a task that the caller may use, or all of them."""
        return vision_pb2.ListModelsResponse(
            models=[
                self._model(card)
                for card in self._catalog_of(scope).cards
                if request.task in {vision_pb2.TASK_UNSPECIFIED, TASKS[card.task].proto_task}
            ]
        )

    async def get_model(self, request: vision_pb2.GetModelRequest, scope: CallScope) -> vision_pb2.GetModelResponse:
        """Describe one model, with its labels. Raises `ModelNotFound`, `PermissionDenied`."""
        _check_permission(request.name, scope)
        card = self._catalog_of(scope).get(request.name)
        scope.record.model = card.name
        model = self._model(card)
        model.labels.extend(card.labels)
        model.label_colours.extend(card.label_colours)
        return vision_pb2.GetModelResponse(model=model)

    def _permitted(self, model: str, task: Task, scope: CallScope) -> str:
        """Return the name of the model to use. Raises `PermissionDenied`, and what the pipeline would raise.

        The name is looked up among the models of the caller only: no error names another one.
        """
        if scope.models is None:
            return model
        if model:
            _check_permission(model, scope)
        mine = self._catalog_of(scope)
        try:
            return mine.for_task(model, task).name
        except NoDefaultModel:
            names = ", ".join(card.name for card in mine.cards if card.task is task)
            raise PermissionDenied(
                f"this caller may not use the default model for {task}; it may use: {names or 'none for this task'}",
                metadata={"model": ""},
            ) from None

    def _catalog_of(self, scope: CallScope) -> Catalog:
        return self._catalog if scope.models is None else self._catalog.limited_to(scope.models)

    def _model(self, card: Card) -> vision_pb2.Model:
        computed = self._pipeline.computed(card.name)
        return vision_pb2.Model(
            name=card.name,
            version=card.version,
            task=TASKS[card.task].proto_task,
            family=card.family,
            variant=card.variant,
            head=card.head,
            weights=WEIGHTS_STATES[card.weights.state],
            weights_source=card.weights.source,
            input_width=card.input.width,
            input_height=card.input.height,
            parameters=card.parameters,
            macs=card.macs,
            ready=self._health.why_not_ready(card.name) is None,
            is_default=self._catalog.is_default(card),
            published_scores=card.weights.published,
            module_sha256=card.module_sha256,
            definition_sha256=card.recipe.definition_sha256,
            engine=engine_of(self._engine, computed),
            dtype=computed.dtype,
            device=computed.device_kind,
        )


def _check_permission(model: str, scope: CallScope) -> None:
    if scope.models is not None and model not in scope.models:
        raise PermissionDenied(
            f"this caller may not use a model named {model[:LONGEST_NAME]!r}; ListModels lists those that it may use",
            metadata={"model": model[:LONGEST_NAME]},
        )
