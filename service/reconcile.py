"""Moves the versions that are served to where the roll-out file wants them, without losing a request.

In: the roll-out file, looked at every second; what TorchServe says is loaded. Out: lanes that come and go, versions
that are loaded, scaled, preferred and unloaded. Each look compares what shall be with what is and takes the next steps,
so it does not matter who else takes them (other gateway processes), or what was lost (a TorchServe started again).

* A new version is loaded beside the stable one and becomes the candidate; it gets requests once a worker is ready.
* To become stable, it first gets as many workers as the stable one has; both answer until they are ready.
* A version that is not wanted any more gets no new requests; when the last one is answered its lane closes, and only
  then is it unloaded: TorchServe forgets calls that wait for a version that is unloaded, they are never answered.
* A file that is broken, or asks for what is impossible, changes nothing: that is told by the log and by the metrics.

Models that the file never spoke of are left alone. Never answers requests, never reads settings from anywhere.
"""

import asyncio
import logging
import math
from collections.abc import Callable, Mapping

from model_store.card import Card
from service import rollout
from service.backend import Backend, Loading, ModelStatus
from service.catalog import Catalog, CatalogError, archive_of, find
from service.errors import ServiceError
from service.lanes import Lane, ModelLanes
from service.metrics import Metrics
from service.rollout import Entry, Rollout, RolloutError
from service.settings import Settings

POLL_SECONDS = 1.0

_log = logging.getLogger(__name__)


