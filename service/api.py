"""VisionService: the wire on one side, the pipeline on the other. Protobuf goes no deeper than here and `results`."""

import asyncio
from functools import partial
from typing import Any

from grpc import aio

from model_store.card import Card, Task
from service.catalog import Catalog
from service.errors import FieldOutOfRange
from service.health import Health
from service.interceptors import current_record
from service.pb.mobilevision.v1 import vision_pb2, vision_pb2_grpc
from service.pipeline import Pipeline, Request
from service.results import (
    WEIGHTS_STATES,
    checked_mask_encoding,
    checked_max_detections,
    checked_score_threshold,
    checked_top_k,
    classify_response,
    detect_response,
    segment_response,
)
from service.work import Priority

Context = aio.ServicerContext[Any, Any]

_TASKS = {
    Task.CLASSIFY: vision_pb2.TASK_CLASSIFY,
    Task.DETECT: vision_pb2.TASK_DETECT,
    Task.SEGMENT: vision_pb2.TASK_SEGMENT,
}
_PRIORITIES: dict[int, Priority] = {
    vision_pb2.PRIORITY_UNSPECIFIED: Priority.INTERACTIVE,
    vision_pb2.PRIORITY_INTERACTIVE: Priority.INTERACTIVE,
    vision_pb2.PRIORITY_BATCH: Priority.BATCH,
}


class VisionApi(vision_pb2_grpc.VisionServiceServicer):
    """The servicer. Options are checked before any work is done; errors are raised as `ServiceError`."""

    def __init__(
        self, *, pipeline: Pipeline, catalog: Catalog, health: Health, default_deadline_seconds: float
    ) -> None:
        self._pipeline = pipeline
        self._catalog = catalog
        self._health = health
        self._default_deadline_seconds = default_deadline_seconds

    async def Classify(self, request: vision_pb2.ClassifyRequest, context: Context) -> vision_pb2.ClassifyResponse:
        """See the proto."""
        render = partial(classify_response, top_k=checked_top_k(request))
        return await self._pipeline.run(self._request(Task.CLASSIFY, request, context), current_record(), render)

    async def Detect(self, request: vision_pb2.DetectRequest, context: Context) -> vision_pb2.DetectResponse:
        """See the proto."""
        render = partial(
            detect_response,
            score_threshold=checked_score_threshold(request),
            max_detections=checked_max_detections(request),
        )
        return await self._pipeline.run(self._request(Task.DETECT, request, context), current_record(), render)

    async def Segment(self, request: vision_pb2.SegmentRequest, context: Context) -> vision_pb2.SegmentResponse:
        """See the proto."""
        render = partial(
            segment_response,
            encoding=checked_mask_encoding(request),
            include_confidence=request.include_confidence,
        )
        return await self._pipeline.run(self._request(Task.SEGMENT, request, context), current_record(), render)

    async def ListModels(
        self, request: vision_pb2.ListModelsRequest, context: Context
    ) -> vision_pb2.ListModelsResponse:
        """See the proto."""
        return vision_pb2.ListModelsResponse(
            models=[
                self._model(card)
                for card in self._catalog.cards
                if request.task in {vision_pb2.TASK_UNSPECIFIED, _TASKS[card.task]}
            ]
        )

    async def GetModel(self, request: vision_pb2.GetModelRequest, context: Context) -> vision_pb2.GetModelResponse:
        """See the proto."""
        card = self._catalog.get(request.name)
        current_record().model = card.name
        model = self._model(card)
        model.labels.extend(card.labels)
        return vision_pb2.GetModelResponse(model=model)

    def _request(
        self,
        task: Task,
        request: vision_pb2.ClassifyRequest | vision_pb2.DetectRequest | vision_pb2.SegmentRequest,
        context: Context,
    ) -> Request:
        remaining = context.time_remaining()
        seconds = self._default_deadline_seconds if remaining is None else remaining
        deadline = asyncio.get_running_loop().time() + seconds
        priority = _PRIORITIES.get(request.priority)
        if priority is None:
            raise FieldOutOfRange(
                f"priority is {request.priority}; this server knows 1 (interactive) and 2 (batch)",
                metadata={"field": "priority"},
            )
        return Request(
            task=task, model=request.model, image=request.image, deadline_seconds=deadline, priority=priority
        )

    def _model(self, card: Card) -> vision_pb2.Model:
        return vision_pb2.Model(
            name=card.name,
            version=card.version,
            task=_TASKS[card.task],
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
        )
