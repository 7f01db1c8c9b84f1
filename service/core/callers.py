"""Whether several callers use a queue: the names of callers in, one yes or no out. Never reads a clock."""

import math

SHARED_SECONDS = 60.0  # a queue is shared for this long after its caller changed the last time


class RecentCallers:
    """Tells one caller alone from several. It keeps one name, so callers without end cost no memory."""

    def __init__(self) -> None:
        self._last: str | None = None
        self._shared_until = -math.inf

    def note(self, caller: str, now: float) -> bool:
        """Note a call, and return whether another caller called in the last `SHARED_SECONDS` or so."""
        if caller != self._last:
            if self._last is not None:
                self._shared_until = now + SHARED_SECONDS
            self._last = caller
        return self.shared(now)

    def shared(self, now: float) -> bool:
        """Return whether another caller called in the last `SHARED_SECONDS` or so."""
        return now < self._shared_until
