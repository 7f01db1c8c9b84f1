"""Start, watch and stop a TorchServe on this machine, private to this process.

In: an `EmbeddedConfig`. Out: a `TorchServeEndpoint` whose models are all ready, kept alive by `supervise()`.
Loopback gRPC ports and Unix sockets in a private run directory only; two instances do not meet. Nothing that was
started survives `stop()`, nor the death of this process (see `service.leash`).
"""

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from service.backend import ModelStatus
from service.errors import BackendUnavailable
from service.launch import EmbeddedConfig, EmbeddedError, command, environment, prepare, write_properties
from service.torchserve import TorchServeBackend, TorchServeEndpoint

POLL_SECONDS = 0.1
WATCH_SECONDS = 2.0
TAIL_LINES = 40
BIND_ATTEMPTS = 5
WORKER_DIED = "Backend worker process died."  # printed by ts/model_service_worker.py

logger = logging.getLogger(__name__)

Progress = Callable[[Mapping[str, ModelStatus]], None]


class _PortTaken(Exception):
    pass


class EmbeddedTorchServe:
    """One TorchServe process. Use from one event loop: `start`, then `supervise` as a task, then `stop`."""

    def __init__(
        self,
        config: EmbeddedConfig,
        *,
        on_progress: Progress | None = None,
        on_restart: Callable[[], None] | None = None,
        renewed: Callable[[EmbeddedConfig], EmbeddedConfig] = lambda config: config,
    ) -> None:
        """`renewed` is asked at every restart what is to run then: a roll-out may have changed the versions."""
        self._config = config
        self._renewed = renewed
        self._on_progress = on_progress
        self._on_restart = on_restart
        self._run: Path | None = None
        self._ports: tuple[int, int] | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._backend: TorchServeBackend | None = None
        self._stopping = asyncio.Event()
        self._restarting: asyncio.Task[bool] | None = None
        self._group_ended = True
        self.restarts = 0

    @property
    def endpoint(self) -> TorchServeEndpoint:
        """Where it listens; the same after every restart. Only after `start`."""
        if self._run is None or self._ports is None:
            raise RuntimeError("this is a bug: the endpoint is known after start()")
        inference, management = self._ports
        return TorchServeEndpoint(
            inference_address=f"127.0.0.1:{inference}",
            management_address=f"127.0.0.1:{management}",
            key_file=self._run / "key_file.json",
            max_message_bytes=self._config.max_message_bytes,
        )

    @property
    def run_directory(self) -> Path:
        """Private directory with configuration, sockets, tokens and logs. Only between `start` and `stop`."""
        if self._run is None:
            raise RuntimeError("this is a bug: there is a run directory only between start() and stop()")
        return self._run

    @property
    def process_group(self) -> int | None:
        """Process group of the JVM and its workers, None while there is none."""
        running = self._process is not None and self._process.returncode is None
        return self._process.pid if running and self._process is not None else None

    async def start(self) -> TorchServeEndpoint:
        """Start and wait until every worker of every model is ready. Raises `EmbeddedError`, leaving nothing behind."""
        base = self._config.base_directory
        self._run = Path(tempfile.mkdtemp(prefix="mobilevision-", dir=base))  # mode 0700
        try:
            prepare(self.run_directory, self._config)
            return await self._start_on_free_ports()
        except BaseException:
            await self.stop(0.0)
            raise

    async def supervise(self) -> None:
        """Start TorchServe again whenever it ends or stops answering, until `stop`. Run as a task after `start`."""
        backoff = self._config.backoff_first_seconds
        while not self._stopping.is_set():
            await self._until_dead()
            if self._stopping.is_set():
                return
            await self._kill()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), backoff)
                return
            self.restarts += 1
            if self._on_restart is not None:
                self._on_restart()
            self._restarting = asyncio.create_task(self._restart())
            await asyncio.wait({self._restarting})
            if self._restarting.cancelled():  # by stop()
                return
            first, last = self._config.backoff_first_seconds, self._config.backoff_last_seconds
            backoff = first if self._restarting.result() else min(backoff * 2, last)

    async def _restart(self) -> bool:
        """Whether all models are ready again. A taken port is waited for like any other failure."""
        if self._ports is None:
            raise RuntimeError("this is a bug: there is nothing to start again before start()")
        try:
            self._config = self._renewed(self._config)
            write_properties(self.run_directory, self._config, self._ports)
            await self._launch()
            async with asyncio.timeout(self._config.startup_timeout_seconds):
                await self._until_ready()
        except (_PortTaken, EmbeddedError, TimeoutError, OSError) as error:
            logger.warning("TorchServe could not be started again: %s", error)
            await self._kill()
            return False
        return True

    async def stop(self, grace_seconds: float = 5.0) -> None:
        """End the JVM and all workers, by force after the grace, and remove the run directory. May be called twice."""
        self._stopping.set()
        if self._restarting is not None:
            self._restarting.cancel()
            await asyncio.wait({self._restarting})
        process = self._process
        if process is not None and process.returncode is None and grace_seconds > 0:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), grace_seconds)
        await self._kill()
        await self._close_backend()
        if self._run is not None:
            await asyncio.to_thread(shutil.rmtree, self._run, ignore_errors=True)
            self._run = None

    def log_tail(self) -> str:
        """Last lines of TorchServe's console, its own log and its workers' log."""
        parts = []
        for name in ("console.log", "server.log", "workers.log"):
            path = self.run_directory / "logs" / name
            lines = path.read_text(errors="replace").splitlines()[-TAIL_LINES:] if path.exists() else []
            if lines:
                parts.append(f"--- {name}\n" + "\n".join(lines))
        return "\n".join(parts)

    async def _start_on_free_ports(self) -> TorchServeEndpoint:
        for _ in range(BIND_ATTEMPTS):
            self._ports = _free_ports()
            write_properties(self.run_directory, self._config, self._ports)
            await self._launch()
            try:
                async with asyncio.timeout(self._config.startup_timeout_seconds):
                    await self._until_ready()
            except _PortTaken:
                await self._close_backend()  # it is bound to the ports that are given up
            except TimeoutError as error:
                raise EmbeddedError(
                    f"TorchServe was not ready within {self._config.startup_timeout_seconds:.0f} s; a large model "
                    f"on a slow machine may need a longer startup timeout\n{self.log_tail()}"
                ) from error
            else:
                return self.endpoint
        raise EmbeddedError(f"no free ports for TorchServe after {BIND_ATTEMPTS} attempts\n{self.log_tail()}")

    async def _launch(self) -> None:
        run = self.run_directory
        (run / "key_file.json").unlink(missing_ok=True)  # the tokens of the JVM before
        for name in ("console.log", "workers.log"):
            log = run / "logs" / name
            if log.exists():
                log.replace(log.with_suffix(".previous"))
        with (run / "logs" / "console.log").open("wb") as console:
            self._group_ended = False
            self._process = await asyncio.create_subprocess_exec(
                *command(run, self._config),
                cwd=run,  # TorchServe writes its key file into the working directory
                env=environment(run, self._config),
                stdin=asyncio.subprocess.PIPE,  # its end is what the leash waits for
                stdout=console,
                stderr=console,
                start_new_session=True,  # a Ctrl-C in the terminal must reach the gateway only, which drains first
            )

    async def _until_ready(self) -> None:
        if self._backend is None:
            self._backend = TorchServeBackend(self.endpoint)
        while True:
            assert self._process is not None  # noqa: S101 - launched before every call
            if self._process.returncode is not None:
                self._raise_ended()
            workers_log = self.run_directory / "logs" / "workers.log"
            if workers_log.exists() and WORKER_DIED in workers_log.read_text(errors="replace"):
                raise EmbeddedError(
                    "a TorchServe worker failed to load its model; the worker's own error is in the log below\n"
                    + self.log_tail()
                )
            statuses = {}
            for model in self._config.models:
                try:
                    statuses[model.name] = await self._backend.model_status(model.name)
                except BackendUnavailable:
                    statuses[model.name] = ModelStatus(0, model.workers, "TorchServe is starting")
            if self._on_progress is not None:
                self._on_progress(statuses)
            if all(statuses[model.name].ready_workers >= model.workers for model in self._config.models):
                return
            await asyncio.sleep(POLL_SECONDS)

    def _raise_ended(self) -> None:
        tail = self.log_tail()
        if "Address already in use" in tail or "Failed to bind" in tail:
            raise _PortTaken("another process listens on TorchServe's port")
        raise EmbeddedError(f"TorchServe ended while it started\n{tail}")

    async def _until_dead(self) -> None:
        """Return when the process has ended; end it when it does not answer, or has given up on a model."""
        assert self._process is not None  # noqa: S101 - supervise follows start
        assert self._backend is not None  # noqa: S101
        clock = asyncio.get_running_loop().time
        answered_at = ready_at = clock()
        ended = asyncio.ensure_future(self._process.wait())
        try:
            while True:
                done, _ = await asyncio.wait({ended}, timeout=WATCH_SECONDS)
                if done or self._stopping.is_set():
                    return
                try:
                    statuses = [await self._backend.model_status(model.name) for model in self._config.models]
                    answered_at = clock()
                    if all(status.ready_workers for status in statuses):
                        ready_at = clock()
                except BackendUnavailable:
                    ready_at = clock()  # says nothing about the workers
                silent_seconds, unready_seconds = clock() - answered_at, clock() - ready_at
                if (
                    silent_seconds >= self._config.unresponsive_seconds
                    or unready_seconds >= self._config.unready_seconds
                ):
                    await self._kill()
                    return
        finally:
            ended.cancel()

    async def _kill(self) -> None:
        process = self._process
        if process is None or self._group_ended:
            return
        # Also when the leash has ended already: the group lives while any worker does.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        self._group_ended = True  # the number may be another process's later
        if process.stdin is not None:
            process.stdin.close()
        await process.wait()

    async def _close_backend(self) -> None:
        if self._backend is not None:
            await self._backend.close()
            self._backend = None


def _free_ports() -> tuple[int, int]:
    """Two ports nobody listens on now. Another process may still take one before the JVM does: `start` tries again."""
    with socket.socket() as first, socket.socket() as second:
        first.bind(("127.0.0.1", 0))
        second.bind(("127.0.0.1", 0))
        return first.getsockname()[1], second.getsockname()[1]
