"""Keeps the memory of calls in its bounds: measured memory of the process in, uploads that end early out.

A request that has not arrived whole may hold its largest size, and nobody can tell in advance. So the memory of the
process is measured many times a second. While it is over the bound, uploads that have not ended are cut off, the oldest
first, and new ones wait. Freed memory is given back to the system after bursts. Knows no protocol.
"""

import asyncio
from collections.abc import Callable
from typing import Protocol

POLL_SECONDS = 0.025  # a sender on loopback fills some 25 MiB meanwhile
TRIM_SECONDS = 10.0  # between two times that freed memory is given back while nothing is over the bound
TRIM_BYTES = 32 * 2**20  # growth since the start that is worth it
CUT_SHARE = 4  # one of so many uploads is cut off per poll, at least one


class Uploads(Protocol):
    """Requests that have not arrived whole."""

    @property
    def count(self) -> int:
        """How many there are."""
        ...

    def cut_off(self, count: int) -> None:
        """End the oldest ones with `TooManyRequests`."""
        ...

    def hold(self, held: bool) -> None:
        """Let no new request arrive while `held`: it waits, or is refused."""
        ...


class MemoryGuard:
    """Bounds what the process holds beyond what it held when `start` was called, decoding apart.

    `measure` returns the memory of the process, `reserved` what decoding threads have reserved of it, both in bytes.
    `give_back` returns freed memory to the system. It may take milliseconds.
    """

    def __init__(
        self,
        *,
        max_bytes: int,
        uploads: Uploads,
        measure: Callable[[], int],
        reserved: Callable[[], int],
        give_back: Callable[[], None],
    ) -> None:
        self._max_bytes = max_bytes
        self._uploads = uploads
        self._measure = measure
        self._reserved = reserved
        self._give_back = give_back
        self._base_bytes = 0

    def start(self) -> None:
        """Take what the process holds now as its base."""
        self._base_bytes = self._measure()

    @property
    def call_bytes(self) -> int:
        """What calls hold now, in bytes. The reserved memory of decodes is not counted."""
        return max(0, self._measure() - self._base_bytes - self._reserved())

    async def check(self) -> None:
        """Measure once. Over the bound, give freed memory back, and cut uploads off if that is not enough."""
        over = self.call_bytes > self._max_bytes
        if over:
            await asyncio.to_thread(self._give_back)
            over = self.call_bytes > self._max_bytes
        self._uploads.hold(over)
        if over and self._uploads.count:
            self._uploads.cut_off(-(-self._uploads.count // CUT_SHARE))

    async def trim_after_growth(self) -> None:
        """Give freed memory back if the process has grown. What is still used stays."""
        if self._measure() - self._base_bytes >= TRIM_BYTES:
            await asyncio.to_thread(self._give_back)

    async def run(self) -> None:
        """Check for ever."""
        loop = asyncio.get_running_loop()
        trim_at = loop.time() + TRIM_SECONDS
        while True:
            await asyncio.sleep(POLL_SECONDS)
            await self.check()
            if loop.time() >= trim_at:
                await self.trim_after_growth()
                trim_at = loop.time() + TRIM_SECONDS
