"""Admission: a call's deadline and the state of the queue in, a decision out.

A call is admitted if its picture will be answered in time, and if no picture that was admitted before becomes late
because of it. So admitted calls are answered in time, and overload ends in early refusals.

* Nothing is refused without evidence: with no recent batch to predict from, every call is admitted.
* Room for errors of the prediction is added to the time a call needs, but never more than a quarter of the time the
  call has. A machine that cannot be predicted still works, and some of its answers are late.
* A picture with the earliest deadline of its batch limits that batch. It must leave time for a batch half as long as
  the time it has. Otherwise short deadlines would make batches small, and lower the throughput for all.
* Where several callers share the queue, the pictures of a caller that already wait count twice against its next call:
  in the places of the queue, and in the time until the deadline. So a caller that floods leaves as much room as it
  takes, another caller finds that room, and callers that flood together keep equal parts. There a picture is also
  queued as if its deadline were no later than the time that a full queue takes (`fair_wait_seconds`). Otherwise a
  caller with short deadlines would always be served before one with long deadlines.

Pure functions on values. They never read a clock and never change the queue.
"""

import math
from bisect import bisect_right
from enum import Enum
from typing import NamedTuple

from service.batching.policy import BATCH_PRIORITY_SHARE, LatencyTable, QueueState, lost, simulate
from service.core.errors import Bug, DeadlineExceeded, DeadlineUnreachable, QueueFull, ServiceError
from service.core.types import Priority

LEAST_RETRY_SECONDS = 0.05

_ERROR_MARGIN = 3.0  # in mean prediction errors. Dispatch takes less, so that noise does not make batches smaller.
_MOST_FOR_ERRORS = 0.25  # of the time a call has
_LEAST_FAIR_BATCHES = 5
_PLAIN_MARGIN_SECONDS = 1.0  # for rendering and errors of the prediction, where no simulation is needed


# Named tuples, not frozen dataclasses, for the same reason as in `policy`: each call makes them.


class Rejection(Enum):
    """Why a call is not admitted."""

    DEADLINE_PASSED = "deadline passed"
    QUEUE_FULL = "queue full"
    TOO_LITTLE_TIME = "too little time, even for an idle server"
    BUSY = "too little time, because of the work that runs and waits"


class AdmissionState(NamedTuple):
    """All that a decision depends on.

    `now`: a reading of the clock that the deadlines are readings of. `queues.free_at`: predicted, with `latency`.
    `latency`: for batches up to a full one, None without evidence. `full_batch_seconds`: learned time of a full batch,
    0 before the first one. `error_seconds`: mean error of the prediction. `max_queue`: most pictures that may wait per
    priority. `decode_wait_seconds`: until the decoding of the picture begins. `rendering_seconds`: time that the reply
    to this call needs after its batch. The deadlines in `queues` are those of the batches: the time of rendering is
    subtracted. `own_waiting`: pictures of the same caller and priority that wait. `own_ahead`: those of them that are
    not behind this call. Both are 0 where one caller is alone. `fair_wait_seconds`: see `fair_wait_seconds()`.
    """

    now: float
    queues: QueueState
    latency: LatencyTable | None
    full_batch: int
    full_batch_seconds: float
    error_seconds: float
    max_queue: int
    decode_wait_seconds: float = 0.0
    rendering_seconds: float = 0.0
    own_waiting: int = 0
    own_ahead: int = 0
    fair_wait_seconds: float = math.inf

    @property
    def own_seconds(self) -> float:
        """Time that the caller's own pictures before this call take: what the call must leave to other callers."""
        return self.own_ahead / self.full_batch * self.full_batch_seconds / len(self.queues.free_at)


class Decision(NamedTuple):
    """The decision on a call. `rejection` is None if the call is admitted.

    `needed_seconds`: predicted time until the answer, 0 if nothing is predicted. `retry_after_seconds`: after this time
    the same call may be admitted; None if waiting alone cannot help.
    """

    rejection: Rejection | None
    needed_seconds: float = 0.0
    retry_after_seconds: float | None = None


def fair_wait_seconds(
    priority: Priority, *, max_queue: int, full_batch: int, full_batch_seconds: float, workers: int
) -> float:
    """How long a picture waits in a full queue of this priority.

    With equal bounds in places and in time, callers get about equal shares whatever their deadlines are. The value is
    never so short that an idle server would refuse a call: a call needs the time of two or three full batches.
    """
    share = BATCH_PRIORITY_SHARE if priority is Priority.BATCH else 1.0
    batches = max(max_queue / full_batch / workers, _LEAST_FAIR_BATCHES)
    return batches * full_batch_seconds / share


