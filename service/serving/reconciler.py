"""Moves the served versions to what the roll-out file asks for, without losing a request.

In: the roll-out file, read every second, and the engine's report of which versions are loaded. Out: deployments that
come and go; versions that are loaded, scaled, made the default, and unloaded. Each step compares what is wanted with
what is there. So it does not matter whether another gateway process took a step, or whether TorchServe started again.

* A new version is loaded beside the stable one and becomes the candidate. It gets requests when a worker is ready.
* Before a candidate becomes stable, it gets as many workers as the stable version has. Both answer until then.
* A version that is not wanted any more gets no new requests. Its deployment closes when its last request is answered.
  Only then is the version unloaded: TorchServe never answers calls that wait for a version when it is unloaded.
* A file that is broken, or asks for what is impossible, changes nothing. The log and the metrics report it.

Models that the file never named are left alone. The reconciler never answers requests.
"""

import asyncio
import logging
import math
from collections.abc import Callable, Mapping

from handlers.contract.card import Card
from service.core.catalog import Catalog, CatalogError, archive_of, find
from service.core.errors import ServiceError
from service.core.reloaded_file import ReloadedFile
from service.core.settings import Settings
from service.engines.base import Loading, ModelStatus, VersionManager
from service.observability.metrics import Metrics
from service.serving import rollout_spec
from service.serving.deployment import Deployment
from service.serving.rollout_spec import Entry, Rollout, RolloutError
from service.serving.traffic_split import TrafficSplit

POLL_SECONDS = 1.0

_log = logging.getLogger(__name__)


