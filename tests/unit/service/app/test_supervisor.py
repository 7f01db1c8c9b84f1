"""The supervisor with fake processes, on a clock that moves only when the supervisor waits."""

import asyncio
import urllib.request

import pytest

from service.app.replica import ReplicaFailed
from service.app.supervisor import (
    FIRST_WAIT_SECONDS,
    LAST_WAIT_SECONDS,
    MOST_FAILED_PROBES,
    MOST_FAILED_STARTS,
    PROBE_SECONDS,
    STEADY_SECONDS,
    Alive,
    RestartPolicy,
    Supervisor,
    SupervisorFailed,
)
from service.frontends.http.probes import Heartbeat
from service.frontends.http.supervisor_probes import REPLICA_TIMEOUT_SECONDS
from service.observability.metrics import Metrics


class FakeReplica:
    def __init__(self, number: int, *, stubborn: bool) -> None:
        self.http = f"127.0.0.1:{number + 1}"  # nobody listens there
        self.signals: list[str] = []
        self._stubborn = stubborn
        self._end = asyncio.Event()

    async def ended(self) -> None:
        await self._end.wait()

    def die(self) -> None:
        self._end.set()

    def terminate(self) -> None:
        self.signals.append("TERM")
        if not self._stubborn:
            self._end.set()

    def kill(self) -> None:
        self.signals.append("KILL")
        self._end.set()


class World:
    """Spawns fakes; `broken` numbers do not come to answer."""

    def __init__(self, *, stubborn: bool = False, together_seconds: float = 60.0) -> None:
        self.metrics = Metrics()
        self.spawned: list[tuple[int, FakeReplica]] = []
        self.broken: set[int] = set()
        self.slow: dict[int, asyncio.Event] = {}  # numbers that wait for their event at the start
        self.hung: set[str] = set()  # addresses that do not answer
        self.answer: Alive | None = None  # asked instead of `hung`
        self.waits: list[float] = []
        self.now = 0.0
        self.supervisor = Supervisor(
            processes=2,
            spawn=self.spawn,
            metrics=self.metrics,
            drain_seconds=0.0 if stubborn else 60.0,
            http=("127.0.0.1", 0),
            clock=lambda: self.now,
            sleep=self.sleep,
            alive=self.alive,
            probe_seconds=0.01,
            together_seconds=together_seconds,
        )
        self._stubborn = stubborn

    async def spawn(self, number: int) -> FakeReplica:
        await asyncio.sleep(0)
        if number in self.slow:
            await self.slow[number].wait()
        if number in self.broken:
            raise ReplicaFailed("it is broken")
        replica = FakeReplica(number, stubborn=self._stubborn)
        self.spawned.append((number, replica))
        return replica

    async def alive(self, address: str) -> bool:
        if self.answer is not None:
            return await self.answer(address)
        return address not in self.hung

    async def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds
        await asyncio.sleep(0)

    def living(self, number: int) -> FakeReplica:
        return [replica for each, replica in self.spawned if each == number][-1]

    async def until(self, count: int) -> None:
        async with asyncio.timeout(10):
            while len(self.spawned) < count or None in self.supervisor.addresses().values():
                await asyncio.sleep(0)


def value(metrics: Metrics, task: str) -> float | None:
    return metrics.registry.get_sample_value("mobilevision_background_failures_total", {"task": task})


async def end(running: asyncio.Task[None], supervisor: Supervisor) -> None:
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await supervisor.stop()


def test_waits_grow_with_each_restart_and_are_short_again_after_a_steady_time() -> None:
    policy = RestartPolicy()
    waits = [policy.next_wait_seconds(1.0) for _ in range(7)]
    assert waits[:3] == [FIRST_WAIT_SECONDS, 2 * FIRST_WAIT_SECONDS, 4 * FIRST_WAIT_SECONDS]
    assert waits[-1] == LAST_WAIT_SECONDS
    assert policy.next_wait_seconds(STEADY_SECONDS) == FIRST_WAIT_SECONDS