class Reconciler:
    """For one event loop. `look` once, or `run` as a task; `close` at the end.

    `build` makes a lane for a card. `workers`: of a stable version, where TorchServe has none loaded to go by.
    `linger_seconds`: how long after it was last used a version is unloaded. `on_switch` is called when another version
    became the stable one.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        catalog: Catalog,
        backend: Backend,
        lanes: Mapping[str, ModelLanes],
        build: Callable[[Card], Lane],
        metrics: Metrics,
        clock: Callable[[], float],
        workers: int,
        stuck_seconds: float,
        linger_seconds: float,
        on_switch: Callable[[], None] = lambda: None,
    ) -> None:
        self._settings = settings
        self._path = rollout.path_of(settings)
        self._catalog = catalog
        self._backend = backend
        self._lanes = lanes
        self._build = build
        self._metrics = metrics
        self._clock = clock
        self._workers = workers
        self._stuck_seconds = stuck_seconds
        self._linger_seconds = linger_seconds
        self._on_switch = on_switch
        self._content: bytes | None = None  # of the file when it was last parsed
        self._wanted: Rollout = {}
        self._managed: set[str] = set()  # models the file spoke of at any time
        self._preferred: dict[str, str] = {}  # TorchServe's default versions, as far as we set them
        self._unwanted_since: dict[tuple[str, str], float] = {}
        self._closing: dict[asyncio.Task[None], tuple[str, str]] = {}
        self._trouble: dict[str, str] = {}

    async def run(self) -> None:
        """Look for ever."""
        while True:
            await self.look()
            await asyncio.sleep(POLL_SECONDS)

    async def look(self) -> None:
        """Compare once, and take the next steps."""
        self._read()
        served = self._managed & self._lanes.keys()
        await asyncio.gather(*(self._settle(model) for model in sorted(served)))

    async def close(self) -> None:
        """Wait until the lanes that are on their way out are closed."""
        await asyncio.gather(*self._closing)

    def _read(self) -> None:
        try:
            content = rollout.content_of(self._path)
            if content == self._content:
                return
            self._content = content
            wanted = rollout.parse(content, self._path)
        except RolloutError as error:
            self._metrics.rollout_file(valid=False)
            self._tell("", str(error))
            return
        self._metrics.rollout_file(valid=True)
        self._tell("", "")
        self._wanted = wanted
        self._managed |= wanted.keys()

    async def _settle(self, model: str) -> None:
        lanes = self._lanes[model]
        entry = self._wanted.get(model) or Entry(stable=lanes.version)
        try:
            settled = await self._step(lanes, entry)
            trouble = ""
        except (CatalogError, ServiceError) as error:
            settled, trouble = False, error.message if isinstance(error, ServiceError) else str(error)
            if lanes.candidate is not None and isinstance(error, ServiceError):
                lanes.candidate.ready = False  # nothing is known of its workers
        self._tell(model, trouble)
        self._metrics.rollout_state(
            model,
            settled=settled,
            shares={
                lane.version: (
                    "stable" if lane is lanes.stable else "candidate",
                    1 - lanes.weight if lane is lanes.stable else lanes.weight,
                )
                for lane in lanes.all
            },
        )

    async def _step(self, lanes: ModelLanes, entry: Entry) -> bool:
        """Whether everything is as the entry says. Raises `CatalogError`, or a `ServiceError` of the backend."""
        model = lanes.stable.card.name
        loaded = await self._backend.versions(model)
        status = loaded.get(lanes.version)
        workers = max(self._workers, status.total_workers if status is not None else 0)
        if status is None:  # TorchServe was started again with another version
            await self._load(lanes.stable.card, workers)
            self._preferred.pop(model, None)
        promoting = entry.stable != lanes.version
        wanted = entry.stable if promoting else entry.candidate
        await self._choose_candidate(lanes, wanted)
        settled = not promoting
        if lanes.candidate is not None:
            share = 1.0 if promoting else min(1.0, entry.weight + entry.shadow)
            needed = max(1, math.ceil(workers * share))
            ready = await self._prepare(lanes.candidate, needed, loaded.get(lanes.candidate.version))
            settled = settled and lanes.candidate.ready
            if not promoting:
                lanes.weight, lanes.shadow = entry.weight, entry.shadow
            elif lanes.candidate.ready and ready >= needed:
                self._switch(lanes)
        if self._preferred.get(model) != lanes.version:
            await self._backend.make_default(model, lanes.version)
            self._preferred[model] = lanes.version
        await self._unload(model, loaded, {lanes.version, entry.stable, entry.candidate})
        return settled

    async def _choose_candidate(self, lanes: ModelLanes, version: str | None) -> None:
        if lanes.candidate is not None and lanes.candidate.version != version:
            self._retire(lanes.drop())
        if lanes.candidate is None and version is not None:
            card = find(self._settings.archives, lanes.stable.card.name, version)
            rollout.require_comparable(lanes.stable.card, card)
            lanes.candidate = self._build(card)
            await lanes.candidate.open()
            _log.info("model %s: version %s is being loaded", card.name, version, extra={"model": card.name})

    async def _prepare(self, lane: Lane, needed: int, status: ModelStatus | None) -> int:
        """Bring a candidate to `needed` workers; how many are ready."""
        if status is None:
            await self._load(lane.card, needed)
            lane.ready = False
            return 0
        if status.total_workers != needed:
            await self._backend.scale(lane.card.name, lane.version, needed)
        ready = min(status.ready_workers, needed)
        lane.resize(max(1, ready))
        lane.ready = ready > 0 and lane.batcher.oldest_batch_seconds() <= self._stuck_seconds
        return ready

    async def _load(self, card: Card, workers: int) -> None:
        loading = Loading(
            archive=archive_of(self._settings.archives, card).name,
            workers=workers,
            response_timeout_seconds=math.ceil(self._settings.batch_timeout_seconds),
            startup_timeout_seconds=math.ceil(self._settings.startup_timeout_seconds),
        )
        await self._backend.load(card.name, card.version, loading)

    def _switch(self, lanes: ModelLanes) -> None:
        before = lanes.promote()
        card = lanes.stable.card
        self._catalog.replace(card)
        self._metrics.version_switched(before.card, card)
        self._retire(before)
        self._on_switch()
        _log.info("model %s: version %s is stable now", card.name, card.version, extra={"model": card.name})

    def _retire(self, lane: Lane | None) -> None:
        if lane is None:
            return
        task = asyncio.create_task(lane.close())
        self._closing[task] = lane.card.name, lane.version
        task.add_done_callback(self._closing.pop)
        _log.info("model %s: version %s drains", *self._closing[task], extra={"model": lane.card.name})

    async def _unload(self, model: str, loaded: Mapping[str, ModelStatus], wanted: set[str | None]) -> None:
        now = self._clock()
        for version in loaded:
            key = model, version
            if version in wanted or key in self._closing.values():
                self._unwanted_since.pop(key, None)
            elif now - self._unwanted_since.setdefault(key, now) >= self._linger_seconds:
                await self._backend.unload(model, version)
                del self._unwanted_since[key]
                _log.info("model %s: version %s is unloaded", model, version, extra={"model": model})

    def _tell(self, about: str, trouble: str) -> None:
        """Log a trouble once, and its end."""
        if trouble == self._trouble.get(about, ""):
            return
        self._trouble[about] = trouble
        if trouble:
            _log.warning("roll-out: %s; what is served stays", trouble, extra={"model": about or None})
        else:
            subject = f"model {about}" if about else "the file"
            _log.info("roll-out: %s is well again", subject, extra={"model": about or None})
