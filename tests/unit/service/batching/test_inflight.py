"""When workers will be free, from what was sent and what came back."""

from service.batching.inflight import InflightBatches

TABLE = [0.0, 1.0, 1.5, 2.0, 2.5]


def test_idle_workers_are_free_now() -> None:
    assert InflightBatches(2).free_at(5.0, TABLE) == [5.0, 5.0]
    assert InflightBatches(2).oldest_seconds(5.0) == 0.0


def test_a_batch_that_waits_goes_to_the_worker_that_is_free_first() -> None:
    workers = InflightBatches(2)
    for key, size in enumerate((1, 4, 3)):
        workers.send(key, size, 0.0)
    assert len(workers) == 3
    assert workers.free_at(0.5, TABLE) == [2.5, 3.0]
    workers.finish(0, 1.25)
    assert workers.started_at(2) == 1.25
    assert workers.free_at(1.25, TABLE) == [2.5, 3.25]
    assert workers.oldest_seconds(1.25) == 1.25


def test_an_overdue_batch_is_expected_to_take_as_long_again_as_it_is_overdue() -> None:
    workers = InflightBatches(1)
    workers.send("a", 1, 0.0)
    workers.send("b", 2, 0.0)
    assert workers.free_at(1.0, TABLE) == [2.5]
    assert workers.free_at(4.0, TABLE) == [4.0 + 3.0 + 1.5]


def test_batches_may_come_back_in_any_order() -> None:
    workers = InflightBatches(1)
    for key in "abc":
        workers.send(key, 1, 0.0)
    workers.finish("b", 1.0)  # refused while it waited, or run by a worker more than we know of
    assert workers.free_at(1.0, TABLE) == [1.0 + 1.0]  # a is due now, c comes after it
    workers.finish("a", 2.0)
    workers.finish("c", 3.0)
    assert len(workers) == 0
    assert workers.free_at(3.0, TABLE) == [3.0]


def test_a_batch_that_waits_for_a_worker_is_not_overdue() -> None:
    inflight = InflightBatches(2)
    inflight.send("hung", 1, 0.0)
    inflight.send("new", 1, 9.0)
    inflight.send("waits", 1, 0.0)
    assert [inflight.overdue(5.0, now) for now in (4.0, 10.0, 20.0)] == [0, 1, 2]