def test_only_failed_starts_in_a_row_end_the_server() -> None:
    policy = RestartPolicy()
    for _ in range(3):
        for _ in range(MOST_FAILED_STARTS - 1):
            assert policy.next_wait_seconds(None) is not None
        assert policy.next_wait_seconds(1.0) is not None
    for _ in range(MOST_FAILED_STARTS - 1):
        policy.next_wait_seconds(None)
    assert policy.next_wait_seconds(None) is None


async def test_a_process_that_dies_is_restarted_with_its_number_and_counted() -> None:
    world = World()
    await world.supervisor.start()
    running = asyncio.create_task(world.supervisor.run())
    other = world.living(0)
    world.living(1).die()
    await world.until(3)
    assert [number for number, _ in world.spawned][2] == 1
    assert world.waits == [FIRST_WAIT_SECONDS]
    assert world.living(0) is other
    assert b"mobilevision_gateway_restarts_total 1.0" in world.metrics.page()
    await end(running, world.supervisor)
    assert [world.living(number).signals for number in (0, 1)] == [["TERM"], ["TERM"]]


async def test_the_address_of_a_process_is_none_while_it_starts() -> None:
    world = World()
    await world.supervisor.start()
    world.broken.add(1)
    running = asyncio.create_task(world.supervisor.run())
    world.living(1).die()
    async with asyncio.timeout(10):
        while world.supervisor.addresses() != {0: "127.0.0.1:1", 1: None}:
            await asyncio.sleep(0)
    world.broken.clear()
    await world.until(3)
    assert world.supervisor.addresses() == {0: "127.0.0.1:1", 1: "127.0.0.1:2"}
    await end(running, world.supervisor)


async def test_a_process_that_cannot_be_restarted_is_tried_again_while_the_other_serves() -> None:
    world = World()
    await world.supervisor.start()
    world.broken.add(0)
    running = asyncio.create_task(world.supervisor.run())
    world.living(0).die()
    async with asyncio.timeout(10):
        while len(world.waits) < 3 * MOST_FAILED_STARTS:
            await asyncio.sleep(0)
    assert not running.done()
    assert world.waits[-1] == LAST_WAIT_SECONDS
    world.broken.clear()
    await world.until(3)
    assert world.living(1).signals == []
    await end(running, world.supervisor)


async def test_the_server_ends_when_no_process_runs_and_none_can_be_started() -> None:
    world = World()
    await world.supervisor.start()
    world.broken |= {0, 1}
    running = asyncio.create_task(world.supervisor.run())
    world.living(0).die()
    world.living(1).die()
    with pytest.raises(SupervisorFailed, match=f"gateway process [01] could not be started {MOST_FAILED_STARTS} times"):
        await asyncio.wait_for(running, 10)
    await world.supervisor.stop()


async def test_a_process_that_hangs_is_killed_and_restarted() -> None:
    world = World()
    await world.supervisor.start()
    world.hung.add(world.living(1).http)
    running = asyncio.create_task(world.supervisor.run())
    hung = world.living(1)
    async with asyncio.timeout(10):
        while not hung.signals:
            await asyncio.sleep(0.01)
    world.hung.clear()
    await world.until(3)
    assert hung.signals == ["KILL"]
    assert world.living(0).signals == []
    await end(running, world.supervisor)


def test_a_frozen_process_is_found_within_the_bound_of_10_seconds() -> None:
    assert MOST_FAILED_PROBES * (PROBE_SECONDS + REPLICA_TIMEOUT_SECONDS) + PROBE_SECONDS < 10.0


