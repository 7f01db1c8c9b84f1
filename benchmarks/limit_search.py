"""The best in-process throughput of a model over engine x dtype x processes x threads x batch size, and the reference.

In: an archive and the pair that the servers are asked for. Out: `Found` with the limit, and with TorchScript in
float32, each with its best set-up, and the accuracy of every pair. The limit is the fastest pair that a server may run:
a dtype that `auto` refuses to this model is measured, but is no limit. `Limits` keeps limit and reference alive, so
that they can be measured again between the turns of the servers. All pairs take turns at every batch size, because the
speed of a machine drifts.
"""

import contextlib
import multiprocessing
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Self

from benchmarks.limit import BATCHES, InProcess, LimitFailed, Shape, Throughput, shapes
from benchmarks.pairs import REFERENCE, Accuracy, Pair, to_try
from benchmarks.serving_results import LimitPair, LimitTurn
from handlers.hardware import usable_cores

_CHECK_SECONDS = 300.0


@dataclass(frozen=True)
class Found:
    """Result of the search. `reference` is the fastest of TorchScript in float32; None where it was not tried (GPU)."""

    tried: tuple[Throughput, ...]
    limit: Throughput
    reference: Throughput | None
    pairs: tuple[LimitPair, ...]  # each pair with its best set-up and its accuracy, the fastest first


def search(archive: Path, image: bytes, asked: Pair, *, seconds: float, quick: bool, gpu: bool) -> Found:
    """Measure every pair that loads here with every division of the cores and every batch size. Raises `LimitFailed`.

    `asked` is what the servers are asked for. `seconds` is the length of each measurement. `quick` tries one division
    and the two largest batches.
    """
    pairs = to_try(asked, gpu=gpu)
    known = dict.fromkeys(pairs, Accuracy()) if gpu else _accuracies(archive, pairs)
    tried: list[Throughput] = []
    for shape in shapes(usable_cores(), gpu=gpu)[: 1 if quick else None]:
        with InProcess(archive, shape, image, pairs=[*known], gpu=gpu) as processes:
            for batch in BATCHES[-2:] if quick else BATCHES:
                tried += [processes.measure(batch, seconds, pair=pair) for pair in known]
    return summed_up(archive.stem, tried, known, asked)


def summed_up(model: str, tried: Sequence[Throughput], known: Mapping[Pair, Accuracy], asked: Pair) -> Found:
    """What was tried, as the result of the search. Raises `LimitFailed` if no server may run any of it."""
    fastest: dict[Pair, Throughput] = {}
    for one in sorted(tried, key=lambda one: one.per_second, reverse=True):
        fastest.setdefault(one.pair, one)
    accuracy = {pair: known.get(pair, Accuracy()) for pair in fastest}
    admitted = [
        pair for pair in fastest if asked.admits(pair) and (accuracy[pair].admitted or asked.dtype == pair.dtype)
    ]
    if not admitted:
        raise LimitFailed(f"no worker here runs {model} with {asked}: see `python -m benchmarks.engines`")
    return Found(
        tried=tuple(tried),
        limit=fastest[admitted[0]],
        reference=fastest.get(REFERENCE),
        pairs=tuple(
            LimitPair(
                model=model,
                engine=pair.engine,
                dtype=pair.dtype,
                shape=str(one.shape),
                batch=one.batch,
                per_second=one.per_second,
                difference=accuracy[pair].difference,
                agreement=accuracy[pair].agreement,
                admitted=pair in admitted,
            )
            for pair, one in fastest.items()
        ),
    )


def _accuracies(archive: Path, pairs: Sequence[Pair]) -> dict[Pair, Accuracy]:
    """See `engines.accuracies`; in a process of its own, because torch stays out of this one. Raises `LimitFailed`."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_check, args=(archive, tuple(pairs), theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        if ours.poll(_CHECK_SECONDS):
            found: dict[Pair, Accuracy] = ours.recv()
            return found
    except (EOFError, OSError) as error:
        raise LimitFailed(f"the engines of {archive.stem} cannot be compared; the reason is above") from error
    finally:
        ours.close()
        process.kill()
        process.join()
    raise LimitFailed(f"comparing the engines of {archive.stem} took over {_CHECK_SECONDS:.0f} s")


def _check(archive: Path, pairs: tuple[Pair, ...], pipe: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C and ends this process
    from benchmarks.engines import accuracies  # noqa: PLC0415 - torch belongs to this process

    pipe.send(accuracies(archive, 1, pairs))


class Limits:
    """The limit and the reference of one model, ready to be measured at any time. Use as a context manager.

    If both have the same set of processes, they share it.
    """

    def __init__(self, archive: Path, image: bytes, found: Found, *, gpu: bool = False) -> None:
        self.model = archive.stem
        self.found = found
        self._arguments = (archive, image, gpu)
        self._stack = contextlib.ExitStack()
        self._processes: dict[Shape, InProcess] = {}

    def __enter__(self) -> Self:
        archive, image, gpu = self._arguments
        wanted: dict[Shape, list[Pair]] = {}
        for one in (self.found.limit, self.found.reference):
            if one is not None and one.pair not in wanted.get(one.shape, []):
                wanted.setdefault(one.shape, []).append(one.pair)
        with contextlib.ExitStack() as stack:
            for shape, pairs in wanted.items():
                self._processes[shape] = stack.enter_context(InProcess(archive, shape, image, pairs=pairs, gpu=gpu))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def limit(self, number: int, clients: int, seconds: float) -> LimitTurn:
        """Measure the limit in round `number`. With one client: one process with one picture at a time."""
        return self._turn(self.found.limit, number, clients, seconds)

    def reference(self, number: int, clients: int, seconds: float) -> LimitTurn | None:
        """Measure the reference in the same way. None: there is none, or it is the limit."""
        reference = self.found.reference
        if reference is None or reference.pair == self.found.limit.pair:
            return None
        return self._turn(reference, number, clients, seconds)

    def _turn(self, of: Throughput, number: int, clients: int, seconds: float) -> LimitTurn:
        alone = clients == 1
        processes = self._processes[of.shape]
        turn = processes.measure(1 if alone else of.batch, seconds, pair=of.pair, alone=alone)
        return LimitTurn(
            round=number,
            clients=clients,
            model=self.model,
            shape=str(turn.shape),
            batch=turn.batch,
            per_second=turn.per_second,
            cpu_ms_per_picture=turn.cpu_ms_per_picture,
            engine=turn.pair.engine,
            dtype=turn.pair.dtype,
        )
