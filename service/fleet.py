"""Several gateway processes that share one gRPC port and one TorchServe, and the one HTTP port in front of them.

In: how many, and how one is started. Out: the HTTP address, and processes that are kept alive: one that ends is started
again after a wait that grows; one that does not come to answer several times in a row ends the whole. The kernel gives
each new connection to one of the processes (SO_REUSEPORT); nothing here touches a call.

Never starts TorchServe, never reads settings.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping

from service.member import Member, MemberFailed
from service.metrics import Metrics
from service.probes import FleetProbes, Heartbeat, ProbeServer

FIRST_WAIT_SECONDS = 0.5
LAST_WAIT_SECONDS = 10.0
STEADY_SECONDS = 60.0  # one that answered for so long did not fail at its start
MOST_FAILED_STARTS = 3
KILLED_SECONDS = 5.0  # from SIGKILL to the end, on a machine that swaps

Spawn = Callable[[int], Awaitable[Member]]

_log = logging.getLogger(__name__)


class FleetFailed(RuntimeError):
    """A gateway process cannot be started; the message says which, and why as far as it is known."""


class RestartPolicy:
    """How long to wait before one process is started again, and when to give up."""

    def __init__(self) -> None:
        self._wait_seconds = FIRST_WAIT_SECONDS
        self._failed_starts = 0

    def next_wait_seconds(self, answered_seconds: float | None) -> float | None:
        """`answered_seconds`: how long the last one answered, None if it never did. None: give up."""
        self._failed_starts = self._failed_starts + 1 if answered_seconds is None else 0
        if self._failed_starts >= MOST_FAILED_STARTS:
            return None
        if answered_seconds is not None and answered_seconds >= STEADY_SECONDS:
            self._wait_seconds = FIRST_WAIT_SECONDS
        wait_seconds = self._wait_seconds
        self._wait_seconds = min(2 * wait_seconds, LAST_WAIT_SECONDS)
        return wait_seconds


class Fleet:
    """`start`, then `run` as a task, then `stop`; for one event loop.

    `drain_seconds` is how long a process may take from SIGTERM to its end. `metrics` is the supervisor's own page.
    """

    def __init__(
        self,
        *,
        processes: int,
        spawn: Spawn,
        metrics: Metrics,
        drain_seconds: float,
        http: tuple[str, int],
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._numbers = range(processes)
        self._spawn = spawn
        self._metrics = metrics
        self._drain_seconds = drain_seconds
        self._http = http
        self._clock = clock
        self._sleep = sleep
        self._members: dict[int, Member] = {}  # those that answer, as far as is known
        self._heartbeat = Heartbeat()
        self._probes: ProbeServer | None = None

    def addresses(self) -> Mapping[int, str | None]:
        """Where the probes of each process are, None for one that is being started. Also for other threads."""
        members = self._members.copy()
        return {number: members[number].http if number in members else None for number in self._numbers}

    async def start(self) -> str:
        """Start all and wait until they answer; returns the HTTP address. Raises `FleetFailed`, leaving nothing."""
        starting = [asyncio.create_task(self._start(number)) for number in self._numbers]
        try:
            await asyncio.gather(*starting)
            host, port = self._http
            probes = FleetProbes(members=self.addresses, metrics=self._metrics, heartbeat=self._heartbeat)
            self._probes = ProbeServer(host=host, port=port, probes=probes)
        except BaseException as error:
            for task in starting:
                task.cancel()
            await asyncio.gather(*starting, return_exceptions=True)
            await self._end(0.0)
            if isinstance(error, MemberFailed):
                raise FleetFailed(f"a gateway process could not be started: {error}") from error
            raise
        return f"{host}:{self._probes.port}"

    async def run(self) -> None:
        """Keep them alive until cancelled. Raises `FleetFailed` when one cannot be started any more."""
        tasks = [asyncio.create_task(self._keep(number)) for number in self._numbers]
        tasks.append(asyncio.create_task(self._heartbeat.run()))
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def stop(self) -> None:
        """Let all drain at once, end those that do not, and close the HTTP port. After `run` has ended."""
        await self._end(self._drain_seconds)
        if self._probes is not None:
            await asyncio.to_thread(self._probes.close)

    async def _start(self, number: int) -> None:
        self._members[number] = await self._spawn(number)

    async def _keep(self, number: int) -> None:
        policy = RestartPolicy()
        while True:
            answered_from = self._clock()
            await self._members[number].ended()
            del self._members[number]
            answered_seconds: float | None = self._clock() - answered_from
            while number not in self._members:
                wait_seconds = policy.next_wait_seconds(answered_seconds)
                if wait_seconds is None:
                    raise FleetFailed(
                        f"gateway process {number} could not be started {MOST_FAILED_STARTS} times in a row"
                    )
                _log.warning("gateway process %d ended: it is started again in %.1f s", number, wait_seconds)
                await self._sleep(wait_seconds)
                self._metrics.gateway_restarted()
                try:
                    await self._start(number)
                except MemberFailed as error:
                    _log.warning("gateway process %d: %s", number, error)
                    answered_seconds = None

    async def _end(self, grace_seconds: float) -> None:
        ending = {asyncio.ensure_future(member.ended()): member for member in self._members.values()}
        for member in ending.values():
            member.terminate()
        for seconds in (grace_seconds, KILLED_SECONDS):
            if ending:
                _, late = await asyncio.wait(ending, timeout=seconds)
                ending = {ended: ending[ended] for ended in late}
            for member in ending.values():
                member.kill()
        for ended in ending:
            ended.cancel()
