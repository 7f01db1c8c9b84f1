"""Cards, outputs and a whole gateway without a model, for unit and contract tests."""

import contextlib
import io
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
from fake_engine import FakeEngine
from grpc import aio
from PIL import Image

from handlers.contract.card import Card, InputSize, Normalize, Output, Parity, Preprocess, Task, Weights, WeightsState
from handlers.contract.frame import Array
from service.app.gateway import Gateway
from service.core.catalog import Catalog
from service.core.settings import Settings
from service.observability.metrics import Metrics
from service.observability.tracing import OFF, Tracing

SIDE = 32
DIGEST = "0" * 64

OUTPUTS = {
    Task.CLASSIFY: (
        Output(name="scores", dtype="float32", shape=(3,)),
        Output(name="labels", dtype="int32", shape=(3,)),
    ),
    Task.DETECT: (
        Output(name="boxes", dtype="float32", shape=(4, 4)),
        Output(name="scores", dtype="float32", shape=(4,)),
        Output(name="labels", dtype="int32", shape=(4,)),
        Output(name="counts", dtype="int32", shape=()),
    ),
    Task.SEGMENT: (
        Output(name="classes", dtype="uint8", shape=(SIDE, SIDE)),
        Output(name="confidence", dtype="uint8", shape=(2, 2)),
    ),
}


def toy_card(task: Task = Task.CLASSIFY, *, name: str = "", weights: WeightsState = WeightsState.RANDOM) -> Card:
    """The card of a model with three classes and an input of 32 x 32 pixels."""
    return Card(
        name=name or f"toy_{task}",
        task=task,
        family="toy",
        variant="t",
        head="none",
        paper="none",
        input=InputSize(height=SIDE, width=SIDE),
        preprocess=Preprocess(mode="squash"),
        normalize=Normalize(),
        labels=("dark", "gray", "bright"),
        outputs=OUTPUTS[task],
        parameters=1,
        macs=1,
        weights=Weights(state=weights, source="tests", sha256=DIGEST),
        parity=Parity(scripted_max_abs_diff=0, reloaded_max_abs_diff=0, batch_row_max_abs_diff=0),
        module_sha256=DIGEST,
    )


def toy_run(model: str, pixels: Array) -> dict[str, Array]:
    """Predict by brightness. The first label is 0, 1 or 2: the third of the range 0..255 with the picture's mean."""
    count = len(pixels)
    first = np.clip(pixels.reshape(count, -1).mean(1) // 86, 0, 2).astype(np.int32)
    labels = (first[:, None] + np.arange(3)) % 3
    scores = np.tile(np.array([0.7, 0.2, 0.1], np.float32), (count, 1))
    if model.startswith("toy_classify"):
        return {"scores": scores, "labels": labels.astype(np.int32)}
    if model.startswith("toy_detect"):
        boxes = np.tile(np.array([[0.25, 0.25, 0.75, 0.5]] + [[0, 0, 0, 0]] * 3, np.float32), (count, 1, 1))
        scores = np.tile(np.array([0.9, 0, 0, 0], np.float32), (count, 1))
        labels = np.concatenate([first[:, None], np.zeros((count, 3), np.int32)], 1)
        return {
            "boxes": boxes,
            "scores": scores,
            "labels": labels.astype(np.int32),
            "counts": np.ones(count, np.int32),
        }
    classes = np.broadcast_to(first[:, None, None], (count, SIDE, SIDE)).astype(np.uint8)
    return {"classes": classes, "confidence": np.full((count, 2, 2), 200, np.uint8)}


def picture(width: int = 64, height: int = 48, *, gray: int = 200, form: str = "PNG") -> bytes:
    """An encoded picture of one shade."""
    stream = io.BytesIO()
    Image.new("RGB", (width, height), (gray, gray, gray)).save(stream, form)
    return stream.getvalue()


def local_settings(**overrides: Any) -> Settings:
    """Settings for a gateway of a test: any free ports, no shared memory, nothing from the environment."""
    values = {"grpc_port": 0, "http_port": 0, "health_poll_seconds": 0.05, "decode_threads": 2}
    values |= {"shm_megabytes": 0} | overrides
    return Settings.model_construct(**({n: f.default for n, f in Settings.model_fields.items()} | values))


class RunningGateway:
    """A gateway over a fake engine, and a gRPC channel to the gateway."""

    def __init__(self, gateway: Gateway, backend: FakeEngine, metrics: Metrics, grpc: str, http: str) -> None:
        self.gateway = gateway
        self.backend = backend
        self.metrics = metrics
        self.grpc = grpc
        self.http = http
        self.channel = aio.insecure_channel(grpc)


@contextlib.asynccontextmanager
async def running_gateway(
    cards: list[Card] | None = None,
    *,
    worker_shm_dir: Path | None = None,
    tracing: Tracing = OFF,
    process_bytes: Callable[[], int] = lambda: 0,  # the memory of pytest is not a gateway's
    **overrides: Any,
) -> AsyncIterator[RunningGateway]:
    """A whole gateway with toy models, on free ports. The workers see shared memory in `worker_shm_dir`."""
    backend, metrics = FakeEngine(toy_run, shm_dir=worker_shm_dir), Metrics()
    catalog = Catalog(cards or [toy_card(task) for task in Task])
    gateway = Gateway(
        settings=local_settings(**overrides),
        catalog=catalog,
        engine=backend,
        metrics=metrics,
        tracing=tracing,
        process_bytes=process_bytes,
    )
    grpc_address, http_address = await gateway.start()
    running = RunningGateway(gateway, backend, metrics, grpc_address, http_address)
    try:
        yield running
    finally:
        await running.channel.close()
        await gateway.stop()


def read(name: str) -> bytes:
    """One of the photographs of docs/pictures."""
    return (Path(__file__).parent.parent / "docs" / "pictures" / name).read_bytes()
