import grpc
import pytest

from benchmarks.outcomes import Outcome, RequestRecord, grpc_outcome, http_outcome, in_time, tally


def row(outcome=Outcome.ANSWERED, seconds=0.1, lag=0.0):
    return RequestRecord(due_seconds=0.0, lag_seconds=lag, outcome=outcome, seconds=seconds)


@pytest.mark.parametrize("code", [code.name for code in grpc.StatusCode])
def test_every_grpc_code_has_one_outcome(code):
    expected = {
        "OK": Outcome.ANSWERED,
        "RESOURCE_EXHAUSTED": Outcome.REFUSED,
        "UNAVAILABLE": Outcome.REFUSED,
        "DEADLINE_EXCEEDED": Outcome.MISSED,
    }
    assert grpc_outcome(code) is expected.get(code, Outcome.FAILED)


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        (200, "answered"),
        (429, "refused"),
        (503, "refused"),
        (408, "missed"),
        (504, "missed"),
        (500, "failed"),
        (404, "failed"),
    ],
)
def test_http_statuses(status, outcome):
    assert http_outcome(status) == outcome


def test_an_answer_that_comes_too_late_is_a_miss():
    assert in_time(row(seconds=0.2), 0.2).outcome is Outcome.ANSWERED
    assert in_time(row(seconds=0.21), 0.2).outcome is Outcome.MISSED
    assert in_time(row(Outcome.FAILED, seconds=9.0), 0.2).outcome is Outcome.FAILED


def test_the_counts_add_up_and_only_answers_have_latencies():
    rows = [row(seconds=0.1), row(seconds=0.3), *[row(outcome, seconds=9.0, lag=0.5) for outcome in Outcome][1:]]
    counts = tally(rows, sent=5)
    assert (counts.answered, counts.refused, counts.missed, counts.failed) == (2, 1, 1, 1)
    assert counts.adds_up()
    assert counts.p50_ms == pytest.approx(200.0)
    assert counts.generator_lag_p99_ms == pytest.approx(500.0)


def test_counts_do_not_add_up_when_a_request_is_lost():
    assert not tally([row()], sent=2).adds_up()
