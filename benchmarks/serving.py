"""Served throughput against the in-process limit: `python -m benchmarks.serving [--json]`.

The limit is the same decode and the same module on the same cores, in plain processes with no network, at its best over
processes x threads x batch size. Served is `mobilevision serve` with its defaults, called by asynchronous clients in a
process of their own. Limit and served are measured in turns and compared by their medians, because only the ratio means
something on a machine that others use too.
"""

import argparse
import asyncio
import contextlib
import io
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from grpc import aio
from PIL import Image
from rich.console import Console
from rich.table import Table

from model_store.archive import read_card
from service.decode import Limits, decode
from service.pb.mobilevision.v1 import vision_pb2, vision_pb2_grpc

PICTURE_SIDE_PX = 256
LIMIT_SHAPES = ((1, 1), (1, 2), (2, 1))  # processes x threads
LIMIT_BATCHES = (1, 4, 8, 16)


def picture() -> bytes:
    """A 256 px JPEG cut from a photograph."""
    with Image.open("docs/pictures/coffee.jpg") as photograph:
        stream = io.BytesIO()
        photograph.resize((PICTURE_SIDE_PX, PICTURE_SIDE_PX)).save(stream, "JPEG", quality=88)
    return stream.getvalue()


def limit_worker(archive: str, threads: int, batch: int, seconds: float) -> float:
    """Pictures per second of decode + module in this process."""
    from handlers.runtime import RuntimeOptions, load  # noqa: PLC0415 - torch belongs to the worker processes

    card, image = read_card(Path(archive)), picture()
    limits = Limits(max_bytes=2**30, max_pixels=2**30)
    with tempfile.TemporaryDirectory() as folder:
        with zipfile.ZipFile(archive) as packed:
            packed.extractall(folder)
        runner = load(Path(folder), gpu_id=None, options=RuntimeOptions(threads=threads))
    done, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        pictures = [
            decode(image, size=card.input, preprocess=card.preprocess, limits=limits).pixels for _ in range(batch)
        ]
        runner.run(np.stack(pictures))
        done += batch
    return done / (time.perf_counter() - started)


def limit(archive: str, processes: int, threads: int, batch: int, seconds: float) -> float:
    """Pictures per second of all processes together."""
    with ProcessPoolExecutor(processes) as pool:
        return sum(pool.map(limit_worker, *zip(*[(archive, threads, batch, seconds)] * processes, strict=True)))


@contextlib.contextmanager
def server(archives: str, model: str, workers: int, threads: int) -> Iterator[str]:
    """`mobilevision serve` with one model; yields its address."""
    with tempfile.TemporaryDirectory() as folder:
        ready = Path(folder) / "ready.json"
        command = [sys.executable, "-m", "service", "serve", model, "--archives", archives, "--ready-file", str(ready)]
        settings = {"MOBILEVISION_WORKERS_PER_MODEL": str(workers), "MOBILEVISION_WORKER_THREADS": str(threads)}
        settings["MOBILEVISION_LOG_LEVEL"] = "warning"
        process = subprocess.Popen(
            [*command, "--grpc-port", "0", "--http-port", "0"],
            env=os.environ | settings,  # noqa: TID251 - the child's environment
        )
        try:
            while not ready.exists():
                if process.poll() is not None:
                    raise SystemExit("the server did not start")
                time.sleep(0.05)
            yield json.loads(ready.read_text())["grpc"]
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()


async def _load(address: str, clients: int, seconds: float) -> dict[str, float]:
    request = vision_pb2.ClassifyRequest(image=picture())
    latencies: list[float] = []
    async with aio.insecure_channel(address) as channel:
        stub = vision_pb2_grpc.VisionServiceStub(channel)
        end = time.perf_counter() + seconds

        async def client() -> None:
            while time.perf_counter() < end:
                began = time.perf_counter()
                await stub.Classify(request, timeout=30)
                latencies.append(time.perf_counter() - began)

        await asyncio.gather(*(client() for _ in range(clients)))
    cuts = statistics.quantiles(latencies, n=100)
    return {"per_second": len(latencies) / seconds, "p50_ms": cuts[49] * 1e3, "p99_ms": cuts[98] * 1e3}


def load(address: str, clients: int, seconds: float) -> dict[str, float]:
    """Throughput and latency of `clients` that each send the next picture when the last is answered."""
    return asyncio.run(_load(address, clients, seconds))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--archives", default="model_store/archives")
    parser.add_argument("--model", default="mobilevit_xxs_classify")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3, help="turns of limit and served")
    parser.add_argument("--workers", type=int, default=1, help="TorchServe workers")
    parser.add_argument("--threads", type=int, default=0, help="torch threads per worker; 0: one per core")
    parser.add_argument("--json", action="store_true", help="print JSON only")
    options = parser.parse_args()
    archive = f"{options.archives}/{options.model}.mar"
    console = Console(stderr=True)
    tried = {}
    with console.status("looking for the in-process limit"):
        for processes, threads in LIMIT_SHAPES:
            for batch in LIMIT_BATCHES:
                tried[processes, threads, batch] = limit(archive, processes, threads, batch, options.seconds / 2)
    best = max(tried, key=lambda shape: tried[shape])
    limits: list[float] = []
    served: dict[int, list[dict[str, float]]] = {clients: [] for clients in options.clients}
    with (
        ProcessPoolExecutor(1) as client_process,
        server(options.archives, options.model, options.workers, options.threads) as address,
        console.status("measuring in turns"),
    ):
        client_process.submit(load, address, max(options.clients), options.seconds).result()  # the JVM warms up
        for _ in range(options.rounds):
            limits.append(limit(archive, *best, options.seconds))
            for clients in options.clients:
                served[clients].append(client_process.submit(load, address, clients, options.seconds).result())
    limit_per_second = statistics.median(limits)
    cases = {
        clients: {name: statistics.median(run[name] for run in runs) for name in runs[0]}
        for clients, runs in served.items()
    }
    report = {
        "model": options.model,
        "limit": {"processes": best[0], "threads": best[1], "batch": best[2], "per_second": limit_per_second},
        "served": cases,
        "ratio_to_limit": {clients: case["per_second"] / limit_per_second for clients, case in cases.items()},
    }
    if options.json:
        print(json.dumps(report))
        return
    table = Table(
        title=f"{options.model}: in-process limit {limit_per_second:.0f}/s at processes x threads x batch {best}"
    )
    for column in ("clients", "pictures/s", "ratio to limit", "p50 ms", "p99 ms"):
        table.add_column(column, justify="right")
    for clients, case in cases.items():
        ratio = case["per_second"] / limit_per_second
        table.add_row(
            str(clients), f"{case['per_second']:.0f}", f"{ratio:.2f}", f"{case['p50_ms']:.1f}", f"{case['p99_ms']:.1f}"
        )
    Console().print(table)


if __name__ == "__main__":
    main()
