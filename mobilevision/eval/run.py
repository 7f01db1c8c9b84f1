"""Send the pictures of a data set to a server, several at a time, and yield one outcome for each.

In: a client, a model, samples. Out: outcomes in the order in which the calls finish. A picture that the server refuses,
or that cannot be read, is a failed outcome. A failure that holds for every picture (no server, the model is gone or
replaced) ends the run with an `EvalError`. A call is repeated for a while where the server has no room or no ready
worker, and where the connection breaks.
"""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import grpc

from mobilevision.client import CallFailed, VisionClient
from mobilevision.eval.answers import Outcome
from mobilevision.eval.dataset import Dataset, Sample
from mobilevision.eval.errors import EvalError, ModelChanged, ServerFailed, UnusableModel
from mobilevision.eval.measures import MEASURES, Measure
from mobilevision.results import Result
from mobilevision.tasks import TASK_NUMBERS, Task
from service.pb.mobilevision.v1 import vision_pb2

TRIES = 8
_FIRST_WAIT_SECONDS = 0.25  # doubled each time, where the server names no time
_LONGEST_WAIT_SECONDS = 10.0
_AHEAD = 2  # pictures submitted to the pool per thread
# Refusals that hold for every picture.
_FOR_ALL = {"MODEL_NOT_FOUND", "NO_DEFAULT_MODEL", "TASK_MISMATCH", "FIELD_OUT_OF_RANGE", "SHUTTING_DOWN"}
# Codes without a reason: no server answers, another kind of server answers, or a proxy refuses.
_NO_SERVER = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED,
}


@dataclass(frozen=True, slots=True)
class Model:
    """The model under evaluation, as the server describes it. `published` maps a metric to percent."""

    name: str
    version: str
    weights: str
    weights_source: str
    module_sha256: str
    labels: tuple[str, ...]
    published: dict[str, float]


def find_model(client: VisionClient, name: str, task: Task) -> Model:
    """The model called `name`, or the server's default for the task where `name` is empty.

    Raises `UnusableModel`, `ServerFailed`.
    """
    try:
        if not name:
            served = client.list_models(task=TASK_NUMBERS[task]).reply.models
            name = next((model.name for model in served if model.is_default), "")
            if not name:
                raise UnusableModel(f"{client.target} serves no default model for {task}; name a model with --model")
        model = client.get_model(name).reply.model
    except CallFailed as error:
        if error.reason:
            raise UnusableModel(error.message) from error
        raise _server_failed(client, error) from error
    if model.task != TASK_NUMBERS[task]:
        raise UnusableModel(
            f"{name} is a model for {vision_pb2.Task.Name(model.task).removeprefix('TASK_').lower()}, not for {task}"
        )
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
    """Send all samples, `concurrency` at a time. Raises `EvalError`; outcomes yielded before it stay valid.

    `sleep` replaces the waiting between two tries, for tests.
    """
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
    finally:  # also on Ctrl-C, and when the caller closes the generator
        stopping.set()
        pool.shutdown(cancel_futures=True)


@dataclass(frozen=True, slots=True)
class _Patience:
    """How to wait before a call is repeated. No call is repeated once `stopping` is set."""

    stopping: threading.Event
    sleep: Callable[[float], object]


def _ask(client: VisionClient, model: Model, dataset: Dataset, sample: Sample, patience: _Patience) -> Outcome:
    measure, classes = MEASURES[dataset.task], len(model.labels)
    try:
        image = sample.image.read_bytes()
        truth = measure.read_truth(dataset, sample)
        missed = measure.missed(truth, classes)
    except (OSError, ValueError) as error:
        return Outcome(sample.key, measure.empty, "FILE_UNREADABLE", str(error))
    try:
        result = _call(client, model, measure, image, patience)
        used = result.reply.model
        if (used.name, used.version) != (model.name, model.version):
            raise ModelChanged(
                f"{used.name} {used.version} answers now, the run began with {model.name} {model.version}; "
                "start again with --fresh"
            )
        return Outcome(sample.key, measure.answer(result, truth, classes))
    except CallFailed as error:
        return Outcome(sample.key, missed, error.reason or error.code.name, error.message)
    except ValueError as error:  # the sizes differ
        return Outcome(sample.key, missed, "TRUTH_DIFFERS", str(error))


def _call(client: VisionClient, model: Model, measure: Measure, image: bytes, patience: _Patience) -> Result[Any]:
    """One reply. The call is repeated while the server has no room or restarts a worker."""
    for attempt in range(TRIES):
        try:
            return measure.ask(client, model.name, image)
        except CallFailed as error:
            may_repeat = attempt + 1 < TRIES and not patience.stopping.is_set()
            if may_repeat and _is_temporary(error):
                seconds = error.retry_after_seconds or _FIRST_WAIT_SECONDS * 2**attempt
                patience.sleep(min(seconds, _LONGEST_WAIT_SECONDS))
            elif error.reason in _FOR_ALL or (not error.reason and error.code in _NO_SERVER):
                raise _server_failed(client, error) from error
            else:
                raise
    raise AssertionError("this is a bug: the last attempt returns or raises")


def _is_temporary(error: CallFailed) -> bool:
    if error.reason in _FOR_ALL:
        return False
    return error.retry_after_seconds is not None or error.code is grpc.StatusCode.UNAVAILABLE


def _server_failed(client: VisionClient, error: CallFailed) -> EvalError:
    if error.reason:
        return ServerFailed(
            f"{client.target} refuses: {error.reason}: {error.message}; solve this, then run the same command again to "
            "continue"
        )
    if error.code is grpc.StatusCode.UNIMPLEMENTED:
        return ServerFailed(
            f"{client.target} is another kind of server: it does not know mobilevision.v1.VisionService"
        )
    return ServerFailed(
        f"no answer from {client.target} ({error.code.name}: {error.message}); start one with: mobilevision serve, or "
        "name another one with --server; run the same command again to continue"
    )
