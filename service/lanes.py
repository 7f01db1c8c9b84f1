"""The versions of a model that are served here: a lane for each, and which lane a request takes.

A `Lane` is all that belongs to one version: card, shared memory, carrier, queue. `ModelLanes` are those of one model:
the stable one, and a candidate while a roll-out lasts. The choice is a hash of the request id, so a call that is
repeated under its id meets the same version. Lanes are made and ended by `reconcile`; whoever uses one says so (`use`),
and it closes when nobody does. For one event loop.
"""

import asyncio
import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from handlers.hardware import usable_cores
from model_store.card import Card
from service.backend import Backend, OneVersion
from service.batcher import Batcher
from service.carrier import Carrier
from service.channels import Channels
from service.dispatch import Dispatcher
from service.metrics import Metrics
from service.region import Region, SharedDirectory, Size, shares
from service.settings import Settings
from service.slots import Usage

_log = logging.getLogger(__name__)


class Lane:
    """One version of one model."""

    def __init__(
        self,
        *,
        card: Card,
        carrier: Carrier,
        batcher: Batcher,
        channels: Channels,
        region: Region | None,
        memory: SharedDirectory | None,
    ) -> None:
        self.card = card
        self.carrier = carrier
        self.batcher = batcher
        self.ready = False  # of a candidate; that of a stable one is known to `health`
        self.channels = channels
        self._region = region
        self._memory = memory
        self._users = 0
        self._unused = asyncio.Event()
        self._unused.set()

    @property
    def version(self) -> str:
        """Of the card."""
        return self.card.version

    @contextmanager
    def use(self) -> Iterator[None]:
        """Keep it open meanwhile."""
        self._users += 1
        self._unused.clear()
        try:
            yield
        finally:
            self._users -= 1
            if not self._users:
                self._unused.set()

    def usage(self, kind: str) -> Usage:
        """Slots of shared memory by state; `kind` is `input` or `output`."""
        if self._region is None:
            return Usage()
        return self._region.inputs.usage() if kind == "input" else self._region.outputs.usage()

    @property
    def has_memory(self) -> bool:
        """Whether there is shared memory for it."""
        return self._region is not None

    async def open(self) -> None:
        """Let its workers call back, once they are asked to."""
        if self._region is not None:
            await self.channels.listen(self._region.calls)

    def resize(self, workers: int) -> None:
        """Count with another number of workers from now on."""
        self.batcher.resize(workers)
        self.channels.wanted = workers

    async def close(self) -> None:
        """Wait until nobody uses it, then end it. No request may choose it any more."""
        await self._unused.wait()
        await self.batcher.close()
        await self.channels.close()
        if self._memory is not None:
            self._memory.remove()


@dataclass(frozen=True, slots=True)
class Choice:
    """Which lane answers a request, and whether the candidate runs it as well, to be compared."""

    lane: Lane
    compared: bool = False


class ModelLanes:
    """The lanes of one model. `weight` and `shadow` are shares, 0..1, as in `rollout.Entry`."""

    def __init__(self, stable: Lane) -> None:
        self.stable = stable
        self.candidate: Lane | None = None
        self.weight = 0.0
        self.shadow = 0.0

    def choose(self, request_id: str) -> Choice:
        """The stable lane, unless the candidate is ready and the request falls into its share."""
        if self.candidate is None or not self.candidate.ready:
            return Choice(self.stable)
        answered, compared = _draws(f"{self.stable.card.name} {request_id}")
        if answered < self.weight:
            return Choice(self.candidate)
        return Choice(self.stable, compared < self.shadow)

    def promote(self) -> Lane:
        """Make the candidate the stable one; returns the one that was."""
        if self.candidate is None:
            raise RuntimeError("this is a bug: there is no candidate to promote")
        before, self.stable = self.stable, self.candidate
        self.drop()
        return before

    def drop(self) -> Lane | None:
        """Have no candidate any more; returns the one that was."""
        before, self.candidate = self.candidate, None
        self.weight = self.shadow = 0.0
        return before

    @property
    def version(self) -> str:
        """Of the stable lane."""
        return self.stable.version

    def oldest_batch_seconds(self) -> float:
        """Of the stable lane; see `Batcher`."""
        return self.stable.batcher.oldest_batch_seconds()

    @property
    def all(self) -> list[Lane]:
        """Both lanes, or the one."""
        return [self.stable] + ([] if self.candidate is None else [self.candidate])


