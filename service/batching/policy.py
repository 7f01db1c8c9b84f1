"""The batching policy: deadlines of the waiting pictures in, the next batch out.

Pictures wait in two queues, one for interactive and one for batch priority. A queue is a list of deadlines, earliest
first. `next_batch` chooses the pictures of the next batch. `simulate` and `lost` apply the same choice again and again
to all that waits, so that admission promises only what dispatch does.

A row is the place of one picture in a batch.

* Interactive pictures go first: as many as fit into a batch that ends before the earliest deadline among them.
* Batch-priority pictures fill the remaining rows of a batch. In addition, while one waits, batch priority is owed one
  row of every eight that leave. A batch-priority picture with k others before it is therefore in a batch before
  8 * (k + 1) + max_batch more rows have left, whatever else arrives.
* A picture is hopeless when it would be late even alone in the next batch. It gets no row.
* A batch-priority picture never makes a batch with interactive pictures smaller. If it would be late in that batch, a
  later batch-priority picture gets its row.

Pure functions on numbers. They never read a clock, never touch the event loop, and change nothing they are given.
"""

import heapq
from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

BATCH_PRIORITY_SHARE = 1 / 8  # of the rows that leave while batch-priority pictures wait

# Seconds reserved per second of work, so that such pictures can take that share.
_RESERVE = BATCH_PRIORITY_SHARE / (1 - BATCH_PRIORITY_SHARE)

# `simulate` plays this many batches. It assumes full batches after them, so that its cost is bounded.
_HORIZON = 16

# These values are named tuples, not dataclasses: `simulate` makes up to 16 plans per call, and a frozen dataclass takes
# three times as long to make.


class LatencyTable(NamedTuple):
    """How long batches take.

    `seconds[n]` is the predicted time of a batch of n pictures, n from 0 to `max_batch`; it never falls with n.
    `margin_seconds` is the time an answer needs after its batch: a batch that ends at t is in time for deadlines from
    t + margin_seconds on.
    """

    seconds: Sequence[float]
    margin_seconds: float

    @property
    def max_batch(self) -> int:
        """Most pictures in a batch."""
        return len(self.seconds) - 1

    def largest(self, budget_seconds: float) -> int:
        """The largest batch that is predicted to take no longer than the budget; 1 if none is."""
        return max(1, bisect_right(self.seconds, budget_seconds, 1) - 1)


class QueueState(NamedTuple):
    """What waits, and when the workers are free.

    `interactive`, `batch`: deadlines, rising. `owed_rows`: rows that earlier batches owe to batch priority.
    `free_at`: for each worker, when it will have done all batches sent to it; earliest first.
    """

    interactive: Sequence[float]
    batch: Sequence[float]
    owed_rows: float
    free_at: Sequence[float]


class BatchPlan(NamedTuple):
    """The pictures of the next batch, as ranges of places in the two queues.

    Interactive pictures before `interactive.start` and batch-priority pictures before `hopeless_batch` are hopeless.
    Batch-priority pictures from `hopeless_batch` up to `batch.start` are passed over this time. `limited`: without the
    earliest deadline the batch would be larger.
    """

    interactive: range
    batch: range
    hopeless_batch: int
    limited: bool

    @property
    def size(self) -> int:
        """Pictures in the batch; 0 only if all that waits is hopeless."""
        return len(self.interactive) + len(self.batch)

    def owed_rows(self, before: float, *, still_waiting: bool) -> float:
        """Rows owed to batch priority after this batch. `before`: rows owed until now."""
        if not still_waiting:
            return 0.0
        return max(0.0, before + self.size * BATCH_PRIORITY_SHARE - len(self.batch))


class Simulated(NamedTuple):
    """What the simulation predicts for one picture, and for the pictures around it.

    `lost`: how many others will be late. `start_at`: when the picture's batch starts. `size`: pictures in that batch, 0
    if the picture itself will be late. `leads`: the picture has the earliest deadline of its batch, which limits how
    large the batch can become. `tight`: some batch would end too late if batch priority took its share before it.
    """

    lost: int
    start_at: float
    size: int
    leads: bool
    tight: bool


def next_batch(state: QueueState, latency: LatencyTable) -> BatchPlan:
    """Choose the batch for the worker that is free first."""
    return _plan(state, latency, 0, 0, state.free_at[0] + latency.margin_seconds, state.owed_rows)


