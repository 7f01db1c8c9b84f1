"""Admission as a function of the queue's state: batches of n pictures take 1 + n seconds, a full one has 4."""

import pytest

from service.batching.admission import AdmissionState, Rejection, decide, error_of, fair_wait_seconds
from service.batching.policy import LatencyTable, QueueState
from service.core.errors import Bug, DeadlineExceeded, DeadlineUnreachable, QueueFull
from service.core.types import Priority

NOW = 100.0
IDLE = AdmissionState(
    now=NOW,
    queues=QueueState([], [], 0.0, [NOW]),
    latency=LatencyTable([0.0, 2.0, 3.0, 4.0, 5.0], 0.5),
    full_batch=4,
    full_batch_seconds=5.0,
    error_seconds=0.0,
    max_queue=3,
)


def with_queue(*deadlines: float, free_at: float = NOW) -> AdmissionState:
    return IDLE._replace(queues=QueueState(list(deadlines), [], 0.0, [free_at]))


def test_a_deadline_that_has_passed_is_rejected_even_without_evidence() -> None:
    decision = decide(NOW, Priority.INTERACTIVE, IDLE._replace(latency=None))
    assert decision.rejection is Rejection.DEADLINE_PASSED
    assert decision.retry_after_seconds is None


def test_without_evidence_every_deadline_is_admitted() -> None:
    decision = decide(NOW + 0.001, Priority.INTERACTIVE, IDLE._replace(latency=None))
    assert decision.rejection is None
    assert decision.needed_seconds == 0.0


def test_an_idle_worker_needs_one_batch_and_the_margin() -> None:
    # Twice the time in all: the picture leads its batch, which must have room for half of that time.
    decision = decide(NOW + 5.0, Priority.INTERACTIVE, IDLE)
    assert (decision.rejection, decision.needed_seconds) == (None, 2.5)
    assert decide(NOW + 2.4, Priority.INTERACTIVE, IDLE).rejection is Rejection.TOO_LITTLE_TIME


def test_much_time_is_admitted_without_a_simulation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.batching.admission.simulate", None)  # calling it would fail
    assert decide(NOW + 12.0, Priority.INTERACTIVE, IDLE).rejection is None


def test_work_before_it_counts_and_the_rejection_says_when_to_retry() -> None:
    decision = decide(NOW + 8.0, Priority.INTERACTIVE, with_queue(NOW + 8, free_at=NOW + 6))
    assert decision.rejection is Rejection.BUSY
    assert decision.needed_seconds > 8.0
    assert decision.retry_after_seconds == pytest.approx(decision.needed_seconds - 8.0)


def test_a_call_that_would_make_an_admitted_one_late_is_rejected() -> None:
    one_at_a_time = with_queue(NOW + 4.2)._replace(latency=LatencyTable([0.0, 2.0], 0.1), full_batch=1)
    decision = decide(NOW + 4.1, Priority.INTERACTIVE, one_at_a_time)
    assert decision.rejection is Rejection.BUSY
    lost_already = one_at_a_time._replace(queues=one_at_a_time.queues._replace(interactive=[NOW + 2.0]))
    assert decide(NOW + 4.1, Priority.INTERACTIVE, lost_already).rejection is None


def test_a_full_queue_says_when_it_will_have_room() -> None:
    decision = decide(NOW + 1000, Priority.INTERACTIVE, with_queue(*[NOW + 500] * 3))
    assert decision.rejection is Rejection.QUEUE_FULL
    assert decision.retry_after_seconds == 5.0
    assert decide(NOW + 1000, Priority.BATCH, with_queue(*[NOW + 500] * 3)).rejection is None


def test_deciding_changes_nothing() -> None:
    state = with_queue(NOW + 3, NOW + 6)
    decide(NOW + 4, Priority.INTERACTIVE, state)
    assert state.queues.interactive == [NOW + 3, NOW + 6]


def test_every_rejection_has_its_error() -> None:
    cases = {
        Rejection.DEADLINE_PASSED: (decide(NOW, Priority.INTERACTIVE, IDLE), DeadlineExceeded),
        Rejection.TOO_LITTLE_TIME: (decide(NOW + 1, Priority.INTERACTIVE, IDLE), DeadlineUnreachable),
        Rejection.BUSY: (
            decide(NOW + 8, Priority.INTERACTIVE, with_queue(NOW + 8, free_at=NOW + 6)),
            DeadlineUnreachable,
        ),
        Rejection.QUEUE_FULL: (decide(NOW + 999, Priority.INTERACTIVE, with_queue(*[NOW + 500] * 3)), QueueFull),
    }
    assert cases.keys() == set(Rejection)
    for rejection, (decision, error) in cases.items():
        assert decision.rejection is rejection
        raised = error_of(decision, given_seconds=1.0, waiting=3)
        assert type(raised) is error
        assert raised.retry_after_seconds == decision.retry_after_seconds
    with pytest.raises(Bug):
        raise error_of(decide(NOW + 99, Priority.INTERACTIVE, IDLE), given_seconds=99.0, waiting=0)


def test_own_pictures_that_wait_count_twice() -> None:
    shared = with_queue(NOW + 500, NOW + 500)._replace(own_waiting=1, own_ahead=1)
    assert decide(NOW + 1000, Priority.INTERACTIVE, shared).rejection is Rejection.QUEUE_FULL
    assert decide(NOW + 1000, Priority.INTERACTIVE, shared._replace(max_queue=4)).rejection is None
    busy = with_queue(NOW + 8, free_at=NOW + 1)
    others = decide(NOW + 9, Priority.INTERACTIVE, busy)
    own = decide(NOW + 9, Priority.INTERACTIVE, busy._replace(own_waiting=1, own_ahead=1))
    assert others.rejection is None
    assert own.needed_seconds == pytest.approx(others.needed_seconds + 5.0 / 4)  # one of four in a full batch


def test_a_deadline_later_than_the_fair_wait_is_refused_as_a_full_queue() -> None:
    busy = with_queue(*[NOW + 18] * 2, free_at=NOW + 14)._replace(fair_wait_seconds=16.0)
    decision = decide(NOW + 1000, Priority.INTERACTIVE, busy)
    assert decision.rejection is Rejection.QUEUE_FULL
    assert decision.retry_after_seconds is not None
    assert "counted twice" in str(error_of(decision, given_seconds=1000.0, waiting=2, own_waiting=1))


@pytest.mark.parametrize("priority", Priority)
def test_the_fair_wait_never_refuses_on_an_idle_server(priority: Priority) -> None:
    wait_seconds = fair_wait_seconds(priority, max_queue=1, full_batch=4, full_batch_seconds=5.0, workers=2)
    decision = decide(NOW + 1000, priority, IDLE._replace(fair_wait_seconds=wait_seconds, error_seconds=2.0))
    assert decision.rejection is None
