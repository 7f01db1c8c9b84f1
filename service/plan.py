"""Which waiting pictures the next batch takes, and how it will go on from there: deadlines in, cuts out.

Pictures wait in two lines, interactive and batch priority: lists of deadlines, earliest first. `next_batch` is the
policy; the batcher uses it to dispatch and `foresee` plays it forward over everything that waits, so that what is
promised and what is done cannot drift apart.

* Interactive pictures go first, as many as can share a batch without breaking the earliest deadline among them.
* Batch-priority pictures take the rows left over, and are owed one row of every eight that leave while one waits. So
  one with k of its line before it is in a batch before 8 * (k + 1) + max_batch more rows have left, whatever comes.
* Who cannot be in time even alone in the batch is hopeless and takes no row.
* A batch-priority picture never makes a batch smaller that has interactive ones: it rides along if it is in time, else
  a later one of its line takes its row.

Pure functions on numbers; knows neither clock nor event loop, and changes nothing it is given.
"""

import heapq
from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

BATCH_PRIORITY_SHARE = 1 / 8  # of the rows that leave while batch-priority work waits

# Batches played forward; what waits beyond them is assumed to leave in full batches, so that the cost is bounded.
_HORIZON = 16


class Forecast(NamedTuple):
    """What is known of the future. `table[n]`: seconds of a batch of n pictures, never falling with n.

    `margin_seconds` is the time an answer needs after its batch: a batch that ends at t is in time for deadlines after
    t + margin.
    """

    table: Sequence[float]
    margin_seconds: float

    @property
    def max_batch(self) -> int:
        """Most pictures in a batch."""
        return len(self.table) - 1

    def largest(self, budget_seconds: float) -> int:
        """The largest batch predicted to take no longer than the budget; 1 where none is."""
        return max(1, bisect_right(self.table, budget_seconds, 1) - 1)


class Situation(NamedTuple):
    """What waits, and what the workers have been sent.

    `interactive`, `batch`: deadlines, rising. `owed_rows`: what batch priority is owed by earlier batches.
    `free_seconds`: when each worker will have done what was sent, earliest first.
    """

    interactive: Sequence[float]
    batch: Sequence[float]
    owed_rows: float
    free_seconds: Sequence[float]


class Cut(NamedTuple):
    """The next batch as ranges [first, stop) of the two lines.

    What stands before `interactive[0]` and before `hopeless_batch` is hopeless; batch priority between `hopeless_batch`
    and `batch[0]` is passed over this time. `limited`: the batch could be larger but for a deadline.
    """

    interactive: tuple[int, int]
    batch: tuple[int, int]
    hopeless_batch: int
    limited: bool

    @property
    def size(self) -> int:
        """Pictures in the batch; 0 only if all that waits is hopeless."""
        return self.interactive[1] - self.interactive[0] + self.batch[1] - self.batch[0]

    def owed_rows(self, before: float, *, still_waiting: bool) -> float:
        """What batch priority is owed after this batch, given what it was owed `before`."""
        taken = self.batch[1] - self.batch[0]
        return max(0.0, before + self.size * BATCH_PRIORITY_SHARE - taken) if still_waiting else 0.0


def next_batch(situation: Situation, forecast: Forecast) -> Cut:
    """Cut the batch for the worker that falls free first."""
    return _cut(
        situation.interactive,
        situation.batch,
        at=(0, 0),
        ready_seconds=situation.free_seconds[0] + forecast.margin_seconds,
        owed_rows=situation.owed_rows,
        forecast=forecast,
    )


def _cut(
    interactive: Sequence[float],
    batch: Sequence[float],
    *,
    at: tuple[int, int],
    ready_seconds: float,
    owed_rows: float,
    forecast: Forecast,
) -> Cut:
    """Cut from the lines beginning `at`; an answer is in time if `ready_seconds` plus its batch's is."""
    earliest_seconds = ready_seconds + forecast.table[1]
    i = bisect_right(interactive, earliest_seconds, at[0])
    j = hopeless_batch = bisect_right(batch, earliest_seconds, at[1])
    left, left_batch = len(interactive) - i, len(batch) - j
    possible = min(left + left_batch, forecast.max_batch)
    first_deadline = interactive[i] if left else batch[j] if left_batch else earliest_seconds
    size = min(possible, forecast.largest(first_deadline - ready_seconds))
    if not left:
        riders = size
    elif not left_batch:
        riders = 0
    else:
        j = bisect_right(batch, ready_seconds + forecast.table[size], j)
        riders = min(len(batch) - j, max(size - left, int(owed_rows + size * BATCH_PRIORITY_SHARE)), size)
    return Cut((i, i + min(left, size - riders)), (j, j + riders), hopeless_batch, size < possible)


class Foreseen(NamedTuple):
    """How playing forward went, above all for the picture that was asked about.

    `lost`: others that will not be in time. `start_seconds`: when its batch starts. `size`: of that batch, 0 if it is
    itself lost. `leads`: it has the earliest deadline of its batch, which can grow only as far as that allows.
    """

    lost: int
    start_seconds: float
    size: int
    leads: bool


def foresee(situation: Situation, forecast: Forecast, *, interactive: bool, place: int) -> Foreseen:
    """Play the policy forward. The picture asked about stands in its line already, at `place`.

    Batch priority that gets lost does not count for an interactive picture: that is what priority means. Its share
    does, even while none of it waits.
    """
    lines = situation.interactive, situation.batch
    free, owed_rows = list(situation.free_seconds), situation.owed_rows
    at, lost = (0, 0), 0
    start_seconds, size, leads = free[0], 0, False
    own_line = 0 if interactive else 1
    for _ in range(_HORIZON):
        if at[0] == len(lines[0]) and (interactive or at[1] == len(lines[1])):
            return Foreseen(lost, start_seconds, size, leads)
        ready_seconds = free[0] + forecast.margin_seconds
        cut = _cut(*lines, at=at, ready_seconds=ready_seconds, owed_rows=owed_rows, forecast=forecast)
        ranges = cut.interactive, cut.batch
        first, stop = ranges[own_line]
        lost += ranges[0][0] - at[0] + (0 if interactive else ranges[1][0] - at[1])
        if at[own_line] <= place < stop:
            start_seconds = free[0]
            if place < first:
                lost -= 1  # itself
            else:
                size = cut.size
                leads = place == first and (interactive or ranges[0][0] == ranges[0][1])
        at = ranges[0][1], ranges[1][1]
        owed_rows = cut.owed_rows(owed_rows, still_waiting=at[1] < len(lines[1]))
        spent_seconds = forecast.table[cut.size]
        if interactive and at[1] == len(lines[1]):
            # Batch priority may come and claim its share before these have left.
            spent_seconds /= 1 - BATCH_PRIORITY_SHARE
        heapq.heapreplace(free, free[0] + spent_seconds)
    if place >= at[own_line]:
        batches = (place - at[own_line]) // forecast.max_batch / len(free)
        start_seconds, size = free[0] + batches * forecast.table[-1], forecast.max_batch
    return Foreseen(lost, start_seconds, size, leads)
