"""Models that break while others serve: a fake TorchServe, on a clock that the test sets."""

from pathlib import Path
from typing import Any

import pytest

from service.core.errors import BackendUnavailable
from service.engines.base import Loading
from service.engines.torchserve.client import WorkerReport
from service.engines.torchserve.config import TorchServeConfig, TorchServeModel
from service.engines.torchserve.model_keeper import ModelKeeper
from service.engines.torchserve.quarantine import Quarantine


class World:
    """A TorchServe with the models `a` and `b`, one worker each."""

    def __init__(self) -> None:
        self.now = 0.0
        self.config = TorchServeConfig(
            models=tuple(TorchServeModel(name, Path(f"{name}.mar")) for name in "ab"), environment={}
        )
        self.ready = {"a": True, "b": True}
        self.pids = {"a": 11, "b": 12}
        self.loaded = {"a", "b"}
        self.failure: BackendUnavailable | None = None
        self.published = 0
        self.told: list[tuple[str, bool]] = []
        self.replaced: list[str] = []
        self.keeper = ModelKeeper(
            current=lambda: self.config,
            renewed=lambda config: config,
            quarantine=Quarantine(first_seconds=10.0, last_seconds=600.0, clock=lambda: self.now),
            clock=lambda: self.now,
            publish=self._publish,
            on_quarantine=lambda model, held: self.told.append((model, held)),
            on_replaced=self.replaced.append,
        )

    def _publish(self) -> None:
        self.published += 1

    async def workers(self, model: str) -> list[WorkerReport]:
        return [WorkerReport("9000", self.pids[model], self.ready[model])] if model in self.loaded else []

    async def load(self, model: str, version: str, loading: Loading) -> None:
        assert (version, loading.archive, loading.workers) == ("1.0", Path(f"{model}.mar"), 1)
        if self.failure is not None:
            raise self.failure
        self.loaded.add(model)

    async def unload(self, model: str, version: str) -> None:
        assert version == "1.0"
        self.loaded.discard(model)

    async def look(self, seconds: float = 2.0, **deaths: str) -> None:
        self.now += seconds
        client: Any = self
        await self.keeper.look(client, deaths)
        await self.keeper.retry(client)


async def test_a_model_without_a_ready_worker_for_long_is_held_and_the_other_is_not() -> None:
    world = World()
    await world.look()
    world.ready["b"] = False
    await world.look(b="the digest differs")
    await world.look(398.0)
    assert (world.loaded, world.keeper.held) == ({"a", "b"}, {})
    assert world.keeper.reasons == {"b": "the digest differs"}  # operators read it while TorchServe tries on
    await world.look(2.0)
    assert (world.loaded, world.keeper.held) == ({"a"}, {"b": "1.0"})
    assert world.told == [("b", True)]


async def test_a_held_model_is_tried_again_and_leaves_when_it_is_ready() -> None:
    world = World()
    world.ready["b"] = False
    await world.look()
    await world.look(400.0)
    assert world.loaded == {"a"}
    await world.look(10.0)
    assert (world.loaded, world.keeper.held) == ({"a", "b"}, {})
    await world.look(b="it is still broken")  # one death is enough while it is tried
    assert (world.loaded, world.keeper.held) == ({"a"}, {"b": "1.0"})
    await world.look(19.0)
    assert world.loaded == {"a"}
    await world.look(1.0)
    assert world.loaded == {"a", "b"}
    world.ready["b"] = True
    before = world.published
    await world.look()
    assert world.told == [("b", True), ("b", True), ("b", False)]
    assert (world.keeper.reasons, world.keeper.held) == ({}, {})
    assert world.published > before


async def test_a_model_that_cannot_even_be_registered_stays_held() -> None:
    world = World()
    world.ready["b"] = False
    await world.look()
    await world.look(400.0)
    world.failure = BackendUnavailable("TorchServe did not register b.mar")
    await world.look(10.0)
    assert world.keeper.held == {"b": "1.0"}
    assert world.keeper.reasons == {"b": "TorchServe did not register b.mar"}


async def test_a_worker_process_that_took_the_place_of_another_is_counted_once() -> None:
    world = World()
    await world.look()
    world.ready["a"], world.pids["a"] = False, 21
    await world.look()
    assert world.replaced == []
    world.ready["a"] = True
    await world.look()
    await world.look()
    assert world.replaced == ["a"]
    world.keeper.started()  # a new JVM: all workers are new
    world.pids = {"a": 31, "b": 32}
    await world.look()
    assert world.replaced == ["a"]


async def test_an_engine_that_does_not_answer_says_nothing_about_its_models() -> None:
    world = World()

    async def silent(model: str) -> list[WorkerReport]:
        raise BackendUnavailable("silent")

    world.workers = silent  # type: ignore[method-assign]
    with pytest.raises(BackendUnavailable):
        await world.look(1000.0)
    assert world.keeper.held == {}
