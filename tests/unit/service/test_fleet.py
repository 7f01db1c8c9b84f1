"""A fleet whose processes are futures, on a clock that only moves when someone waits."""

import asyncio
import urllib.request

import pytest

from service.fleet import (
    FIRST_WAIT_SECONDS,
    LAST_WAIT_SECONDS,
    MOST_FAILED_STARTS,
    STEADY_SECONDS,
    Fleet,
    FleetFailed,
    RestartPolicy,
)
from service.member import MemberFailed
from service.metrics import Metrics


class FakeMember:
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

    def __init__(self, *, stubborn: bool = False) -> None:
        self.metrics = Metrics()
        self.spawned: list[tuple[int, FakeMember]] = []
        self.broken: set[int] = set()
        self.waits: list[float] = []
        self.now = 0.0
        self.fleet = Fleet(
            processes=2,
            spawn=self.spawn,
            metrics=self.metrics,
            drain_seconds=0.0 if stubborn else 60.0,
            http=("127.0.0.1", 0),
            clock=lambda: self.now,
            sleep=self.sleep,
        )
        self._stubborn = stubborn

    async def spawn(self, number: int) -> FakeMember:
        await asyncio.sleep(0)
        if number in self.broken:
            raise MemberFailed("it is broken")
        member = FakeMember(number, stubborn=self._stubborn)
        self.spawned.append((number, member))
        return member

    async def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds
        await asyncio.sleep(0)

    def living(self, number: int) -> FakeMember:
        return [member for each, member in self.spawned if each == number][-1]

    async def until(self, count: int) -> None:
        async with asyncio.timeout(10):
            while len(self.spawned) < count or None in self.fleet.addresses().values():
                await asyncio.sleep(0)


async def end(running: asyncio.Task[None], fleet: Fleet) -> None:
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await fleet.stop()


def test_waits_grow_while_it_keeps_dying_and_are_short_again_after_a_steady_time() -> None:
    policy = RestartPolicy()
    waits = [policy.next_wait_seconds(1.0) for _ in range(7)]
    assert waits[:3] == [FIRST_WAIT_SECONDS, 2 * FIRST_WAIT_SECONDS, 4 * FIRST_WAIT_SECONDS]
    assert waits[-1] == LAST_WAIT_SECONDS
    assert policy.next_wait_seconds(STEADY_SECONDS) == FIRST_WAIT_SECONDS


def test_only_failed_starts_in_a_row_end_it() -> None:
    policy = RestartPolicy()
    for _ in range(3):
        for _ in range(MOST_FAILED_STARTS - 1):
            assert policy.next_wait_seconds(None) is not None
        assert policy.next_wait_seconds(1.0) is not None
    for _ in range(MOST_FAILED_STARTS - 1):
        policy.next_wait_seconds(None)
    assert policy.next_wait_seconds(None) is None


async def test_one_that_dies_is_started_again_under_its_number_and_counted() -> None:
    world = World()
    await world.fleet.start()
    running = asyncio.create_task(world.fleet.run())
    other = world.living(0)
    world.living(1).die()
    await world.until(3)
    assert [number for number, _ in world.spawned][2] == 1
    assert world.waits == [FIRST_WAIT_SECONDS]
    assert world.living(0) is other
    assert b"mobilevision_gateway_restarts_total 1.0" in world.metrics.page()
    await end(running, world.fleet)
    assert [world.living(number).signals for number in (0, 1)] == [["TERM"], ["TERM"]]


async def test_its_address_is_unknown_while_it_is_started() -> None:
    world = World()
    await world.fleet.start()
    world.broken.add(1)
    running = asyncio.create_task(world.fleet.run())
    world.living(1).die()
    async with asyncio.timeout(10):
        while world.fleet.addresses() != {0: "127.0.0.1:1", 1: None}:
            await asyncio.sleep(0)
    world.broken.clear()
    await world.until(3)
    assert world.fleet.addresses() == {0: "127.0.0.1:1", 1: "127.0.0.1:2"}
    await end(running, world.fleet)


async def test_one_that_cannot_start_again_ends_the_whole() -> None:
    world = World()
    await world.fleet.start()
    world.broken.add(0)
    running = asyncio.create_task(world.fleet.run())
    world.living(0).die()
    with pytest.raises(FleetFailed, match=f"gateway process 0 could not be started {MOST_FAILED_STARTS} times"):
        await asyncio.wait_for(running, 10)
    assert len(world.waits) == MOST_FAILED_STARTS
    await world.fleet.stop()
    assert world.living(1).signals == ["TERM"]


async def test_one_that_cannot_start_at_first_ends_the_others() -> None:
    world = World()
    world.broken.add(1)
    with pytest.raises(FleetFailed, match="it is broken"):
        await world.fleet.start()
    assert world.living(0).signals == ["TERM"]


async def test_a_start_that_is_given_up_leaves_nothing() -> None:
    world = World()
    starting = asyncio.create_task(world.fleet.start())
    while not world.spawned:
        await asyncio.sleep(0)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert [member.signals for _, member in world.spawned] == [["TERM"]] * len(world.spawned)


async def test_what_does_not_drain_in_time_is_killed() -> None:
    world = World(stubborn=True)
    await world.fleet.start()
    await world.fleet.stop()
    assert [member.signals[:2] for _, member in world.spawned] == [["TERM", "KILL"]] * 2


async def test_the_http_port_is_there_between_start_and_stop() -> None:
    world = World()
    address = await world.fleet.start()
    url = f"http://{address}/metrics"
    page = await asyncio.to_thread(lambda: urllib.request.urlopen(url, timeout=10).read())
    assert b'mobilevision_gateway_restarts_total{gateway_process="supervisor"} 0.0' in page
    await world.fleet.stop()
    with pytest.raises(OSError, match="refused"):
        await asyncio.to_thread(urllib.request.urlopen, url, timeout=10)
