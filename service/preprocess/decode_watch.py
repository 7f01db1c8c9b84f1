"""Notices decodes that take far too long: how long each one runs in, a failure and a count out.

The work of each decode is bounded before it begins, so none should take long. One that does keeps its thread and its
memory, and nothing but a restart gets them back. Never ends a decode.
"""

from collections.abc import Callable, Mapping

RESTART_FACTOR = 2  # a decode that takes so many times the limit is a reason to restart the process


class DecodeWatch:
    """Compares running decodes with `max_seconds`.

    `running` returns the seconds that each running decode has taken, by number; it is safe in any thread. `on_overrun`
    is called once for each decode that takes longer.
    """

    def __init__(
        self, running: Callable[[], Mapping[int, float]], *, max_seconds: float, on_overrun: Callable[[], None]
    ) -> None:
        self._running = running
        self._max_seconds = max_seconds
        self._on_overrun = on_overrun
        self._counted: frozenset[int] = frozenset()

    def check(self) -> None:
        """Count the decodes that became too long since the last check. Event loop only."""
        late = frozenset(number for number, seconds in self._running().items() if seconds > self._max_seconds)
        for _ in late - self._counted:
            self._on_overrun()
        self._counted = late

    @property
    def why_not_ready(self) -> str | None:
        """Why no calls should be sent here; None while no decode takes too long. Any thread."""
        return self._failure(self._max_seconds)

    @property
    def why_restart(self) -> str | None:
        """Why the process should be restarted; None while no decode takes far too long. Any thread."""
        return self._failure(RESTART_FACTOR * self._max_seconds)

    def _failure(self, limit_seconds: float) -> str | None:
        oldest_seconds = max(self._running().values(), default=0.0)
        if oldest_seconds <= limit_seconds:
            return None
        return f"decoding is stuck: one picture has been decoded for {oldest_seconds:.0f} s"
