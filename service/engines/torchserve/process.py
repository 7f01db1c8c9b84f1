"""Start, watch and stop a TorchServe on this machine, private to this process.

In: a `TorchServeConfig`. Out: a `TorchServeEndpoint` whose models are all ready, kept alive by `supervise()`.
TorchServe listens on loopback gRPC ports and on Unix sockets in a private run directory, so two instances do not
interfere. Every process started here ends with `stop()`, and with this process (see `service.core.process_guard`).
"""

import asyncio
import contextlib
import logging
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from service.core import locked_directory
from service.core.errors import BackendUnavailable
from service.core.trusted_archive import ArchiveUntrusted
from service.engines.base import ModelStatus
from service.engines.torchserve.client import LOOPBACK, TorchServeClient, TorchServeEndpoint
from service.engines.torchserve.config import KEY_FILE, Ports, TorchServeConfig, TorchServeFailed, TorchServeModel
from service.engines.torchserve.jvm import Jvm
from service.engines.torchserve.model_keeper import ModelKeeper
from service.engines.torchserve.quarantine import Quarantine
from service.engines.torchserve.run_directory import prepare, store_of, write_properties
from service.engines.torchserve.server_state import ServerState

POLL_SECONDS = 0.1
WATCH_SECONDS = 2.0
BIND_ATTEMPTS = 5
RUN_PREFIX = (
    "mobilevision-run-"  # directories that servers leave behind when they are killed; the next one removes them
)

logger = logging.getLogger(__name__)

Progress = Callable[[Mapping[str, ModelStatus]], None]


class _PortTaken(Exception):
    pass


