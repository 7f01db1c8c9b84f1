"""The in-process limit: the same decode and the same module on the same cores, in plain processes with no network.

In: an archive and a picture. Out: pictures per second and CPU time per picture. What a server achieves is compared with
the best of this over processes x threads x batch size; nothing that decodes and runs every picture can be much faster.
The processes stay between measurements, waiting on a pipe, so that turns cost no start-up.
"""

import multiprocessing
import resource
import signal
import time
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Self

import numpy as np

from model_store.archive import read_card
from service.decode import Limits, decode

BATCHES = (1, 4, 8, 16)
UNLIMITED = Limits(max_bytes=2**30, max_pixels=2**30)
_START_SECONDS = 300.0
_GRACE_SECONDS = 120.0


class LimitFailed(RuntimeError):
    """A process of the limit ended or hung; the message says what was asked of it."""


@dataclass(frozen=True)
class Shape:
    """How the cores are divided: plain processes, or a server's workers, and torch threads in each."""

    processes: int
    threads: int

    def __str__(self) -> str:
        return f"{self.processes}x{self.threads}"


@dataclass(frozen=True)
class Throughput:
    """All processes together."""

    shape: Shape
    batch: int
    per_second: float
    cpu_ms_per_picture: float


def shapes(cores: int, *, gpu: bool = False) -> tuple[Shape, ...]:
    """The ways to divide the cores that are worth trying: a process per core, half as many, and one for all.

    On a GPU the processes share the device and mostly decode; more than eight only take its memory.
    """
    most = min(cores, 8) if gpu else cores
    counts = sorted({most, max(1, most // 2), 1}, reverse=True)
    return tuple(Shape(count, max(1, cores // count)) for count in counts)


def unpack(archive: Path, folder: Path) -> Path:
    """The archive's files, for `handlers.runtime.load`."""
    with zipfile.ZipFile(archive) as packed:
        packed.extractall(folder)
    return folder


class InProcess:
    """Processes that decode and run pictures when asked. Use as a context manager."""

    def __init__(self, archive: Path, shape: Shape, picture: bytes, *, gpu: bool = False) -> None:
        self._shape = shape
        context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
        self._pipes: list[Connection] = []
        self._processes = []
        for _ in range(shape.processes):
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(archive, shape.threads, picture, gpu, theirs), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)
        try:
            for pipe in self._pipes:
                self._answer(pipe, _START_SECONDS)  # loaded and warm
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def measure(self, batch: int, seconds: float, *, alone: bool = False) -> Throughput:
        """All processes at once, or one alone while the others wait, each for `seconds`. Raises `LimitFailed`."""
        pipes = self._pipes[:1] if alone else self._pipes
        for pipe in pipes:
            pipe.send((batch, seconds))
        answers = [self._answer(pipe, seconds + _GRACE_SECONDS) for pipe in pipes]
        done = sum(pictures for pictures, _, _ in answers)
        return Throughput(
            shape=Shape(len(pipes), self._shape.threads),
            batch=batch,
            per_second=sum(pictures / spent for pictures, spent, _ in answers),
            cpu_ms_per_picture=sum(cpu for _, _, cpu in answers) / done * 1e3,
        )

    def close(self) -> None:
        """End the processes."""
        for pipe in self._pipes:
            pipe.close()  # which they take for the end
        for process in self._processes:
            process.join(5)
            if process.is_alive():
                process.kill()
                process.join()

    def _answer(self, pipe: Connection, seconds: float) -> tuple[int, float, float]:
        try:
            if pipe.poll(seconds):
                pictures, spent_seconds, cpu_seconds = pipe.recv()
                return pictures, spent_seconds, cpu_seconds
        except (EOFError, OSError) as error:
            raise LimitFailed("a process of the in-process limit ended; its words are above") from error
        raise LimitFailed(f"a process of the in-process limit did not answer within {seconds:.0f} s")


def best(tried: Sequence[Throughput]) -> Throughput:
    """The fastest of what was tried."""
    return max(tried, key=lambda throughput: throughput.per_second)


def _work(archive: Path, threads: int, image: bytes, gpu: bool, pipe: Connection) -> None:
    from handlers.runtime import RuntimeOptions, load  # noqa: PLC0415 - torch belongs to these processes

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears Ctrl-C and closes the pipe
    card = read_card(archive)
    with TemporaryDirectory() as folder:
        unpacked = unpack(archive, Path(folder))
        runner = load(unpacked, gpu_id=0 if gpu else None, options=RuntimeOptions(threads=threads))
    prepared = partial(decode, size=card.input, preprocess=card.preprocess, limits=UNLIMITED)
    pipe.send((0, 0.0, 0.0))
    while True:
        try:
            batch, seconds = pipe.recv()
        except EOFError:
            return
        pictures, cpu_before, began = 0, _cpu_seconds(), time.perf_counter()
        while time.perf_counter() - began < seconds:
            runner.run(np.stack([prepared(image).pixels for _ in range(batch)]))
            pictures += batch
        pipe.send((pictures, time.perf_counter() - began, _cpu_seconds() - cpu_before))


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
