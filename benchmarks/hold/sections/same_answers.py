"""The same picture has the same answer: alone, in every batch and during faults. Compared bit by bit."""

import asyncio
import itertools
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import psutil

from benchmarks.hold import toy
from benchmarks.hold.calls import Call, Kind, ask, channel
from benchmarks.hold.section import Budget, Row, Section
from benchmarks.hold.server import HoldServer, serving

REQUESTS, MANY_REQUESTS = 10_000, 100_000
CALLERS = 48  # more than two full batches
DEADLINE_SECONDS = 20.0
PICTURES = 100
COLUMNS = ("model", "the picture comes", "requests", "right", "typed errors", "wrong or lost", "held")
_TEXT = """\
{pictures} different pictures are sent again and again by {callers} callers that never pause, so that every picture
meets every size of batch and different neighbours. The answer of the toy model is computed without a server. The size
of a batch is that of the reply's trailer. Typed errors are possible only during faults: then the oldest worker is
killed every three seconds."""


def run(budget: Budget) -> Section:
    """Send the requests and compare every answer."""
    questions = toy.questions(PICTURES, seed=3)
    total = MANY_REQUESTS if budget.full else REQUESTS
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="hold-") as name:
        folder = Path(name)
        toy.build(folder / "archives")
        for one in ("shm", "run"):
            (folder / one).mkdir()
        with serving(folder / "archives", shm=folder / "shm", run=folder / "run") as server:
            budget.progress("pictures that come alone")
            alone = asyncio.run(_ask_all(server.grpc, questions, len(questions), callers=1))
            rows.append(row_of("alone", alone, faults=False))
            budget.progress(f"{total:,} pictures in batches")
            together = _in_batches(server, questions, total)
            for low, high in ((1, 1), (2, 4), (5, 8), (9, 15), (toy.MAX_BATCH, toy.MAX_BATCH)):
                size = f"in batches of {low}" + (f" to {high}" if high > low else "")
                chosen = [one for one in together if low <= one.batch_size <= high]
                rows.append(row_of(size, chosen, faults=False))
            rows.append(row_of("without an answer", [one for one in together if not one.batch_size], faults=True))
            budget.progress(f"{total:,} pictures during faults")
            rows.append(row_of("during faults", _during_faults(server, questions, total), faults=True))
    text = _TEXT.format(pictures=PICTURES, callers=CALLERS)
    return Section("same_answers", "The same answer", text, COLUMNS, tuple(rows))


def row_of(how: str, calls: Sequence[Call], *, faults: bool) -> Row:
    """The line of some calls. `faults`: typed errors are allowed, and so are no calls at all."""
    right = sum(one.kind is Kind.RIGHT for one in calls)
    typed = sum(one.kind is Kind.TYPED for one in calls)
    bad = len(calls) - right - typed
    held = not bad and (faults or (right == len(calls) and right > 0))
    cells = (f"`{toy.NAME}`", how, str(len(calls)), str(right), str(typed), str(bad), "yes" if held else "NO")
    return Row(cells, held)


def _in_batches(server: HoldServer, questions: Sequence[toy.Question], total: int) -> list[Call]:
    """Half of the requests by all callers, the rest by numbers of callers that make smaller batches."""
    sizes = (3, 6, 12, 24)
    calls = asyncio.run(_ask_all(server.grpc, questions, total - total // 2, callers=CALLERS))
    for size in sizes:
        calls += asyncio.run(_ask_all(server.grpc, questions, total // 2 // len(sizes), callers=size))
    return calls


def _during_faults(server: HoldServer, questions: Sequence[toy.Question], total: int) -> list[Call]:
    async def both() -> list[Call]:
        asking = asyncio.create_task(_ask_all(server.grpc, questions, total, callers=CALLERS))
        while not asking.done():
            await asyncio.to_thread(_kill_a_worker, server)
            await asyncio.wait([asking], timeout=3.0)
        return asking.result()

    return asyncio.run(both())


def _kill_a_worker(server: HoldServer) -> None:
    for worker in server.processes("worker")[:1]:
        try:
            worker.kill()
        except psutil.NoSuchProcess:
            continue


async def _ask_all(address: str, questions: Sequence[toy.Question], total: int, *, callers: int) -> list[Call]:
    """Ask `total` questions; each caller asks the next one when its last one has ended. The order is random."""
    order = iter(np.random.default_rng(total + callers).integers(0, len(questions), total).tolist())
    calls: list[Call] = []
    connections = [channel(address) for _ in range(min(callers, 8))]

    async def caller(number: int) -> None:
        for index in order:  # one iterator for all callers
            calls.append(call := Call(time.monotonic()))
            await ask(connections[number % len(connections)], questions[index], DEADLINE_SECONDS, call)
            if call.kind is not Kind.RIGHT:
                await asyncio.sleep(0.05)

    await asyncio.gather(*itertools.starmap(caller, ((number,) for number in range(callers))))
    await asyncio.gather(*(one.close() for one in connections))
    return calls
