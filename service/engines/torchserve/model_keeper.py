"""The models of a TorchServe: which can be loaded, which are in quarantine, and whose workers were replaced.

In: what TorchServe reports about the workers, and the words of workers that ended while they loaded. Out: models that
are unloaded or loaded again, and the words for operators. A broken model must not keep the others from serving. Never
starts TorchServe.
"""

import logging
import math
from collections.abc import Callable, Mapping

from service.core.errors import BackendUnavailable
from service.core.trusted_archive import ArchiveUntrusted
from service.engines.base import Loading
from service.engines.torchserve.client import TorchServeClient, WorkerReport
from service.engines.torchserve.config import TorchServeConfig, TorchServeModel
from service.engines.torchserve.quarantine import Quarantine
from service.engines.torchserve.server_state import reason_of

_log = logging.getLogger(__name__)


class ModelKeeper:
    """Keeps the models of one TorchServe loaded. For one event loop.

    `current` gives the configuration of the running TorchServe, `renewed` that of the next one: a roll-out may have
    changed the versions. `publish` is called when `held` or `reasons`
    changed, `on_quarantine` when a model comes into quarantine or leaves it, `on_replaced` for each new worker process.
    """

    def __init__(
        self,
        *,
        current: Callable[[], TorchServeConfig],
        renewed: Callable[[TorchServeConfig], TorchServeConfig],
        quarantine: Quarantine,
        clock: Callable[[], float],
        publish: Callable[[], None],
        on_quarantine: Callable[[str, bool], None] = lambda model, held: None,
        on_replaced: Callable[[str], None] = lambda model: None,
    ) -> None:
        self._current = current
        self._renewed = renewed
        self._quarantine = quarantine
        self._clock = clock
        self._publish = publish
        self._on_quarantine = on_quarantine
        self._on_replaced = on_replaced
        self._processes: dict[tuple[str, str], int] = {}  # by model and worker
        self._unready_since: dict[str, float] = {}
        self.reasons: dict[str, str] = {}

    @property
    def held(self) -> Mapping[str, str]:
        """The version of each model that must not be loaded now."""
        return self._quarantine.held

    def started(self) -> None:
        """A new JVM was started: all workers are new, and none was replaced."""
        self._processes.clear()
        self._unready_since.clear()

    def heard(self, deaths: Mapping[str, str]) -> None:
        """Keep the words of workers that ended while they loaded."""
        for model, words in deaths.items():
            self.reasons[model] = reason_of(words)
            _log.warning("model %s: a worker cannot load it: %s", model, self.reasons[model], extra={"model": model})
        if deaths:
            self._publish()

    async def look(self, client: TorchServeClient, deaths: Mapping[str, str]) -> None:
        """Look at the workers of every model once. Raises `BackendUnavailable` if TorchServe does not answer."""
        self.heard(deaths)
        config = self._current()
        for model in config.models:
            if model.name in self.held:
                continue
            workers = await client.workers(model.name)
            self._count_replaced(model.name, workers)
            if any(worker.ready for worker in workers):
                self._ready(model.name)
                continue
            now = self._clock()
            unready_seconds = now - self._unready_since.setdefault(model.name, now)
            if self._quarantine.trying(model.name) and model.name in deaths:
                await self.hold(client, model)
            elif unready_seconds >= config.unready_seconds:
                self.reasons.setdefault(model.name, f"it had no ready worker for {unready_seconds:.0f} s")
                await self.hold(client, model)

    async def retry(self, client: TorchServeClient) -> None:
        """Load the models again whose time in quarantine is over."""
        due = self._quarantine.due()
        if not due:
            return
        self._publish()
        config = self._renewed(self._current())
        for model in config.models:
            if model.name not in due:
                continue
            _log.info("model %s: it is loaded again", model.name, extra={"model": model.name})
            self._unready_since.pop(model.name, None)
            loading = Loading(
                archive=model.archive,
                card=model.card,
                workers=model.workers,
                response_timeout_seconds=config.response_timeout_seconds,
                startup_timeout_seconds=math.ceil(config.startup_timeout_seconds),
            )
            try:
                await client.load(model.name, model.version, loading)
            except ArchiveUntrusted as error:
                self.refuse(model, str(error))
            except BackendUnavailable as error:
                self.reasons[model.name] = reason_of(error.message)
                await self.hold(client, model)

    def refuse(self, model: TorchServeModel, reason: str) -> None:
        """Put a model into quarantine that is not loaded, because its archive is refused."""
        self.reasons[model.name] = reason_of(reason)
        self._hold(model)

    async def hold(self, client: TorchServeClient, model: TorchServeModel) -> None:
        """Put a model into quarantine and unload it."""
        model = next((each for each in self._renewed(self._current()).models if each.name == model.name), model)
        self._hold(model)
        try:
            await client.unload(model.name, model.version)
        except BackendUnavailable as error:
            _log.warning("model %s: %s", model.name, error.message, extra={"model": model.name})

    def _hold(self, model: TorchServeModel) -> None:
        wait_seconds = self._quarantine.failed(model.name, model.version)
        self._unready_since.pop(model.name, None)
        reason = self.reasons.setdefault(model.name, "it was not ready in time")
        self._publish()
        self._on_quarantine(model.name, True)
        text = "model %s: version %s cannot be loaded and is tried again in %.0f s: %s"
        _log.warning(text, model.name, model.version, wait_seconds, reason, extra={"model": model.name})

    def _ready(self, model: str) -> None:
        self._unready_since.pop(model, None)
        left = self._quarantine.loaded(model)
        if self.reasons.pop(model, None) is not None or left:
            self._publish()
        if left:
            _log.info("model %s: it is loaded and left quarantine", model, extra={"model": model})
            self._on_quarantine(model, False)

    def _count_replaced(self, model: str, workers: list[WorkerReport]) -> None:
        for worker in workers:
            if worker.ready:
                before = self._processes.get((model, worker.id))
                self._processes[model, worker.id] = worker.pid
                if before not in (None, worker.pid):
                    _log.info("model %s: worker %s was replaced", model, worker.id, extra={"model": model})
                    self._on_replaced(model)