async def test_the_supervisor_goes_on_after_an_exception_in_its_own_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    beats, questions = 0, 0
    beat = Heartbeat.beat

    def failing_beat(heartbeat: Heartbeat) -> None:
        nonlocal beats
        beats += 1
        if beats == 1:
            raise RuntimeError("a bug")
        beat(heartbeat)

    async def failing_alive(address: str) -> bool:
        nonlocal questions
        questions += 1
        if questions == 1:
            raise RuntimeError("a bug")
        return address not in world.hung

    monkeypatch.setattr(Heartbeat, "beat", failing_beat)
    world.answer = failing_alive
    await world.supervisor.start()
    hung = world.living(1)
    running = asyncio.create_task(world.supervisor.run())
    async with asyncio.timeout(60):
        while beats < 2 or questions < 4:
            await asyncio.sleep(0.01)
        world.hung.add(hung.http)
        while not hung.signals:  # the process whose question failed is watched on
            await asyncio.sleep(0.01)
    assert not running.done()
    world.hung.clear()
    await end(running, world.supervisor)
    failures = {task: value(world.metrics, task) for task in ("heartbeat", "replicas")}
    assert failures == {"heartbeat": 1.0, "replicas": 1.0}


async def test_a_process_that_fails_at_the_first_start_is_started_again_beside_the_others() -> None:
    world = World()
    world.broken.add(1)
    await world.supervisor.start()
    assert world.supervisor.addresses() == {0: "127.0.0.1:1", 1: None}
    running = asyncio.create_task(world.supervisor.run())
    world.broken.clear()
    await world.until(2)
    assert world.living(0).signals == []
    await end(running, world.supervisor)


@pytest.mark.parametrize("fails", [False, True])
async def test_a_process_that_starts_slowly_does_not_hold_up_the_others(fails: bool) -> None:
    world = World(together_seconds=0.01)
    world.slow[1] = asyncio.Event()
    async with asyncio.timeout(60):
        await world.supervisor.start()
    assert world.supervisor.addresses() == {0: "127.0.0.1:1", 1: None}
    running = asyncio.create_task(world.supervisor.run())
    if fails:
        world.broken.add(1)
    world.slow.pop(1).set()
    async with asyncio.timeout(60):
        while fails and not world.waits:
            await asyncio.sleep(0)
    world.broken.clear()
    await world.until(2)
    assert len(world.spawned) == 2
    await end(running, world.supervisor)


@pytest.mark.parametrize("runs", [False, True])
async def test_a_process_that_still_starts_is_ended_at_the_stop(runs: bool) -> None:
    world = World(together_seconds=0.01)
    world.slow[1] = asyncio.Event()
    await world.supervisor.start()
    running = asyncio.create_task(world.supervisor.run() if runs else asyncio.sleep(0))
    await asyncio.sleep(0)
    await end(running, world.supervisor)
    world.slow.pop(1).set()
    await asyncio.sleep(0)
    assert [number for number, _ in world.spawned] == [0], "its start was cancelled"


async def test_a_start_at_which_all_processes_fail_ends_the_server() -> None:
    world = World()
    world.broken |= {0, 1}
    with pytest.raises(SupervisorFailed, match="it is broken"):
        await world.supervisor.start()
    assert world.spawned == []


async def test_a_cancelled_start_leaves_no_process() -> None:
    world = World()
    starting = asyncio.create_task(world.supervisor.start())
    while not world.spawned:
        await asyncio.sleep(0)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert [replica.signals for _, replica in world.spawned] == [["TERM"]] * len(world.spawned)


async def test_a_process_that_does_not_drain_in_time_is_killed() -> None:
    world = World(stubborn=True)
    await world.supervisor.start()
    await world.supervisor.stop()
    assert [replica.signals[:2] for _, replica in world.spawned] == [["TERM", "KILL"]] * 2


async def test_the_http_port_answers_between_start_and_stop() -> None:
    world = World()
    address = await world.supervisor.start()
    url = f"http://{address}/metrics"
    page = await asyncio.to_thread(lambda: urllib.request.urlopen(url, timeout=10).read())
    assert b'mobilevision_gateway_restarts_total{gateway_process="supervisor"} 0.0' in page
    await world.supervisor.stop()
    with pytest.raises(OSError, match="refused"):
        await asyncio.to_thread(urllib.request.urlopen, url, timeout=10)