class TorchServeProcess:
    """One TorchServe process. For one event loop: `start`, then `supervise` as a task, then `stop`.

    `on_progress` is called with the workers of every model while TorchServe starts, `on_restart` before it is started
    again. `renewed` gives the configuration for a restart: a roll-out may have changed the versions. `on_quarantine`
    and `on_replaced` are those of `ModelKeeper`.
    """

    def __init__(
        self,
        config: TorchServeConfig,
        *,
        on_progress: Progress | None = None,
        on_restart: Callable[[], None] | None = None,
        renewed: Callable[[TorchServeConfig], TorchServeConfig] = lambda config: config,
        on_quarantine: Callable[[str, bool], None] = lambda model, held: None,
        on_replaced: Callable[[str], None] = lambda model: None,
    ) -> None:
        self._config = config
        self._renewed = renewed
        self._on_progress = on_progress
        self._on_restart = on_restart
        self._run: Path | None = None
        self._run_lock = -1  # the descriptor that keeps other servers from removing the run directory
        self._ports: Ports | None = None
        self._endpoint: TorchServeEndpoint | None = None
        self._unready: list[TorchServeModel] = []  # at the last look while TorchServe started
        self._models = ModelKeeper(
            current=lambda: self._config,
            renewed=renewed,
            quarantine=Quarantine(
                first_seconds=config.quarantine_first_seconds,
                last_seconds=config.quarantine_last_seconds,
                clock=time.monotonic,
            ),
            clock=time.monotonic,
            publish=self._publish,
            on_quarantine=on_quarantine,
            on_replaced=on_replaced,
        )
        self._jvm: Jvm | None = None
        self._client: TorchServeClient | None = None
        self._stopping = asyncio.Event()
        self._restarting: asyncio.Task[bool] | None = None
        self.restarts = 0

    @property
    def endpoint(self) -> TorchServeEndpoint:
        """Where TorchServe listens. Only after `start`. The same after every restart: a client finds the new ports in
        the `ServerState` beside the tokens.
        """
        if self._endpoint is None:
            raise RuntimeError("this is a bug: the endpoint is known after start()")
        return self._endpoint

    @property
    def run_directory(self) -> Path:
        """Private directory with configuration, sockets, tokens and logs. Only between `start` and `stop`."""
        if self._run is None:
            raise RuntimeError("this is a bug: there is a run directory only between start() and stop()")
        return self._run

    @property
    def process_group(self) -> int | None:
        """Process group of the JVM and its workers, None while there is none."""
        return None if self._jvm is None else self._jvm.process_group

    async def start(self) -> TorchServeEndpoint:
        """Start, and wait until every worker of every model is ready.

        Raises `TorchServeFailed`, `ArchiveUntrusted`. Nothing that was started is left then.
        """
        base = self._config.base_directory or Path(tempfile.gettempdir())
        await asyncio.to_thread(locked_directory.remove_stale, base, RUN_PREFIX)
        self._run, self._run_lock = locked_directory.make(base, RUN_PREFIX)
        self._jvm = Jvm(self._run)
        try:
            prepare(self.run_directory, self._config)
            return await self._start_on_free_ports(self._jvm)
        except BaseException:
            await self.stop(0.0)
            raise

    async def supervise(self) -> None:
        """Start TorchServe again whenever it ends or does not answer, until `stop`. Run as a task after `start`."""
        if self._jvm is None:
            raise RuntimeError("this is a bug: there is nothing to supervise before start()")
        backoff = self._config.backoff_first_seconds
        while not self._stopping.is_set():
            await self._until_dead(self._jvm)
            if self._stopping.is_set():
                return
            await self._jvm.kill()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), backoff)
                return
            self.restarts += 1
            if self._on_restart is not None:
                self._on_restart()
            self._restarting = asyncio.create_task(self._restart(self._jvm))
            await asyncio.wait({self._restarting})
            if self._restarting.cancelled():  # by stop()
                return
            first, last = self._config.backoff_first_seconds, self._config.backoff_last_seconds
            backoff = first if self._restarting.result() else min(backoff * 2, last)

    async def _restart(self, jvm: Jvm) -> bool:
        """Returns whether TorchServe serves again. A port that is taken counts as a failed attempt.

        Models that cannot be loaded are put into quarantine, and the others serve.
        """
        try:
            self._config = self._renewed(self._config)
            await self._admit_again()
            await self._launch(jvm)
            try:
                async with asyncio.timeout(self._config.startup_timeout_seconds):
                    await self._until_ready(jvm, again=True)
            except TimeoutError:
                if len(self._unready) == len(self._config.models) or self._client is None:
                    raise
                for model in self._unready:
                    await self._models.hold(self._client, model)
        except (_PortTaken, TorchServeFailed, TimeoutError, OSError) as error:
            logger.warning("TorchServe could not be started again: %s", error)
            await jvm.kill()
            return False
        return True

    async def _admit_again(self) -> None:
        """Check the archives of all models again. A model whose archive is refused is put into quarantine.

        Raises `ArchiveUntrusted` if all are refused.
        """
        store = store_of(self.run_directory, self._config)
        refused: list[ArchiveUntrusted] = []
        for model in self._config.models:
            try:
                await asyncio.to_thread(store.admit, model.archive, model.name, model.version, model.card, keep=True)
            except ArchiveUntrusted as error:
                refused.append(error)
                self._models.refuse(model, str(error))
        if len(refused) == len(self._config.models):
            raise refused[0]

    async def _launch(self, jvm: Jvm) -> None:
        """Launch the JVM on fresh ports: on the last ones, another user may listen by now."""
        self._ports = _free_ports()
        write_properties(self.run_directory, self._config, self._ports, held=self._models.held)
        self._publish()
        self._models.started()
        await jvm.launch(self._config)

    def _publish(self) -> None:
        if self._ports is None or self._run is None:
            return
        state = ServerState(self._ports.inference, self._ports.management, self._models.reasons, self._models.held)
        try:
            state.write(self._run)
        except OSError as error:
            logger.warning("the state of TorchServe cannot be written into %s: %s", self._run, error)

    async def stop(self, grace_seconds: float = 5.0) -> None:
        """End the JVM and all workers, by force after `grace_seconds`, and remove the run directory.

        May be called twice, and without `start`.
        """
        self._stopping.set()
        if self._restarting is not None:
            self._restarting.cancel()
            await asyncio.wait({self._restarting})
        if self._jvm is not None:
            await self._jvm.stop(grace_seconds)
        await self._close_client()
        if self._run is not None:
            await asyncio.to_thread(shutil.rmtree, self._run, ignore_errors=True)
            self._run = None
            os.close(self._run_lock)

    async def _start_on_free_ports(self, jvm: Jvm) -> TorchServeEndpoint:
        for _ in range(BIND_ATTEMPTS):
            await self._launch(jvm)
            try:
                async with asyncio.timeout(self._config.startup_timeout_seconds):
                    await self._until_ready(jvm)
            except _PortTaken:
                continue
            except TimeoutError as error:
                raise TorchServeFailed(
                    f"TorchServe was not ready within {self._config.startup_timeout_seconds:.0f} s; a large model "
                    f"on a slow machine may need a longer startup timeout\n{jvm.log_tail()}"
                ) from error
            else:
                self._endpoint = self._endpoint_at(self._ports)
                return self._endpoint
        raise TorchServeFailed(f"no free ports for TorchServe after {BIND_ATTEMPTS} attempts\n{jvm.log_tail()}")

    async def _until_ready(self, jvm: Jvm, *, again: bool = False) -> None:
        """Return when every model is ready. `again`: a model that cannot be loaded is put into quarantine.

        Otherwise it raises `TorchServeFailed`.
        """
        if self._client is None:
            self._client = TorchServeClient(self._endpoint_at(self._ports))
        while True:
            if not jvm.running:
                _raise_ended(jvm)
            deaths = jvm.deaths()
            if deaths and not again:
                raise TorchServeFailed(
                    "a TorchServe worker failed to load its model; the worker's own error is in the log below\n"
                    + jvm.log_tail()
                )
            self._models.heard(deaths)
            for model in self._config.models:
                if model.name in deaths:
                    await self._models.hold(self._client, model)
            statuses = {}
            loaded = [model for model in self._config.models if self._models.held.get(model.name) != model.version]
            for model in loaded:
                try:
                    statuses[model.name] = await self._client.model_status(model.name)
                except BackendUnavailable:
                    statuses[model.name] = ModelStatus(0, model.workers, "TorchServe is starting")
            if self._on_progress is not None:
                self._on_progress(statuses)
            self._unready = [model for model in loaded if statuses[model.name].ready_workers < model.workers]
            if not self._unready:
                return
            await asyncio.sleep(POLL_SECONDS)

    async def _until_dead(self, jvm: Jvm) -> None:
        """Return when the process has ended. Kill it when it does not answer. Keep its models loaded meanwhile."""
        if self._client is None:
            raise RuntimeError("this is a bug: TorchServe is watched after start() only")
        clock = asyncio.get_running_loop().time
        answered_at = clock()
        ended = asyncio.ensure_future(jvm.ended())
        try:
            while True:
                done, _ = await asyncio.wait({ended}, timeout=WATCH_SECONDS)
                if done or self._stopping.is_set():
                    return
                try:
                    await self._models.look(self._client, jvm.deaths())
                    await self._models.retry(self._client)
                    answered_at = clock()
                except BackendUnavailable:
                    if clock() - answered_at >= self._config.unresponsive_seconds:
                        await jvm.kill()
                        return
        finally:
            ended.cancel()

    def _endpoint_at(self, ports: Ports | None) -> TorchServeEndpoint:
        if ports is None:
            raise RuntimeError("this is a bug: there are no ports before a JVM was launched")
        return TorchServeEndpoint(
            inference_address=f"{LOOPBACK}:{ports.inference}",
            management_address=f"{LOOPBACK}:{ports.management}",
            key_file=self.run_directory / KEY_FILE,
            max_message_bytes=self._config.max_message_bytes,
            store=store_of(self.run_directory, self._config),
        )

    async def _close_client(self) -> None:
        if self._client is not None:
            await self._client.close()
            self._client = None


def _raise_ended(jvm: Jvm) -> None:
    tail = jvm.log_tail()
    if "Address already in use" in tail or "Failed to bind" in tail:
        raise _PortTaken("another process listens on TorchServe's port")
    raise TorchServeFailed(f"TorchServe ended while it started\n{tail}")


def _free_ports() -> Ports:
    """Two ports on which nothing listens now. Another process may take one before the JVM does; `start` tries again."""
    with socket.socket() as first, socket.socket() as second:
        first.bind(("127.0.0.1", 0))
        second.bind(("127.0.0.1", 0))
        return Ports(inference=first.getsockname()[1], management=second.getsockname()[1])