class Reconciler:
    """For one event loop: `run` as a task, or `look` once, then `close`.

    `build` makes the deployment of a card. `workers`: how many a stable version gets that is not loaded.
    `linger_seconds`: how long a version stays loaded after its last use here. `on_switch` is called when another
    version became stable.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        catalog: Catalog,
        versions: VersionManager,
        splits: Mapping[str, TrafficSplit],
        build: Callable[[Card], Deployment],
        metrics: Metrics,
        clock: Callable[[], float],
        workers: int,
        linger_seconds: float,
        on_switch: Callable[[], None] = lambda: None,
    ) -> None:
        self._settings = settings
        path = rollout_spec.path_of(settings)
        self._file = ReloadedFile(path, load=lambda: rollout_spec.read(path))
        self._catalog = catalog
        self._versions = versions
        self._splits = splits
        self._build = build
        self._metrics = metrics
        self._clock = clock
        self._workers = workers
        self._linger_seconds = linger_seconds
        self._on_switch = on_switch
        self._wanted: Rollout = {}
        self._managed: set[str] = set()  # models that the file named at any time
        self._preferred: dict[str, str] = {}  # the engine's default versions, as set here
        self._unwanted_since: dict[tuple[str, str], float] = {}
        self._closing: dict[asyncio.Task[None], tuple[str, str]] = {}
        self._failures: dict[str, str] = {}  # as logged, by model; the file's has an empty name

    async def run(self) -> None:
        """Look for ever."""
        while True:
            await self.look()
            await asyncio.sleep(POLL_SECONDS)

    async def look(self) -> None:
        """Compare once, and take the next steps."""
        self._read_file()
        served = self._managed & self._splits.keys()
        await asyncio.gather(*(self._advance(self._splits[model]) for model in sorted(served)))

    async def close(self) -> None:
        """Wait until the deployments that drain are closed."""
        await asyncio.gather(*self._closing)

    def _read_file(self) -> None:
        try:
            self._wanted = self._file.value()
        except RolloutError as error:
            self._metrics.rollouts.file_read(valid=False)
            self._log_change("", str(error))
            return
        self._metrics.rollouts.file_read(valid=True)
        self._log_change("", "")
        self._managed |= self._wanted.keys()

    async def _advance(self, split: TrafficSplit) -> None:
        entry = self._wanted.get(split.model) or Entry(stable=split.version)
        settled, failure = False, ""
        try:
            settled = await self._step(split, entry)
        except CatalogError as error:
            failure = str(error)
        except ServiceError as error:
            failure = str(error)
            if split.candidate is not None:  # the state of its workers is not known
                split.candidate.observe_workers(ModelStatus(ready_workers=0, total_workers=0, detail=failure))
        self._log_change(split.model, failure)
        self._metrics.rollouts.versions_served(split.model, settled=settled, shares=split.shares())

    async def _step(self, split: TrafficSplit, entry: Entry) -> bool:
        """Take the next steps. Whether all is as the entry says. Raises `CatalogError`, or the engine's errors."""
        model = split.model
        loaded = await self._versions.versions(model)
        status = loaded.get(split.version)
        workers = self._workers if status is None else max(self._workers, status.total_workers)
        if status is None:  # TorchServe has started again with another version
            await self._load(split.stable.card, workers)
            self._preferred.pop(model, None)
        promoting = entry.stable != split.version
        await self._choose_candidate(split, entry.stable if promoting else entry.candidate)
        settled = not promoting
        if split.candidate is not None:
            share = 1.0 if promoting else min(1.0, entry.weight + entry.shadow)
            needed = max(1, math.ceil(workers * share))
            ready_workers = await self._prepare(split.candidate, needed, loaded.get(split.candidate.version))
            ready = split.candidate.why_not_ready is None
            settled = settled and ready
            if not promoting:
                split.weight, split.shadow = entry.weight, entry.shadow
            elif ready and ready_workers >= needed:
                self._switch(split)
        if self._preferred.get(model) != split.version:
            await self._versions.make_default(model, split.version)
            self._preferred[model] = split.version
        await self._unload(model, loaded, {split.version, entry.stable, entry.candidate})
        return settled

    async def _choose_candidate(self, split: TrafficSplit, version: str | None) -> None:
        if split.candidate is not None and split.candidate.version != version:
            self._retire(split.drop_candidate())
        if split.candidate is None and version is not None:
            card = find(self._settings.archives, split.model, version)
            rollout_spec.require_comparable(split.stable.card, card)
            candidate = self._build(card)
            split.candidate = candidate
            await candidate.open()
            _log.info("model %s: version %s is being loaded", card.name, version, extra={"model": card.name})

    async def _prepare(self, candidate: Deployment, needed: int, status: ModelStatus | None) -> int:
        """Bring a candidate to `needed` workers. Returns how many of them are ready."""
        if status is None:
            await self._load(candidate.card, needed)
            candidate.observe_workers(ModelStatus(ready_workers=0, total_workers=0, detail="it is being loaded"))
            return 0
        if status.total_workers != needed:
            await self._versions.scale(candidate.card.name, candidate.version, needed)
        ready_workers = min(status.ready_workers, needed)
        candidate.resize(max(1, ready_workers))
        candidate.observe_workers(status)
        return ready_workers

    async def _load(self, card: Card, workers: int) -> None:
        loading = Loading(
            archive=archive_of(self._settings.archives, card),
            card=card,
            workers=workers,
            response_timeout_seconds=math.ceil(self._settings.batch_timeout_seconds),
            startup_timeout_seconds=math.ceil(self._settings.startup_timeout_seconds),
        )
        await self._versions.load(card.name, card.version, loading)

    def _switch(self, split: TrafficSplit) -> None:
        before = split.promote()
        card = split.stable.card
        self._catalog.replace(card)
        self._metrics.rollouts.computed(card, split.stable.computed)
        self._retire(before)
        self._on_switch()
        _log.info("model %s: version %s is stable now", card.name, card.version, extra={"model": card.name})

    def _retire(self, deployment: Deployment | None) -> None:
        if deployment is None:
            return
        task = asyncio.create_task(deployment.close())
        self._closing[task] = deployment.card.name, deployment.version
        task.add_done_callback(self._closing.pop)
        _log.info("model %s: version %s drains", *self._closing[task], extra={"model": deployment.card.name})

    async def _unload(self, model: str, loaded: Mapping[str, ModelStatus], wanted: set[str | None]) -> None:
        now = self._clock()
        for version in loaded:
            key = model, version
            if version in wanted or key in self._closing.values():
                self._unwanted_since.pop(key, None)
            elif now - self._unwanted_since.setdefault(key, now) >= self._linger_seconds:
                await self._versions.unload(model, version)
                del self._unwanted_since[key]
                _log.info("model %s: version %s is unloaded", model, version, extra={"model": model})

    def _log_change(self, model: str, failure: str) -> None:
        """Log a failure once, and its end. An empty `model` is the file."""
        if failure == self._failures.get(model, ""):
            return
        self._failures[model] = failure
        if failure:
            _log.warning("roll-out: %s; what is served does not change", failure, extra={"model": model or None})
        else:
            subject = f"model {model}" if model else "the file"
            _log.info("roll-out: %s is in order again", subject, extra={"model": model or None})