def _plan(
    state: QueueState, latency: LatencyTable, first: int, first_batch: int, ready_at: float, owed_rows: float
) -> BatchPlan:
    """Plan a batch from the queues without the pictures before `first` and `first_batch`.

    A batch of n pictures is in time for deadlines from `ready_at` + `latency.seconds[n]` on.
    """
    interactive, batch, seconds = state.interactive, state.batch, latency.seconds
    alone_at = ready_at + seconds[1]
    first = bisect_right(interactive, alone_at, first)
    first_batch = hopeless_batch = bisect_right(batch, alone_at, first_batch)
    waiting, waiting_batch = len(interactive) - first, len(batch) - first_batch
    possible = min(waiting + waiting_batch, latency.max_batch)
    earliest = interactive[first] if waiting else batch[first_batch] if waiting_batch else alone_at
    size = min(possible, latency.largest(earliest - ready_at))
    if not waiting_batch:
        batch_rows = 0
    elif not waiting:
        batch_rows = size
    else:
        first_batch = bisect_right(batch, ready_at + seconds[size], first_batch)
        share = int(owed_rows + size * BATCH_PRIORITY_SHARE)
        batch_rows = min(len(batch) - first_batch, max(size - waiting, share), size)
    return BatchPlan(
        range(first, first + min(waiting, size - batch_rows)),
        range(first_batch, first_batch + batch_rows),
        hopeless_batch,
        size < possible,
    )


def simulate(state: QueueState, latency: LatencyTable, *, interactive: bool, place: int) -> Simulated:
    """Predict what becomes of one picture, which `state` already contains at `place` of its queue.

    For an interactive picture, late batch-priority pictures are not counted as lost. But batch-priority pictures may
    arrive and take their share of the rows, so an interactive picture is in time only if it is so both without and with
    such arrivals. Neither implies the other: less time makes batches smaller, and small batches sometimes meet
    deadlines that large ones miss. Where nothing is tight, one play shows both.
    """
    played = _play(state, latency, interactive=interactive, place=place, arrivals=False)
    if not played.tight or played.size == 0:
        return played
    with_arrivals = _play(state, latency, interactive=interactive, place=place, arrivals=True)
    return with_arrivals._replace(lost=max(played.lost, with_arrivals.lost))


def lost(state: QueueState, latency: LatencyTable, *, interactive: bool) -> int:
    """Predict how many waiting pictures will be late, counted as `simulate` counts them."""
    nobody = len(state.interactive if interactive else state.batch)
    played = _play(state, latency, interactive=interactive, place=nobody, arrivals=False)
    if not played.tight:
        return played.lost
    return max(played.lost, _play(state, latency, interactive=interactive, place=nobody, arrivals=True).lost)


def _play(state: QueueState, latency: LatencyTable, *, interactive: bool, place: int, arrivals: bool) -> Simulated:
    """Play the policy until the queues are empty. `arrivals`: batch-priority pictures arrive and take their share."""
    deadlines, deadlines_batch, owed_rows, free_at = state
    seconds, margin_seconds = latency
    workers = [(at, 0.0) for at in free_at]  # a heap of (when it is free, seconds reserved for arrivals until then)
    start_at, size, leads, tight, lost = free_at[0], 0, False, False, 0
    left = left_batch = 0  # pictures that have left the two queues
    for _ in range(_HORIZON):
        if left == len(deadlines) and (interactive or left_batch == len(deadlines_batch)):
            return Simulated(lost, start_at, size, leads, tight)
        now, reserved_seconds = workers[0]
        plan = _plan(state, latency, left, left_batch, now + margin_seconds, owed_rows)
        taken, taken_batch = plan.interactive, plan.batch
        planned = len(taken) + len(taken_batch)
        spent_seconds = seconds[planned]
        begin_at = now + reserved_seconds
        if reserved_seconds and taken and begin_at + spent_seconds + margin_seconds > deadlines[taken.start]:
            tight = True
        lost += taken.start - left
        if interactive:
            own, own_left = taken, left
        else:
            own, own_left = taken_batch, left_batch
            lost += taken_batch.start - left_batch  # pictures that are passed over are taken for lost
        if own_left <= place < own.stop:
            start_at = begin_at
            if place < own.start:
                lost -= 1  # the picture itself
            else:
                size, leads = planned, place == own.start and (interactive or not taken)
        left, left_batch = taken.stop, taken_batch.stop
        still_waiting = left_batch < len(deadlines_batch)
        owed_rows = plan.owed_rows(owed_rows, still_waiting=still_waiting)
        now += spent_seconds
        if interactive and not still_waiting:
            if arrivals:
                now += spent_seconds * _RESERVE
            else:
                reserved_seconds += spent_seconds * _RESERVE
        heapq.heapreplace(workers, (now, reserved_seconds))
    before = place - (left if interactive else left_batch)
    if before >= 0:
        batches = before // latency.max_batch / len(workers)
        start_at, size = sum(workers[0]) + batches * seconds[-1], latency.max_batch
    return Simulated(lost, start_at, size, leads, tight)
