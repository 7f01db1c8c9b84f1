"""What the workers of one model are doing, as far as it can be told from outside: batches sent and answered.

Every worker runs one batch at a time and takes the oldest one sent that waits. Batches are told apart by the keys the
caller gives them. Never predicts by itself: the seconds per size come in as a table.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass


@dataclass(slots=True)
class _Sent:
    size: int
    sent_seconds: float
    started_seconds: float | None  # None while it waits for a worker


class Workers:
    """The batches in flight at `count` workers."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._flight: dict[Hashable, _Sent] = {}  # in the order they were sent

    def __len__(self) -> int:
        return len(self._flight)

    def send(self, key: Hashable, size: int, now: float) -> None:
        """A batch was sent."""
        self._flight[key] = _Sent(size, now, now if len(self._flight) < self.count else None)

    def resize(self, count: int, now: float) -> None:
        """There are more or fewer workers: the oldest batches are taken to be theirs."""
        self.count = count
        for place, sent in enumerate(self._flight.values()):
            if place >= count:
                sent.started_seconds = None
            elif sent.started_seconds is None:
                sent.started_seconds = now

    def started_seconds(self, key: Hashable) -> float:
        """When a worker took the batch: when it was sent, or when a worker fell free for it."""
        sent = self._flight[key]
        return sent.sent_seconds if sent.started_seconds is None else sent.started_seconds

    def finish(self, key: Hashable, now: float) -> None:
        """A batch was answered or lost; its worker takes the oldest that waits."""
        if self._flight.pop(key).started_seconds is None:
            return  # refused while it waited, or taken by a worker we do not know of: ours are as busy as before
        for sent in self._flight.values():
            if sent.started_seconds is None:
                sent.started_seconds = now
                return

    def oldest_seconds(self, now: float) -> float:
        """How long the oldest batch has been with a worker, 0 when none is."""
        started = (sent.started_seconds for sent in self._flight.values() if sent.started_seconds is not None)
        return max((now - seconds for seconds in started), default=0.0)

    def free_seconds(self, now: float, table: Sequence[float]) -> list[float]:
        """When each worker will have done all that was sent, earliest first; `table[n]` is the time of n pictures.

        A batch that is overdue is expected to take as long again as it is overdue.
        """
        free = [now] * self.count
        worker = 0
        for sent in self._flight.values():
            if sent.started_seconds is not None:
                free[worker] = now + abs(sent.started_seconds + table[sent.size] - now)
                worker += 1
        if self.count > 1:
            free.sort()
        for sent in self._flight.values():
            if sent.started_seconds is None:
                free[0] += table[sent.size]
                free.sort()
        return free
