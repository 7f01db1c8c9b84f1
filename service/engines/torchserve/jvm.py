"""The operating system's side of a TorchServe: one process group with the JVM and its workers, and its logs.

In: a run directory and a `TorchServeConfig`. Out: a process group that ends as a whole. Never calls TorchServe, and
never starts it again by itself: that is `process`.
"""

import asyncio
import contextlib
import os
import signal
from pathlib import Path

from service.engines.torchserve.command_line import command, environment
from service.engines.torchserve.config import KEY_FILE, TorchServeConfig
from service.engines.torchserve.worker_log import WorkerLog

TAIL_LINES = 40


class Jvm:
    """The JVM of one run directory. Each `launch` starts a new process after the last one ended."""

    def __init__(self, run: Path) -> None:
        self._run = run
        self._process: asyncio.subprocess.Process | None = None
        self._group_ended = True
        self._worker_log = WorkerLog(run / "logs" / "workers.log")

    @property
    def running(self) -> bool:
        """Whether the JVM was launched and has not ended."""
        return self._process is not None and self._process.returncode is None

    @property
    def process_group(self) -> int | None:
        """Process group of the JVM and its workers, None while the JVM is not running."""
        return self._process.pid if self._process is not None and self.running else None

    def deaths(self) -> dict[str, str]:
        """The models of which a worker ended while it loaded, since the last call, with that worker's words."""
        return self._worker_log.deaths()

    async def launch(self, config: TorchServeConfig) -> None:
        """Start the JVM. Raises `TorchServeFailed` if TorchServe or Java is not installed, and `OSError`."""
        run = self._run
        (run / KEY_FILE).unlink(missing_ok=True)  # the tokens of the last JVM
        for name in ("console.log", "workers.log"):
            log = run / "logs" / name
            if log.exists():
                log.replace(log.with_suffix(".previous"))
        self._worker_log = WorkerLog(run / "logs" / "workers.log")
        with (run / "logs" / "console.log").open("wb") as console:
            self._process, self._group_ended = None, False  # the last process must not be killed again
            self._process = await asyncio.create_subprocess_exec(
                *command(run, config),
                cwd=run,  # TorchServe writes its key file into the working directory
                env=environment(run, config),
                stdin=asyncio.subprocess.PIPE,  # the process guard ends TorchServe when this pipe closes
                stdout=console,
                stderr=console,
                start_new_session=True,  # Ctrl-C in a terminal must reach the gateway only, which drains first
            )

    async def ended(self) -> None:
        """Return when the JVM has ended."""
        if self._process is not None:
            await self._process.wait()

    async def stop(self, grace_seconds: float) -> None:
        """End the JVM and its workers, by force after `grace_seconds`."""
        if self._process is not None and self.running and grace_seconds > 0:
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._process.wait(), grace_seconds)
        await self.kill()

    async def kill(self) -> None:
        """End the JVM and its workers by force. Ends workers that outlived the JVM, too."""
        process = self._process
        if process is None or self._group_ended:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        self._group_ended = True  # another process group may get the number later
        if process.stdin is not None:
            process.stdin.close()
        await process.wait()

    def log_tail(self) -> str:
        """The last lines of the console, of TorchServe's own log, and of the log of its workers."""
        parts = []
        for name in ("console.log", "server.log", "workers.log"):
            lines = self._log(name).splitlines()[-TAIL_LINES:]
            if lines:
                parts.append(f"--- {name}\n" + "\n".join(lines))
        return "\n".join(parts)

    def _log(self, name: str) -> str:
        path = self._run / "logs" / name
        return path.read_text(errors="replace") if path.exists() else ""
