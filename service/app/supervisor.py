"""Keeps several gateway processes running that share one gRPC port and one TorchServe, with one HTTP port for all.

In: the number of processes, and a function that starts one. Out: the HTTP address. A process that ends is started again
after a wait that grows. A process that does not answer its /livez for some seconds is killed, and so started again. The
server ends only when a process fails to start several times in a row and no other process runs. The kernel gives each
new connection to one of the processes (SO_REUSEPORT), so no call passes through the supervisor.

Never starts TorchServe and never reads settings.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from functools import partial

from service.app.replica import Replica, ReplicaFailed
from service.core import ports
from service.core.background import keep_running
from service.frontends.http.probe_server import DEFAULT_CONNECTIONS, ProbeServer
from service.frontends.http.probes import Heartbeat
from service.frontends.http.supervisor_probes import SupervisorProbes, is_alive
from service.observability.metrics import Metrics

FIRST_WAIT_SECONDS = 0.5
LAST_WAIT_SECONDS = 10.0
STEADY_SECONDS = 60.0  # a process that answered for so long resets the wait
MOST_FAILED_STARTS = 3
PROBE_SECONDS = 0.8  # between two questions to a process whether it is alive
MOST_FAILED_PROBES = 5  # in a row. A frozen process is found after 8 s: a question waits 0.8 s for its answer.
TOGETHER_SECONDS = 15.0  # a process that takes longer to start than this does not hold up those that answer
KILLED_SECONDS = 5.0  # limit from SIGKILL to the end of a process, on a machine that swaps

Spawn = Callable[[int], Awaitable[Replica]]
Alive = Callable[[str], Awaitable[bool]]

_START_FAILURES = (ReplicaFailed, OSError)  # OSError: the system has no process or memory left

_log = logging.getLogger(__name__)


async def _alive(address: str) -> bool:
    return await asyncio.to_thread(is_alive, address)


class SupervisorFailed(RuntimeError):
    """No gateway process runs and none can be started. The message has the reason if it is known."""


class RestartPolicy:
    """Decides how long to wait before one process is started again, and when to give up."""

    def __init__(self) -> None:
        self._wait_seconds = FIRST_WAIT_SECONDS
        self._failed_starts = 0

    def next_wait_seconds(self, answered_seconds: float | None) -> float | None:
        """Return the wait before the next start, None to give up.

        `answered_seconds` is how long the last process answered, None if it never did.
        """
        self._failed_starts = self._failed_starts + 1 if answered_seconds is None else 0
        if self._failed_starts >= MOST_FAILED_STARTS:
            return None
        if answered_seconds is not None and answered_seconds >= STEADY_SECONDS:
            self._wait_seconds = FIRST_WAIT_SECONDS
        wait_seconds = self._wait_seconds
        self._wait_seconds = min(2 * wait_seconds, LAST_WAIT_SECONDS)
        return wait_seconds


class Supervisor:
    """Supervises gateway processes. `start`, then `run` as a task, then `stop`. For one event loop.

    `processes` is their number; `spawn` starts the one with the given number. `drain_seconds` limits the time from
    SIGTERM to the end of a process. `metrics` are the supervisor's own. `http` is host and port to listen on. `alive`
    returns whether the process with an HTTP address answers; it is asked every `probe_seconds`. `together_seconds`: how
    long `start` waits for all processes once one of them answers.
    """

    def __init__(
        self,
        *,
        processes: int,
        spawn: Spawn,
        metrics: Metrics,
        drain_seconds: float,
        http: tuple[str, int],
        max_http_connections: int = DEFAULT_CONNECTIONS,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        alive: Alive = _alive,
        probe_seconds: float = PROBE_SECONDS,
        together_seconds: float = TOGETHER_SECONDS,
    ) -> None:
        self._numbers = range(processes)
        self._spawn = spawn
        self._metrics = metrics
        self._drain_seconds = drain_seconds
        self._http = http
        self._max_http_connections = max_http_connections
        self._clock = clock
        self._sleep = sleep
        self._alive = alive
        self._probe_seconds = probe_seconds
        self._together_seconds = together_seconds
        self._starting: dict[int, asyncio.Task[None]] = {}  # by number; of the first start
        self._replicas: dict[int, Replica] = {}  # by number; without processes that are being started
        self._heartbeat = Heartbeat()
        self._probes: ProbeServer | None = None

    def addresses(self) -> Mapping[int, str | None]:
        """Return the HTTP address of each process, None for one that is being started. Safe to call from any thread."""
        replicas = self._replicas.copy()
        return {number: replicas[number].http if number in replicas else None for number in self._numbers}

    async def start(self) -> str:
        """Start all processes, wait until they answer, and return the HTTP address.

        A process that is much slower than the others comes to answer later. `run` starts those again that fail. Raises
        `SupervisorFailed` if all fail, and leaves no process then.
        """
        self._starting = {number: asyncio.create_task(self._start(number)) for number in self._numbers}
        try:
            await self._wait_for_one()
            host, port = self._http
            probes = SupervisorProbes(replicas=self.addresses, metrics=self._metrics, heartbeat=self._heartbeat)
            self._probes = ProbeServer(host=host, port=port, probes=probes, max_connections=self._max_http_connections)
        except BaseException as error:
            await self._end(0.0)
            if isinstance(error, _START_FAILURES):
                raise SupervisorFailed(f"a gateway process could not be started: {error}") from error
            raise
        return ports.address(host, self._probes.port)

    async def run(self) -> None:
        """Restart processes that end or hang, until cancelled. Raises `SupervisorFailed` if none can be started."""
        tasks = [asyncio.create_task(self._keep_running(number)) for number in self._numbers]
        tasks.append(asyncio.create_task(self._lasting("heartbeat", self._heartbeat.run)))
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def stop(self) -> None:
        """Drain all processes, kill those that take too long, and close the HTTP port. Call it after `run` ended."""
        await self._end(self._drain_seconds)
        if self._probes is not None:
            await asyncio.to_thread(self._probes.close)

    async def _start(self, number: int) -> None:
        self._replicas[number] = await self._spawn(number)

    async def _wait_for_one(self) -> None:
        """Wait until one process answers, and a while for the others. Raise the failure if none starts, or a bug.

        Those that still start stay in `_starting`.
        """
        _, late = await asyncio.wait(self._starting.values(), timeout=self._together_seconds)
        while late and not self._replicas:
            _, late = await asyncio.wait(late, return_when=asyncio.FIRST_COMPLETED)
        for number, task in list(self._starting.items()):
            if not task.done():
                _log.warning("gateway process %d has not answered yet; the others serve", number)
                continue
            del self._starting[number]
            failure = task.exception()
            if failure is not None:
                if not self._replicas or not isinstance(failure, _START_FAILURES):
                    raise failure
                _log.warning("gateway process %d could not be started and is started again: %s", number, failure)

    async def _keep_running(self, number: int) -> None:
        policy = RestartPolicy()
        if number in self._starting:
            try:
                await self._starting.pop(number)
            except _START_FAILURES as error:
                _log.warning("gateway process %d: %s", number, error)
        while True:
            answered_seconds: float | None = None
            if number in self._replicas:
                answered_from = self._clock()
                await self._ended(number, self._replicas[number])
                del self._replicas[number]
                answered_seconds = self._clock() - answered_from
            while number not in self._replicas:
                wait_seconds = policy.next_wait_seconds(answered_seconds)
                if wait_seconds is None and self._replicas:
                    wait_seconds = LAST_WAIT_SECONDS  # the others serve on
                if wait_seconds is None:
                    raise SupervisorFailed(
                        f"gateway process {number} could not be started {MOST_FAILED_STARTS} times in a row"
                    )
                _log.warning("gateway process %d ended and is started again in %.1f s", number, wait_seconds)
                await self._sleep(wait_seconds)
                self._metrics.workers.gateway_restarted()
                try:
                    await self._start(number)
                except _START_FAILURES as error:
                    _log.warning("gateway process %d: %s", number, error)
                    answered_seconds = None

    async def _ended(self, number: int, replica: Replica) -> None:
        """Return when a process has ended, by itself or because it hung."""
        watching = asyncio.create_task(self._lasting("replicas", partial(self._kill_when_hung, number, replica)))
        try:
            await replica.ended()
        finally:
            watching.cancel()

    async def _kill_when_hung(self, number: int, replica: Replica) -> None:
        failed_probes = 0
        while failed_probes < MOST_FAILED_PROBES:
            await asyncio.sleep(self._probe_seconds)
            failed_probes = 0 if await self._alive(replica.http) else failed_probes + 1
        _log.warning("gateway process %d did not answer /livez %d times in a row and is killed", number, failed_probes)
        replica.kill()

    async def _lasting(self, name: str, run: Callable[[], Awaitable[None]]) -> None:
        await keep_running(name, run, on_failure=self._metrics.background_failed, sleep=self._sleep)

    async def _end(self, grace_seconds: float) -> None:
        for task in self._starting.values():
            task.cancel()
        await asyncio.gather(*self._starting.values(), return_exceptions=True)
        ending = {asyncio.ensure_future(replica.ended()): replica for replica in self._replicas.values()}
        for replica in ending.values():
            replica.terminate()
        for seconds in (grace_seconds, KILLED_SECONDS):
            if ending:
                _, late = await asyncio.wait(ending, timeout=seconds)
                ending = {ended: ending[ended] for ended in late}
            for replica in ending.values():
                replica.kill()
        for ended in ending:
            ended.cancel()