def _draws(text: str) -> tuple[float, float]:
    """Two independent numbers in 0..1, always the same for a text."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest[:4]) / 2**32, int.from_bytes(digest[4:]) / 2**32


class LaneBuilder:
    """Makes lanes from the settings. `cards` are the models that share the budget of shared memory.

    A candidate gets what the stable lane of its model has, beyond the budget: slots take memory only once they are
    used, and a picture lies in one lane. `on_trouble` is told when the backend failed a stable lane.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        cards: tuple[Card, ...],
        backend: Backend,
        metrics: Metrics,
        clock: Callable[[], float],
        workers: int,
        peers: int,
        on_trouble: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._backend = backend
        self._metrics = metrics
        self._clock = clock
        self._workers = workers
        self._peers = peers
        self._on_trouble = on_trouble
        self._wanted = {card.name: self._size(card) for card in cards}

    def build(self, card: Card, models: Mapping[str, ModelLanes]) -> Lane:
        """A lane that counts with all workers. `models`: where it will be found."""
        region, memory = self._shared(card)
        settings, metrics, name = self._settings, self._metrics, card.name
        channels = Channels(name, wanted=self._workers)
        carrier = Carrier(
            card=card,
            backend=OneVersion(self._backend, card.version),
            region=region,
            clock=self._clock,
            channels=None if region is None else channels,
            on_refused=partial(metrics.shm_refused, name),
        )

        def is_stable() -> bool:
            # Metrics and health of the model are those of its stable version: a candidate must not trouble anybody.
            return name in models and models[name].stable.carrier is carrier

        def on_trouble() -> None:
            if is_stable():
                self._on_trouble()

        def on_dispatch(size: int, reason: str) -> None:
            if is_stable():
                metrics.batch_dispatched(name, size=size, reason=reason)

        def on_batch(predicted_seconds: float, spent_seconds: float) -> None:
            if is_stable():
                metrics.batch_answered(name, predicted_seconds=predicted_seconds, spent_seconds=spent_seconds)

        def on_late_refusal() -> None:
            if is_stable():
                metrics.refused_late(name)

        dispatcher = Dispatcher(
            card=card,
            carrier=carrier,
            # A batch may wait at its worker for those sent before it.
            batch_timeout_seconds=settings.batch_timeout_seconds * settings.batches_per_worker * self._peers,
            clock=self._clock,
            on_retry=lambda: metrics.batch_retried(name),
            on_trouble=on_trouble,
        )
        batcher = Batcher(
            max_batch=min(settings.max_batch, card.max_batch),
            workers=self._workers,
            batches_per_worker=settings.batches_per_worker,
            max_queue=settings.max_queue,
            run_batch=dispatcher.run,
            clock=self._clock,
            on_dispatch=on_dispatch,
            on_batch=on_batch,
            on_late_refusal=on_late_refusal,
        )
        return Lane(card=card, carrier=carrier, batcher=batcher, channels=channels, region=region, memory=memory)

    def _size(self, card: Card) -> Size:
        settings = self._settings
        max_batch = min(settings.max_batch, card.max_batch)
        batches = self._workers * settings.batches_per_worker
        threads = settings.decode_threads or usable_cores()
        pictures = threads + settings.max_queue + batches * max_batch
        return Size.wanted(card, max_batch=max_batch, batches=batches, pictures=pictures)

    def _shared(self, card: Card) -> tuple[Region | None, SharedDirectory | None]:
        """Shared memory for a lane, in a directory that goes when the lane does; none where it cannot be made."""
        settings = self._settings
        if not settings.shm_megabytes:
            return None, None
        size = shares(self._wanted | {card.name: self._size(card)}, settings.shm_megabytes * 2**20)[card.name]
        memory = None
        try:
            memory = SharedDirectory(settings.shm_dir)
            exhausted = partial(self._metrics.shm_exhausted, card.name)
            return memory.region(card, size, on_exhausted=exhausted), memory
        except OSError as error:
            if memory is not None:
                memory.remove()
            _log.warning(
                "no shared memory in %s for %s (%s): pixels travel inside the calls; give it more room, or set "
                "shm_megabytes to 0",
                settings.shm_dir,
                card.name,
                error.strerror or error,
            )
            return None, None
