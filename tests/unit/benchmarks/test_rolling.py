import dataclasses
import threading
from types import SimpleNamespace

import grpc

from benchmarks import results
from benchmarks.machine import describe
from benchmarks.rolling import Load, passed
from mobilevision.client import CallFailed


class Client:
    """Fails every third call. The first call ends only after the fourth has begun."""

    def __init__(self):
        self.count = 0
        self.fourth = threading.Event()
        self.lock = threading.Lock()

    def classify(self, image, *, model):
        assert (image, model) == (b"picture", "toy")
        with self.lock:
            self.count += 1
            number = self.count
        if number == 1:
            assert self.fourth.wait(30), "the load waits for answers"
        if number == 4:
            self.fourth.set()
        if number % 3 == 0:
            raise CallFailed(code=grpc.StatusCode.UNAVAILABLE, message="gone", reason="SHUTTING_DOWN")
        return SimpleNamespace(reply=SimpleNamespace(model=SimpleNamespace(version="1.0")))


def test_calls_are_sent_on_time_and_all_are_recorded():
    client = Client()
    load = Load(client, model="toy", image=b"picture", per_second=200)
    load.start()
    assert client.fourth.wait(30)
    load.stop()
    assert load.sent == len(load.calls) == client.count >= 4
    assert sum(call.code == "UNAVAILABLE SHUTTING_DOWN" for call in load.calls) == client.count // 3
    assert all(call.seconds >= call.lag_seconds >= 0 for call in load.calls)
    assert {call.version for call in load.calls} == {"1.0", ""}


def test_one_lost_call_fails_the_benchmark():
    head = results.Head("rolling", describe(), {}, complete=True)
    good = results.RollingResult(
        head, "toy", 5.0, 20.0, 30, {"0": 30}, 10, 10, 0, {"OK": 10}, {"1.0": 5, "1.1": 5}, {}, 3, 1.0, 2.0, 3.0, 1.0
    )
    assert passed(good)
    for wrong in (
        {"failed": 1},
        {"sent": 0},
        {"answered_by_version": {"1.0": 10}},
        {"exit_statuses": {"0": 29, "-9": 1}},
        {"head": dataclasses.replace(head, complete=False)},
    ):
        assert not passed(dataclasses.replace(good, **wrong)), wrong
