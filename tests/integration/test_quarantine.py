"""A model that cannot be loaded beside one that can, with a real TorchServe."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from toy_torchserve import build, config_for, jvm_of, members, request

from service.core.errors import BackendTimeout, BackendUnavailable
from service.engines.base import ModelStatus
from service.engines.torchserve.client import TorchServeClient
from service.engines.torchserve.config import TorchServeModel
from service.engines.torchserve.process import TorchServeProcess

pytestmark = [
    pytest.mark.integration,
    # TorchScript is this project's format; torch deprecates it in favour of torch.export.
    pytest.mark.filterwarnings(r"ignore:`torch\.jit\.:DeprecationWarning"),
]

SECONDS = 120.0  # a loaded machine needs 20 s to start a JVM and its workers


def break_copy(run: Path, folder: Path, name: str) -> None:
    """Put an archive that no worker can load in the place of TorchServe's copy. All its digests are right."""
    folder.mkdir()
    broken = build(folder, name=name, module=b"no TorchScript")
    broken.replace(run / "store" / f"{name}@1.0.mar")


async def until(fulfilled: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(SECONDS):
        while not await fulfilled():
            await asyncio.sleep(0.1)


async def test_a_broken_model_is_held_back_while_the_other_serves_and_comes_back(tmp_path: Path) -> None:
    toy, other = build(tmp_path), build(tmp_path, name="other")
    told: list[tuple[str, bool]] = []
    replaced: list[str] = []
    models = (TorchServeModel("toy", toy), TorchServeModel("other", other))
    embedded = TorchServeProcess(
        config_for(toy, models=models, quarantine_first_seconds=4.0, quarantine_last_seconds=4.0),
        on_quarantine=lambda model, held: told.append((model, held)),
        on_replaced=replaced.append,
    )
    await embedded.start()
    supervising = asyncio.create_task(embedded.supervise())
    client = TorchServeClient(embedded.endpoint)
    seen: list[ModelStatus] = []

    async def answers(model: str) -> bool:
        try:
            await client.infer(model, request(1), timeout_seconds=5)
        except (BackendUnavailable, BackendTimeout):
            return False
        return True

    async def is_held() -> bool:
        try:
            seen.append(await client.model_status("other", "1.0"))
        except BackendUnavailable:
            return False
        return "in quarantine" in seen[-1].detail

    try:
        assert await answers("other")
        break_copy(embedded.run_directory, tmp_path / "broken", "other")
        jvm_of(embedded.process_group).kill()
        await until(is_held)
        assert "PytorchStreamReader" in seen[-1].detail  # the worker's own words
        await until(lambda: answers("toy"))
        assert told == [("other", True)]
        with pytest.raises(BackendUnavailable):
            await client.infer("other", request(1), timeout_seconds=5)
        await until(lambda: answers("other"))  # the next try copies the archive again

        async def left() -> bool:
            return told[-1] == ("other", False)

        await until(left)
        assert embedded.restarts == 1
        assert (await client.model_status("other")).detail == ""
        assert replaced == []

        group = embedded.process_group
        worker = next(p for p in members(group) if any("model_service_worker" in part for part in p.cmdline()))
        worker.kill()

        async def was_replaced() -> bool:
            return bool(replaced)

        await until(was_replaced)
        assert embedded.restarts == 1
    finally:
        await client.close()
        await embedded.stop()
        await asyncio.wait_for(supervising, SECONDS)
