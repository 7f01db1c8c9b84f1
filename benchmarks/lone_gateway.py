"""A real gateway over workers that compute nothing, in a process of its own: what `benchmarks.gateway_cpu` measures.

In: a folder for shared memory, and one empty line per question on standard input. Out: lines of JSON: first the
address, then for each question the CPU seconds of this process so far, the calls that it answered, and the batches that
it sent. It ends when standard input ends. The workers are processes of their own, so their CPU time is not counted.
They wait as long as a network would compute. `service` and `handlers` are those of PYTHONPATH, so this file also runs
the gateway of another checkout. It imports nothing else of this project.
"""

import asyncio
import gc
import itertools
import json
import multiprocessing
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from handlers.contract import worker_protocol
from handlers.contract.card import Card, InputSize, Normalize, Output, Parity, Preprocess, Task, Weights, WeightsState
from handlers.contract.frame import Array
from handlers.contract.shm_layout import Memory
from handlers.gateway_connections import GatewayConnections
from service.app.gateway import Gateway
from service.core import logs
from service.core.catalog import Catalog
from service.core.settings import Settings
from service.engines.base import ModelStatus
from service.observability.metrics import Metrics

WORKERS = 2
CLASSES, BEST = 1000, 100  # as the classifiers of the zoo: names of ImageNet, scores of the best hundred
MICRO_BATCH = 4  # pictures that a worker says to run at once
# Preprocessing of the zoo's cards, by the name of the model here.
CARDS: Mapping[str, tuple[int, Preprocess]] = {
    "mobilevit": (256, Preprocess(mode="crop", shorter_side_px=288, antialias=False)),
    "emo": (224, Preprocess(mode="crop", shorter_side_px=256, interpolation="bicubic", crop_offset="round")),
}


def card(name: str) -> Card:
    """The card of one model."""
    side_px, preprocess = CARDS[name]
    return Card(
        name=name,
        task=Task.CLASSIFY,
        family="none",
        variant="none",
        head="none",
        paper="none",
        input=InputSize(height=side_px, width=side_px),
        preprocess=preprocess,
        normalize=Normalize(),
        labels=tuple(f"a name of one or two words, {number}" for number in range(CLASSES)),
        outputs=(
            Output(name="scores", dtype="float32", shape=(BEST,)),
            Output(name="labels", dtype="int32", shape=(BEST,)),
        ),
        parameters=1,
        macs=1,
        weights=Weights(state=WeightsState.RANDOM, source="benchmark", sha256="0" * 64),
        parity=Parity(scripted_max_abs_diff=0, reloaded_max_abs_diff=0, batch_row_max_abs_diff=0),
        module_sha256="0" * 64,
    )


def work(questions: Connection, folder: str, picture_seconds: float) -> None:
    """Be one worker until the gateway ends: answer questions, then batches from a connection to the gateway."""
    scores = np.linspace(0.9, 0.0, BEST, dtype=np.float32)
    labels = np.arange(BEST, dtype=np.int32)
    memory = Memory(Path(folder))

    def run(rows: Array | Sequence[Array]) -> Mapping[str, Array]:
        time.sleep(len(rows) * picture_seconds)
        return {"scores": np.tile(scores, (len(rows), 1)), "labels": np.tile(labels, (len(rows), 1))}

    def answer(frame: bytes | bytearray) -> bytes:
        about: worker_protocol.Meta = {"part": MICRO_BATCH, "engine": "none", "dtype": "float32", "device": "cpu"}
        return worker_protocol.answer(
            frame, run=run, memory=memory, about=about, call=lambda name: connections.open(name, memory.connect)
        )

    connections = GatewayConnections(answer)
    while True:
        try:
            questions.send_bytes(answer(questions.recv_bytes()))
        except (EOFError, OSError):
            return


class StandIn:
    """An engine of `WORKERS` workers. It is its own runner and its own version manager."""

    name = "none"
    replica_settings: Mapping[str, Any] = {}

    def __init__(self, workers: Sequence[Connection]) -> None:
        # By model: the models ask at the same time, and each must reach every worker.
        self._turns = {name: itertools.cycle(workers) for name in CARDS}
        self._lock = threading.Lock()

    @property
    def runner(self) -> "StandIn":
        """See `Engine.runner`."""
        return self

    @property
    def versions(self) -> "StandIn":
        """See `Engine.versions`."""
        return self

    async def infer(self, model: str, frame: bytes, *, timeout_seconds: float, version: str = "") -> bytes:
        """See `Runner.infer`. The gateway asks this way until all workers have connected."""
        return await asyncio.to_thread(self._ask, model, frame)

    def _ask(self, model: str, frame: bytes) -> bytes:
        with self._lock:
            worker = next(self._turns[model])
            worker.send_bytes(frame)
            return worker.recv_bytes()

    async def end_workers(self, model: str, version: str) -> int:
        """See `Runner.end_workers`. These workers never hang."""
        return 0

    async def model_status(self, model: str, version: str = "") -> ModelStatus:
        """See `VersionManager.model_status`."""
        return ModelStatus(ready_workers=WORKERS, total_workers=WORKERS)

    async def start(self) -> None:
        """See `Engine.start`."""

    async def supervise(self) -> None:
        """See `Engine.supervise`."""

    async def stop(self) -> None:
        """See `Engine.stop`."""


async def serve(engine: StandIn, folder: str) -> None:
    """Serve until standard input ends, and answer its questions."""
    settings = Settings(grpc_port=0, http_port=0, workers_per_model=WORKERS, shm_dir=Path(folder))
    metrics = Metrics()
    gateway = Gateway(
        settings=settings,
        catalog=Catalog([card(name) for name in CARDS]),
        engine=engine,  # type: ignore[arg-type]  # it never loads a version
        metrics=metrics,
    )
    address, _ = await gateway.start()
    gc.collect()
    gc.freeze()  # as the server does
    _say({"grpc": address})
    while await asyncio.to_thread(sys.stdin.readline):
        answered = _total(metrics, "mobilevision_requests_total", method="Classify", code="OK")
        batches = _total(metrics, "mobilevision_batch_size_count")
        _say({"cpu_seconds": time.process_time(), "answered": answered, "batches": batches})
    await gateway.stop()


def _total(metrics: Metrics, name: str, **labels: str) -> float:
    """The sum of a series over the models."""
    found = (metrics.registry.get_sample_value(name, {"model": model, **labels}) for model in CARDS)
    return sum(value or 0.0 for value in found)


def _say(line: Mapping[str, object]) -> None:
    print(json.dumps(line), flush=True)


def main() -> None:
    """Start the workers and serve. Arguments: the folder, and the seconds that a worker takes for a picture."""
    folder, picture_seconds = sys.argv[1], float(sys.argv[2])
    spawn = multiprocessing.get_context("spawn")
    ends = []
    for _ in range(WORKERS):
        ours, theirs = spawn.Pipe()
        spawn.Process(target=work, args=(theirs, folder, picture_seconds), daemon=True).start()
        theirs.close()
        ends.append(ours)
    logs.configure(level="info", log_format="json")  # as in production: one line per call
    asyncio.run(serve(StandIn(ends), folder))


if __name__ == "__main__":
    main()