def decide(deadline_at: float, priority: Priority, state: AdmissionState) -> Decision:
    """Decide whether a call with this deadline is admitted."""
    if deadline_at <= state.now:
        return Decision(Rejection.DEADLINE_PASSED)
    queue = state.queues.interactive if priority is Priority.INTERACTIVE else state.queues.batch
    if len(queue) + state.own_waiting >= state.max_queue:
        waiting = len(state.queues.interactive) + len(state.queues.batch)
        batches = math.ceil(waiting / state.full_batch / len(state.queues.free_at))
        retry_after_seconds = max(LEAST_RETRY_SECONDS, batches * state.full_batch_seconds)
        return Decision(Rejection.QUEUE_FULL, retry_after_seconds=retry_after_seconds)
    # The wait for decoding and the wait in the queue overlap, so each is held against the deadline by itself.
    soonest_seconds = state.decode_wait_seconds
    if state.latency is not None:
        soonest_seconds += state.latency.seconds[1] + state.latency.margin_seconds
    if state.decode_wait_seconds and soonest_seconds >= deadline_at - state.now:
        retry_after_seconds = max(LEAST_RETRY_SECONDS, soonest_seconds - (deadline_at - state.now))
        return Decision(Rejection.BUSY, soonest_seconds, retry_after_seconds)
    if state.latency is None:
        return Decision(None)
    latest_at = state.now + state.fair_wait_seconds
    due_at = min(deadline_at - state.rendering_seconds, latest_at)
    plain_seconds = _plain_seconds(state) + state.own_seconds
    last = not queue or due_at >= queue[-1]
    if priority is Priority.INTERACTIVE and last and plain_seconds < due_at - state.now:
        decision = Decision(None, plain_seconds)
    else:
        decision = _decide_by_simulation(due_at, priority, state, state.latency)
        if decision.rejection is not None and due_at == latest_at:
            # The deadline leaves time. It is the queue that has no room for this caller.
            return Decision(Rejection.QUEUE_FULL, retry_after_seconds=decision.retry_after_seconds)
    return decision._replace(needed_seconds=decision.needed_seconds + state.rendering_seconds)


def _plain_seconds(state: AdmissionState) -> float:
    """Twice the time of all work that runs and waits, as if one worker did all that waits, plus a margin.

    An interactive picture with the last deadline is in time if it has that long. This saves most calls of an idle
    server the simulation, which takes up to a twentieth of the gateway's time for a small picture.
    """
    batches = (len(state.queues.interactive) + len(state.queues.batch)) // state.full_batch + 1
    work_seconds = state.queues.free_at[-1] - state.now + batches * state.full_batch_seconds
    return 2 * work_seconds + _PLAIN_MARGIN_SECONDS


def _decide_by_simulation(due_at: float, priority: Priority, state: AdmissionState, latency: LatencyTable) -> Decision:
    given_seconds = due_at - state.now
    interactive = priority is Priority.INTERACTIVE
    queues, place = _with_call(state.queues, due_at, interactive=interactive)
    simulated = simulate(queues, latency, interactive=interactive, place=place)
    wait_seconds = simulated.start_at - state.now
    # Errors of the batches before it and of its own add up like independent ones.
    batches = 1.0 + wait_seconds / latency.seconds[-1]
    error_seconds = _ERROR_MARGIN * state.error_seconds * math.sqrt(batches)
    after_seconds = latency.margin_seconds + min(error_seconds, _MOST_FOR_ERRORS * max(given_seconds, 0.0))
    size = simulated.size
    if simulated.leads:
        size = max(size, latency.largest((given_seconds - after_seconds) / 2))
    needed_seconds = wait_seconds + latency.seconds[max(size, 1)] + after_seconds + state.own_seconds
    if size and needed_seconds < given_seconds:
        lost_anyway = lost(state.queues, latency, interactive=interactive) if simulated.lost else 0
        if simulated.lost <= lost_anyway:
            return Decision(None, needed_seconds)
        needed_seconds += latency.seconds[-1]  # the pictures it would make late have to leave first
    if latency.seconds[1] + after_seconds >= given_seconds:
        return Decision(Rejection.TOO_LITTLE_TIME, needed_seconds)
    retry_after_seconds = max(LEAST_RETRY_SECONDS, needed_seconds - given_seconds)
    return Decision(Rejection.BUSY, needed_seconds, retry_after_seconds)


def _with_call(queues: QueueState, due_at: float, *, interactive: bool) -> tuple[QueueState, int]:
    """The queues with the call's picture in its place, and that place."""
    deadlines = list(queues.interactive if interactive else queues.batch)
    place = bisect_right(deadlines, due_at)
    deadlines.insert(place, due_at)
    return (queues._replace(interactive=deadlines) if interactive else queues._replace(batch=deadlines)), place


def error_of(decision: Decision, *, given_seconds: float, waiting: int, own_waiting: int = 0) -> ServiceError:
    """The error for a call that is not admitted.

    `given_seconds`: the time the call has left. `waiting`: pictures of its priority that wait. `own_waiting`: those of
    them that count twice because the same caller sent them.
    """
    match decision.rejection:
        case Rejection.DEADLINE_PASSED:
            return DeadlineExceeded("the deadline passed before the picture reached the queue")
        case Rejection.QUEUE_FULL:
            return QueueFull(
                f"{waiting} pictures already wait for this model, {own_waiting} of them counted twice because they are "
                "yours; retry later or add replicas"
                if own_waiting
                else f"{waiting} pictures already wait for this model; retry later or add replicas",
                retry_after_seconds=decision.retry_after_seconds,
            )
        case Rejection.TOO_LITTLE_TIME | Rejection.BUSY:
            hopeless = decision.rejection is Rejection.TOO_LITTLE_TIME
            return DeadlineUnreachable(
                f"no answer within the {given_seconds:.3f} s this call has left: about {decision.needed_seconds:.3f} s "
                f"are needed; {'allow more time' if hopeless else 'retry later, allow more time or add replicas'}",
                metadata={"needed_seconds": f"{decision.needed_seconds:.3f}"},
                retry_after_seconds=decision.retry_after_seconds,
            )
    raise Bug("this is a bug: the call was admitted")


def late_error(left_seconds: float) -> ServiceError:
    """The error for a picture that was admitted and cannot be in time any more. `left_seconds`: until its deadline."""
    if left_seconds <= 0:
        return DeadlineExceeded("the deadline passed while the picture waited in the queue")
    return DeadlineUnreachable(
        "batches take longer than predicted when this call was accepted: no answer within the "
        f"{left_seconds:.3f} s it has left; retry, allow more time or add replicas",
        retry_after_seconds=LEAST_RETRY_SECONDS,
    )
