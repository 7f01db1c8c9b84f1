"""The load generator without a server: a clock that advances only in `sleep`, and callers with given answers."""

import asyncio

import pytest

from benchmarks.client import run_closed, run_open
from benchmarks.outcomes import Outcome, tally
from benchmarks.plans import ClosedPlan, OpenPlan
from benchmarks.target import Target

TARGET = Target("http", "nowhere", 1, "/", b"")


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now

    async def sleep(self, seconds):
        await asyncio.sleep(0)  # let the started calls run
        self.now += seconds


class Silent:
    """Answers only after all requests were sent."""

    def __init__(self, clock, sent):
        self.clock, self.sent = clock, sent

    async def call(self, timeout_seconds):
        self.sent.append((self.clock.now, timeout_seconds))
        await asyncio.sleep(0.01)
        return Outcome.MISSED

    async def close(self):
        pass


async def test_open_loop_sends_on_time_without_answers():
    clock, sent = Clock(), []
    arrivals = (0.5, 1.0, 1.25, 4.0)
    outcomes = await run_open(
        OpenPlan((TARGET,), arrivals, deadline_seconds=0.2),
        caller=lambda target: Silent(clock, sent),
        clock=clock,
        sleep=clock.sleep,
    )
    assert [at - 100.0 for at, _ in sent] == pytest.approx(arrivals)
    counts = tally(outcomes.records, sent=outcomes.sent)
    assert counts.missed == 4
    assert counts.adds_up()


async def test_open_loop_counts_latency_from_the_planned_time_and_records_the_lag():
    clock = Clock()

    class Slow:
        async def call(self, timeout_seconds):
            assert timeout_seconds == pytest.approx(0.05)  # the deadline less the lag of the generator
            clock.now += 0.01
            return Outcome.ANSWERED

        async def close(self):
            pass

    async def oversleeping(seconds):
        clock.now += seconds + 0.15

    outcomes = await run_open(
        OpenPlan((TARGET,), (1.0,), deadline_seconds=0.2), caller=lambda target: Slow(), clock=clock, sleep=oversleeping
    )
    (row,) = outcomes.records
    assert row.lag_seconds == pytest.approx(0.15)
    assert row.seconds == pytest.approx(0.16)
    assert row.outcome is Outcome.ANSWERED


async def test_closed_loop_counts_only_after_the_warm_up():
    clock = Clock()

    class Second:
        async def call(self, timeout_seconds):
            clock.now += 1.0
            await asyncio.sleep(0)
            return Outcome.ANSWERED

        async def close(self):
            pass

    plan = ClosedPlan((TARGET,), clients=1, warm_up_seconds=2.5, seconds=5.0)
    outcomes = await run_closed(plan, caller=lambda target: Second(), clock=clock)
    assert [row.due_seconds for row in outcomes.records] == [2.0, 3.0, 4.0, 5.0, 6.0]


@pytest.mark.parametrize(
    ("reply", "outcome"),
    [
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", Outcome.ANSWERED),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", Outcome.ANSWERED),
        (b"HTTP/1.1 503 busy\r\ncontent-length: 0\r\nconnection: close\r\n\r\n", Outcome.REFUSED),
        (b"", Outcome.FAILED),
        (None, Outcome.MISSED),
    ],
)
async def test_http_replies_have_their_outcomes_on_two_calls_in_a_row(reply, outcome):
    async def serve(reader, writer):
        try:
            while b"\r\n\r\n" in await reader.readuntil(b"\r\n\r\n"):
                await reader.readexactly(3)
                if reply is None:
                    await reader.read()  # until the client gives up
                    return
                writer.write(reply)
                if not reply:
                    return
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    target = Target("http", "127.0.0.1", port, "/", b"abc")
    outcomes = await run_open(OpenPlan((target,), (0.0, 0.001), deadline_seconds=0.1 if reply is None else 20.0))
    assert [row.outcome for row in outcomes.records] == [outcome, outcome]
    server.close()
    await server.wait_closed()
