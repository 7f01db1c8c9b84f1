"""SIGTERM and SIGINT: the first asks for a drain, a later one ends the process at once.

In: signals. Out: a task that ends at the first one. Signals within `REPEAT_SECONDS` of the first count once: a signal
to a process group also comes from each parent that passes it on, such as a shell, `uv run` or an init process.
"""

import asyncio
import os
import signal
import time
from collections.abc import Callable

REPEAT_SECONDS = 1.0


class StopSignal:
    """The state of the stop of one process. Call it with the number of each signal."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic, end: Callable[[int], object] = os._exit) -> None:
        self._clock = clock
        self._end = end
        self._stop = asyncio.Event()
        self._first_at = 0.0

    def __call__(self, number: int) -> None:
        """Ask for a drain, or end the process."""
        now = self._clock()
        if not self._stop.is_set():
            self._first_at = now
            self._stop.set()
        elif now - self._first_at >= REPEAT_SECONDS:
            self._end(128 + number)  # the process guard then ends TorchServe

    async def wait(self) -> None:
        """Return after the first signal."""
        await self._stop.wait()


def stop_signal(stop: StopSignal | None = None) -> asyncio.Task[None]:
    """Handle SIGTERM and SIGINT from now on. Returns a task that ends at the first one."""
    stop = stop or StopSignal()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop, number)
    return asyncio.create_task(stop.wait())
