"""Signals that stop a server."""

import asyncio
import os
import signal

from service.app.stop_signal import REPEAT_SECONDS, StopSignal, stop_signal


async def test_repeated_signals_within_a_second_count_once_and_a_later_one_ends_the_process() -> None:
    now, ended = 10.0, list[int]()
    stop = StopSignal(clock=lambda: now, end=ended.append)
    waiting = asyncio.create_task(stop.wait())
    await asyncio.sleep(0)
    assert not waiting.done()
    for _ in range(3):
        stop(signal.SIGTERM)
        now += REPEAT_SECONDS / 4
    await waiting
    assert ended == []
    now = 10.0 + REPEAT_SECONDS
    stop(signal.SIGINT)
    assert ended == [128 + signal.SIGINT]


async def test_a_signal_that_comes_twice_lets_the_process_drain() -> None:
    # By its clock no time passes: a real second may, on a busy machine, and then this test process would end.
    handled, ended = asyncio.Queue[int](), list[int]()

    class Watched(StopSignal):
        def __call__(self, number: int) -> None:
            super().__call__(number)
            handled.put_nowait(number)

    stopped = stop_signal(Watched(clock=lambda: 0.0, end=ended.append))
    try:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.wait_for(handled.get(), 60)
        await asyncio.wait_for(stopped, 60)
        assert ended == []
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().remove_signal_handler(number)
