"""One gateway process of several, seen from the process that supervises them.

In: a command line and an environment. Out: a `Member` once the process said on its standard output where it listens.
Its log lines go where ours go. On a leash (`service.leash`): it cannot outlive us, however we die. Never restarts it:
that is `fleet`.
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

from service import leash

START_SECONDS = 60.0  # importing takes a second or two, on a machine that is busy with the models some more

_log = logging.getLogger(__name__)


class MemberFailed(RuntimeError):
    """A gateway process ended, or hung, before it answered."""


class Member(Protocol):
    """A gateway process that answers, or did. `http`: where its probes and metrics are."""

    http: str

    async def ended(self) -> None:
        """Return when it has ended."""
        ...

    def terminate(self) -> None:
        """Let it drain and end."""
        ...

    def kill(self) -> None:
        """End it now."""
        ...


class MemberProcess:
    """A `Member` that is a process. Make it by `spawn`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.http = ""
        self._process = process
        self._reading: asyncio.Task[None] | None = None

    @classmethod
    async def spawn(cls, command: Sequence[str], environment: Mapping[str, str]) -> "MemberProcess":
        """Start it and wait until it answers. Raises `MemberFailed`, leaving nothing behind."""
        process = await asyncio.create_subprocess_exec(
            *[sys.executable, "-I", "-S", leash.__file__, *command],
            env=environment,
            stdin=asyncio.subprocess.PIPE,  # its end is what the leash waits for
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,  # a Ctrl-C in the terminal must reach the supervisor only, which drains in order
        )
        member = cls(process)
        try:
            async with asyncio.timeout(START_SECONDS):
                member.http = await member._said_address()
        except TimeoutError as error:
            await member._discard()
            raise MemberFailed(f"it did not answer within {START_SECONDS:.0f} s") from error
        except BaseException:
            await member._discard()
            raise
        member._reading = asyncio.create_task(member._read())
        return member

    async def ended(self) -> None:
        """See `Member.ended`."""
        await self._process.wait()

    def terminate(self) -> None:
        """See `Member.terminate`."""
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()  # the leash passes it on

    def kill(self) -> None:
        """See `Member.kill`."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    async def _said_address(self) -> str:
        line = await self._line()
        if not line.startswith("{"):  # the leash's words, when the process has ended, or nothing
            raise MemberFailed(f"it ended before it answered; its own words are in the log ({line or 'no output'})")
        return str(json.loads(line)["http"])

    async def _read(self) -> None:
        while line := await self._line():
            _log.info("%s", line)

    async def _line(self) -> str:
        if self._process.stdout is None:
            raise RuntimeError("this is a bug: the process was started without a pipe")
        return (await self._process.stdout.readline()).decode(errors="replace").strip()

    async def _discard(self) -> None:
        self.kill()
        await self._process.wait()
