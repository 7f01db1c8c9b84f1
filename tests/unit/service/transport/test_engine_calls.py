"""Batches through the engine whose workers hang, on virtual time; and what counts as hung."""

import asyncio
import math

import pytest
import virtual

from service.core.errors import BackendUnavailable
from service.transport.engine_calls import EngineCalls
from service.transport.patience import Patience


class Engine:
    """Answers after `seconds`. A worker that is ended loses its batch, and another one answers from then on."""

    def __init__(self) -> None:
        self.seconds = 0.1
        self.ended: list[float] = []
        self.failure: Exception | None = None
        self._lost = asyncio.Event()

    async def infer(self, model: str, frame: bytes, *, version: str, timeout_seconds: float) -> bytes:
        try:
            async with asyncio.timeout(self.seconds):
                await self._lost.wait()
        except TimeoutError:
            return b"answer"
        raise BackendUnavailable("Worker died.")

    async def end_workers(self, model: str, version: str) -> int:
        assert (model, version) == ("m", "1.0")
        self.ended.append(asyncio.get_running_loop().time())
        if self.failure is not None:
            raise self.failure
        self.seconds = 0.1
        self._lost.set()
        self._lost = asyncio.Event()
        return 1


class Bench:
    def __init__(self, workers: int = 1) -> None:
        self.engine = Engine()
        patience = Patience(hung_seconds=3.0, longest_seconds=30.0)
        self.calls = EngineCalls("m", "1.0", runner=self.engine, patience=patience, workers=lambda: workers)

    async def ask(self) -> bytes:
        return await self.calls.infer(b"frame", 60.0, pictures=1)

    async def learn(self) -> None:
        for _ in range(3):
            await self.ask()


def test_a_worker_that_hangs_is_ended_after_seconds_and_its_batch_is_lost() -> None:
    async def play() -> None:
        bench = Bench()
        await bench.learn()
        bench.engine.seconds = math.inf
        asked_at = asyncio.get_running_loop().time()
        with pytest.raises(BackendUnavailable):
            await bench.ask()
        assert bench.engine.ended == [pytest.approx(asked_at + 3.0)]
        assert await bench.ask() == b"answer"

    virtual.run(play())


def test_a_worker_that_never_answered_is_ended_after_the_longest_time() -> None:
    async def play() -> None:
        bench = Bench()
        bench.engine.seconds = math.inf
        with pytest.raises(BackendUnavailable):
            await bench.ask()
        assert bench.engine.ended == [pytest.approx(30.0)]

    virtual.run(play())


def test_one_overdue_batch_of_two_workers_ends_none() -> None:
    async def play() -> None:
        bench = Bench(workers=2)
        await bench.learn()
        bench.engine.seconds = 10.0
        assert await bench.ask() == b"answer"
        assert bench.engine.ended == []
        bench.engine.seconds = math.inf
        answers = await asyncio.gather(bench.ask(), bench.ask(), return_exceptions=True)
        assert [type(answer) for answer in answers] == [BackendUnavailable] * 2
        assert len(bench.engine.ended) == 1

    virtual.run(play())


def test_a_batch_that_was_given_up_is_not_overdue() -> None:
    async def play() -> None:
        bench = Bench(workers=2)
        await bench.learn()
        bench.engine.seconds = math.inf
        gone = asyncio.ensure_future(bench.ask())
        await asyncio.sleep(5.0)
        gone.cancel()
        bench.engine.seconds = 10.0
        assert await bench.ask() == b"answer"
        assert bench.engine.ended == []

    virtual.run(play())


def test_an_engine_that_cannot_end_its_workers_costs_no_answer(caplog: pytest.LogCaptureFixture) -> None:
    async def play() -> None:
        bench = Bench()
        await bench.learn()
        bench.engine.seconds, bench.engine.failure = 10.0, BackendUnavailable("gone")
        assert await bench.ask() == b"answer"
        assert "cannot be ended" in caplog.text

    virtual.run(play())


def test_patience_is_ten_times_the_usual_time_and_doubles_after_each_hung_worker() -> None:
    patience = Patience(hung_seconds=3.0, longest_seconds=30.0)
    assert patience.seconds(1) == 30.0
    for _ in range(3):
        patience.answered(2, 1.0)
    assert (patience.seconds(1), patience.seconds(2)) == (5.0, 10.0)
    patience.hung()
    assert (patience.seconds(1), patience.seconds(2)) == (10.0, 20.0)
    patience.hung()
    assert patience.seconds(2) == 30.0
    patience.answered(1, 0.01)
    assert patience.seconds(1) == pytest.approx(5.0 * 0.98)
