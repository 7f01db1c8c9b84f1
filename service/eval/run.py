"""Sends the pictures of a data set to a server, several at a time, and yields one outcome for each.

In: a client, a model, samples. Out: outcomes in the order they finish; a picture the server refuses, or that cannot be
read, is a failed outcome. What holds for every picture (nobody listens, the model is gone or was replaced) ends the run
with an `EvalError`. Refusals for want of room or of a ready worker, and broken connections, are repeated for a while.
"""

import io
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
from PIL import Image

from model_store.card import Task
from service.client import CallFailed, Result, VisionClient
from service.eval import scores
from service.eval.answers import Answer, Boxes, Found, Outcome, Pixels, Top
from service.eval.datasets import Dataset, Sample
from service.eval.errors import EvalError, ModelChanged, ServerFailed, UnusableModel
from service.pb.mobilevision.v1 import vision_pb2

TOP = 5
TRIES = 8
_FIRST_WAIT_SECONDS = 0.25  # doubled each time, where the server names no time itself
_LONGEST_WAIT_SECONDS = 10.0
_AHEAD = 2  # pictures handed to the pool per thread
_TASKS = {
    Task.CLASSIFY: vision_pb2.TASK_CLASSIFY,
    Task.DETECT: vision_pb2.TASK_DETECT,
    Task.SEGMENT: vision_pb2.TASK_SEGMENT,
}
# Refusals that hold for every picture.
_FOR_ALL = {"MODEL_NOT_FOUND", "NO_DEFAULT_MODEL", "TASK_MISMATCH", "FIELD_OUT_OF_RANGE", "SHUTTING_DOWN"}

# What is said where no server of ours answers, or none that lets us in.
_NOBODY = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED,
}


@dataclass(frozen=True, slots=True)
class Model:
    """The model under evaluation, as the server describes it. `published`: metric to percent."""

    name: str
    version: str
    weights: str
    weights_source: str
    module_sha256: str
    labels: tuple[str, ...]
    published: dict[str, float]


def find_model(client: VisionClient, name: str, task: Task) -> Model:
    """The model called `name`, or the server's default for the task. Raises `UnusableModel`, `ServerFailed`."""
    try:
        if not name:
            served = client.list_models(task=_TASKS[task]).reply.models
            name = next((model.name for model in served if model.is_default), "")
            if not name:
                raise UnusableModel(f"{client.target} serves no model that can {task}")
        model = client.get_model(name).reply.model
    except CallFailed as error:
        if error.reason:
            raise UnusableModel(error.message) from error
        raise _server_failed(client, error) from error
    if model.task != _TASKS[task]:
        raise UnusableModel(f"{name} answers {vision_pb2.Task.Name(model.task).removeprefix('TASK_')}, not {task}")
    return Model(
        name=model.name,
        version=model.version,
        weights=vision_pb2.WeightsState.Name(model.weights).removeprefix("WEIGHTS_STATE_").lower(),
        weights_source=model.weights_source,
        module_sha256=model.module_sha256,
        labels=tuple(model.labels),
        published=dict(model.published_scores),
    )


def evaluate(
    client: VisionClient,
    model: Model,
    dataset: Dataset,
    samples: tuple[Sample, ...],
    *,
    concurrency: int,
    sleep: Callable[[float], object] | None = None,
) -> Iterator[Outcome]:
    """Ask about all samples. Raises `EvalError`; what was yielded before stays true. `sleep` is for tests."""
    stopping = threading.Event()
    patience = _Patience(stopping, sleep or stopping.wait)
    waiting = iter(samples)
    running: set[Future[Outcome]] = set()
    pool = ThreadPoolExecutor(concurrency, thread_name_prefix="eval")
    try:
        while True:
            for sample in waiting:
                running.add(pool.submit(_ask, client, model, dataset, sample, patience))
                if len(running) >= concurrency * _AHEAD:
                    break
            if not running:
                return
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()
    finally:  # also on Ctrl-C, and when the caller stops asking
        stopping.set()
        pool.shutdown(cancel_futures=True)


