"""What the workers of one model are doing, as far as the gateway can tell: which batches were sent and answered.

In: batches sent and answered, under keys that the caller gives. Out: when each worker will be free. A worker runs one
batch at a time, and then takes the batch that was sent first. Never predicts by itself: the seconds per batch size come
in as a table.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass


@dataclass(slots=True)
class _Sent:
    size: int
    sent_at: float
    started_at: float | None  # None while it waits for a worker


class InflightBatches:
    """The batches in flight at `count` workers."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._sent: dict[Hashable, _Sent] = {}  # in the order they were sent

    def __len__(self) -> int:
        return len(self._sent)

    def send(self, key: Hashable, size: int, now: float) -> None:
        """Note that a batch of `size` pictures was sent."""
        self._sent[key] = _Sent(size, now, now if len(self._sent) < self.count else None)

    def resize(self, count: int, now: float) -> None:
        """Count with `count` workers from now on. They are taken to have the oldest batches."""
        self.count = count
        for place, sent in enumerate(self._sent.values()):
            if place >= count:
                sent.started_at = None
            elif sent.started_at is None:
                sent.started_at = now

    def started_at(self, key: Hashable) -> float:
        """When a worker took the batch: when it was sent, or when a worker became free for it."""
        sent = self._sent[key]
        return sent.sent_at if sent.started_at is None else sent.started_at

    def finish(self, key: Hashable, now: float) -> None:
        """Note that a batch was answered or lost. Its worker takes the oldest batch that waits."""
        if self._sent.pop(key).started_at is None:
            return  # refused while it waited, or run by a worker that is not counted: the others are as busy as before
        for sent in self._sent.values():
            if sent.started_at is None:
                sent.started_at = now
                return

    def oldest_seconds(self, now: float) -> float:
        """How long the oldest batch has been with a worker, 0 when none is."""
        started = (sent.started_at for sent in self._sent.values() if sent.started_at is not None)
        return max((now - seconds for seconds in started), default=0.0)

    def overdue(self, seconds: float, now: float) -> int:
        """How many batches have been with a worker for longer than `seconds`."""
        started = (sent.started_at for sent in self._sent.values() if sent.started_at is not None)
        return sum(now - started_at > seconds for started_at in started)

    def free_at(self, now: float, table: Sequence[float]) -> list[float]:
        """For each worker, when it will have done all batches sent to it; earliest first.

        `table[n]` is the time of a batch of n pictures, in seconds. A batch that is overdue is expected to take as long
        again as it is overdue.
        """
        free = [now] * self.count
        worker = 0
        for sent in self._sent.values():
            if sent.started_at is not None:
                free[worker] = now + abs(sent.started_at + table[sent.size] - now)
                worker += 1
        if self.count > 1:
            free.sort()
        for sent in self._sent.values():
            if sent.started_at is None:
                free[0] += table[sent.size]
                free.sort()
        return free
