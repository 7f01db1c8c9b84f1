"""One gateway process of several, as its supervisor sees it.

In: a command line and an environment. Out: a `Replica` once the process has printed its address as JSON. The process
runs under the process guard (`service.core.process_guard`), so it cannot outlive its supervisor. Its log lines go to
the supervisor's standard error. Never restarts a process; `service.app.supervisor` does.
"""

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import Protocol

from service.core import process_guard

START_SECONDS = 60.0  # importing takes 1 to 2 s, and longer while TorchServe loads models on the same cores

_log = logging.getLogger(__name__)


class ReplicaFailed(RuntimeError):
    """A gateway process ended, or did not answer in time, at its start."""


class Replica(Protocol):
    """A gateway process that answered once. `http` is the address (host:port) of its probes and metrics."""

    http: str

    async def ended(self) -> None:
        """Return when the process has ended."""
        ...

    def terminate(self) -> None:
        """Ask the process to drain and end."""
        ...

    def kill(self) -> None:
        """End the process at once."""
        ...


class ReplicaProcess:
    """A `Replica` in a process. Make it with `spawn`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.http = ""
        self._process = process
        self._reading: asyncio.Task[None] | None = None

    @classmethod
    async def spawn(cls, command: Sequence[str], environment: Mapping[str, str]) -> "ReplicaProcess":
        """Start the process and wait until it answers. Raises `ReplicaFailed`, and leaves no process then."""
        process = await asyncio.create_subprocess_exec(
            *[sys.executable, "-I", "-S", process_guard.__file__, *command],
            env=environment,
            stdin=asyncio.subprocess.PIPE,  # the process guard kills the process when this pipe closes
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,  # a Ctrl-C in the terminal must reach only the supervisor, which drains in order
        )
        replica = cls(process)
        try:
            async with asyncio.timeout(START_SECONDS):
                replica.http = await replica._read_address()
        except TimeoutError as error:
            await replica._discard()
            raise ReplicaFailed(f"it did not answer within {START_SECONDS:.0f} s") from error
        except BaseException:
            await replica._discard()
            raise
        replica._reading = asyncio.create_task(replica._log_output())
        return replica

    async def ended(self) -> None:
        """See `Replica.ended`."""
        await self._process.wait()

    def terminate(self) -> None:
        """See `Replica.terminate`."""
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()  # the process guard passes the signal on

    def kill(self) -> None:
        """See `Replica.kill`."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    async def _read_address(self) -> str:
        line = await self._read_line()
        if not line.startswith("{"):  # a line of the process guard after the process ended, or the end of the output
            raise ReplicaFailed(f"it ended before it answered; the log has its error message ({line or 'no output'})")
        return str(json.loads(line)["http"])

    async def _log_output(self) -> None:
        while line := await self._read_line():
            _log.info("%s", line)

    async def _read_line(self) -> str:
        if self._process.stdout is None:
            raise RuntimeError("this is a bug: the process was started without a pipe")
        return (await self._process.stdout.readline()).decode(errors="replace").strip()

    async def _discard(self) -> None:
        self.kill()
        await self._process.wait()
