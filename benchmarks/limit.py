"""The in-process limit: the same decode and the same module on the same cores, in plain processes without a network.

In: an archive, a picture, and the pairs of engine and dtype to load. Out: pictures per second and CPU time per picture.
`benchmarks.limit_search` finds the best over engine x dtype x processes x threads x batch size. No server that decodes
and runs every picture can be much faster. The processes stay alive between measurements and wait on a pipe, so a turn
has no start-up cost.
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
from typing import Any, Self

import numpy as np

from benchmarks.pairs import AUTO, Pair
from model_store.build.archive import read_card
from service.preprocess.image import decode
from service.preprocess.limits import Limits

BATCHES = (1, 4, 8, 16)
UNLIMITED = Limits(max_bytes=2**30, max_pixels=2**30)
_START_SECONDS = 300.0
_GRACE_SECONDS = 120.0


class LimitFailed(RuntimeError):
    """A process of the in-process limit ended or did not answer in time."""


@dataclass(frozen=True)
class Shape:
    """How the cores are divided: the number of processes (or workers of a server) and the torch threads of each."""

    processes: int
    threads: int

    def __str__(self) -> str:
        return f"{self.processes}x{self.threads}"


@dataclass(frozen=True)
class Throughput:
    """Throughput of all processes together."""

    pair: Pair
    shape: Shape
    batch: int
    per_second: float
    cpu_ms_per_picture: float


def shapes(cores: int, *, gpu: bool = False) -> tuple[Shape, ...]:
    """The divisions of the cores that are tried: one process per core, half as many, and one process in all.

    With a GPU at most eight processes are tried. They share the device and mostly decode; more only take its memory.
    """
    most = min(cores, 8) if gpu else cores
    counts = sorted({most, max(1, most // 2), 1}, reverse=True)
    return tuple(Shape(count, max(1, cores // count)) for count in counts)


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack an archive into `folder`, as `handlers.runtime.load` needs it. Returns `folder`."""
    with zipfile.ZipFile(archive) as packed:
        packed.extractall(folder)
    return folder


class InProcess:
    """Processes that decode and run pictures on request. Use as a context manager.

    Every process loads every pair of `pairs`, so that pairs can take turns. `loaded` has what the workers chose for
    each.
    """

    def __init__(
        self, archive: Path, shape: Shape, picture: bytes, *, pairs: Sequence[Pair] = (AUTO,), gpu: bool = False
    ) -> None:
        """Start the processes and wait until they are warm. Raises `LimitFailed`."""
        self._shape = shape
        context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
        self._pipes: list[Connection] = []
        self._processes = []
        for _ in range(shape.processes):
            parent_pipe, child_pipe = context.Pipe()
            process = context.Process(
                target=_work, args=(archive, shape.threads, picture, gpu, tuple(pairs), child_pipe), daemon=True
            )
            process.start()
            child_pipe.close()
            self._pipes.append(parent_pipe)
            self._processes.append(process)
        try:
            answers = [self._answer(pipe, _START_SECONDS) for pipe in self._pipes]  # loaded and warm
        except BaseException:
            self.close()
            raise
        self.loaded: dict[Pair, Pair] = dict(zip(pairs, answers[0], strict=True))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def measure(self, batch: int, seconds: float, *, pair: Pair | None = None, alone: bool = False) -> Throughput:
        """Run all processes for `seconds`; with `alone` only one of them. Raises `LimitFailed`.

        `batch` is the number of pictures in each batch, `pair` one of the loaded pairs, None for the first.
        """
        asked = next(iter(self.loaded)) if pair is None else pair
        pipes = self._pipes[:1] if alone else self._pipes
        for pipe in pipes:
            pipe.send((asked, batch, seconds))
        answers: list[tuple[int, float, float]] = [self._answer(pipe, seconds + _GRACE_SECONDS) for pipe in pipes]
        done = sum(pictures for pictures, _, _ in answers)
        return Throughput(
            pair=self.loaded[asked],
            shape=Shape(len(pipes), self._shape.threads),
            batch=batch,
            per_second=sum(pictures / spent for pictures, spent, _ in answers),
            cpu_ms_per_picture=sum(cpu for _, _, cpu in answers) / done * 1e3,
        )

    def close(self) -> None:
        """End the processes."""
        for pipe in self._pipes:
            pipe.close()  # a closed pipe ends the process
        for process in self._processes:
            process.join(5)
            if process.is_alive():
                process.kill()
                process.join()

    def _answer(self, pipe: Connection, seconds: float) -> Any:
        try:
            if pipe.poll(seconds):
                return pipe.recv()
        except (EOFError, OSError) as error:
            raise LimitFailed("a process of the in-process limit ended; its output is above") from error
        raise LimitFailed(f"a process of the in-process limit did not answer within {seconds:.0f} s")


def _work(archive: Path, threads: int, image: bytes, gpu: bool, pairs: tuple[Pair, ...], pipe: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C and closes the pipe
    from handlers.runtime import RuntimeOptions, load  # noqa: PLC0415 - torch belongs to these processes

    card = read_card(archive)
    runners = {}
    with TemporaryDirectory() as folder:
        unpacked = unpack(archive, Path(folder))
        for pair in pairs:
            options = RuntimeOptions(threads=threads, engine=pair.engine, dtype=pair.dtype)
            runners[pair] = load(unpacked, gpu_id=0 if gpu else None, options=options)
    chosen = tuple(Pair(runner.engine, runner.dtype_name) for runner in runners.values())
    for asked, found in zip(pairs, chosen, strict=True):
        if not asked.admits(found):
            raise LimitFailed(f"the worker was asked for {asked} and runs {found}: see `python -m benchmarks.engines`")
    prepared = partial(decode, size=card.input, preprocess=card.preprocess, limits=UNLIMITED)
    pipe.send(chosen)
    while True:
        try:
            asked, batch, seconds = pipe.recv()
        except EOFError:
            return
        runner, pictures, cpu_before, began_at = runners[asked], 0, _cpu_seconds(), time.perf_counter()
        while time.perf_counter() - began_at < seconds:
            runner.run(np.stack([prepared(image).pixels for _ in range(batch)]))
            pictures += batch
        pipe.send((pictures, time.perf_counter() - began_at, _cpu_seconds() - cpu_before))


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