@dataclass(frozen=True, slots=True)
class _Patience:
    """How to wait before a call is repeated; once `stopping`, nothing is repeated."""

    stopping: threading.Event
    sleep: Callable[[float], object]


def _ask(client: VisionClient, model: Model, dataset: Dataset, sample: Sample, patience: _Patience) -> Outcome:
    classes = len(model.labels)
    truth = None
    try:
        image = sample.image.read_bytes()
        if dataset.task is Task.SEGMENT:
            truth = scores.read_truth(sample, zero_is_ignored=dataset.zero_is_ignored)
            missed = scores.overlap(truth, None, classes=classes)
    except (OSError, ValueError) as error:
        return Outcome(sample.key, _NONE[dataset.task], "FILE_UNREADABLE", str(error))
    try:
        result = _call(client, model, dataset.task, image, patience)
        used = result.reply.model
        if (used.name, used.version) != (model.name, model.version):
            raise ModelChanged(
                f"{used.name} {used.version} answers now, the run began with {model.name} {model.version}; "
                "begin anew with --fresh"
            )
        if truth is None:
            return Outcome(sample.key, _labels(result) if dataset.task is Task.CLASSIFY else _boxes(result))
        with Image.open(io.BytesIO(result.reply.mask_png)) as mask:
            return Outcome(sample.key, scores.overlap(truth, np.asarray(mask), classes=classes))
    except CallFailed as error:
        reason, message = error.reason or error.code.name, error.message
    except ValueError as error:  # the sizes differ
        reason, message = "TRUTH_DIFFERS", str(error)
    return Outcome(sample.key, _NONE[dataset.task] if truth is None else missed, reason, message)


_NONE: dict[Task, Answer] = {Task.CLASSIFY: Top(), Task.DETECT: Boxes(), Task.SEGMENT: Pixels()}


def _call(client: VisionClient, model: Model, task: Task, image: bytes, patience: _Patience) -> Result[Any]:
    """One answer, repeating the call while the server has no room or restarts a worker."""
    for attempt in range(TRIES):
        try:
            if task is Task.CLASSIFY:
                return client.classify(image, model=model.name, top_k=TOP)
            if task is Task.DETECT:
                # The whole ranking: precision at low scores is part of the average.
                return client.detect(image, model=model.name, score_threshold=0.0, max_detections=scores.MAX_DETECTIONS)
            return client.segment(image, model=model.name, mask_encoding=vision_pb2.MASK_ENCODING_PNG)
        except CallFailed as error:
            unavailable = error.code is grpc.StatusCode.UNAVAILABLE
            temporary = error.retry_after_seconds is not None or unavailable
            if error.reason not in _FOR_ALL and temporary and attempt + 1 < TRIES and not patience.stopping.is_set():
                named = error.retry_after_seconds or _FIRST_WAIT_SECONDS * 2**attempt
                patience.sleep(min(named, _LONGEST_WAIT_SECONDS))
                continue
            if error.reason in _FOR_ALL or (not error.reason and error.code in _NOBODY):
                raise _server_failed(client, error) from error
            raise
    raise AssertionError("this is a bug: the last attempt returns or raises")


def _labels(result: Result[Any]) -> Top:
    return Top(tuple(label.id for label in result.reply.labels))


def _boxes(result: Result[Any]) -> Boxes:
    return Boxes(
        tuple(
            Found(
                label=found.label.id,
                score=found.label.score,
                x=found.box.x_min,
                y=found.box.y_min,
                width=found.box.x_max - found.box.x_min,
                height=found.box.y_max - found.box.y_min,
            )
            for found in result.reply.detections
        )
    )


def _server_failed(client: VisionClient, error: CallFailed) -> EvalError:
    if error.reason:
        return ServerFailed(f"{client.target} refuses: {error.reason}: {error.message}; mend that, run again to go on")
    if error.code is grpc.StatusCode.UNIMPLEMENTED:
        return ServerFailed(
            f"{client.target} is another kind of server: it does not know mobilevision.v1.VisionService"
        )
    return ServerFailed(
        f"no answer from {client.target} ({error.code.name}: {error.message}); start it with: mobilevision serve, or "
        "name another one with --server; run the same command again to go on"
    )
