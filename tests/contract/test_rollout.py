"""A roll-out in a whole gateway over a fake backend: who answers, what a bad candidate costs, and what is compared."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from fakes import RunningGateway, picture, running_gateway, toy_card, toy_run

from handlers.contract.card import Card
from handlers.contract.frame import Array
from service.core.errors import BackendFault, BackendUnavailable
from service.core.trusted_archive import ArchiveUntrusted
from service.engines.base import Loading
from service.pb.mobilevision.v1 import vision_pb2, vision_pb2_grpc
from service.serving import reconciler, rollout_spec
from service.serving.rollout_spec import Entry
from service.serving.shadow import MOST_AT_ONCE

NAME = "toy_classify"
SETTLED = f'rollout_settled{{model="{NAME}"}}'


@pytest.fixture
async def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[RunningGateway]:
    monkeypatch.setattr(reconciler, "POLL_SECONDS", 0.01)
    put(tmp_path, toy_card(), NAME)
    put(tmp_path, toy_card().model_copy(update={"version": "1.1"}), f"{NAME}@1.1")
    async with running_gateway(
        [toy_card()],
        archives=tmp_path,
        worker_shm_dir=tmp_path,
        shm_dir=tmp_path,
        shm_megabytes=16,
        workers_per_model=2,
    ) as gateway:
        gateway.backend.workers = {NAME: {"1.0": 2}}
        gateway.backend.defaults = {NAME: "1.0"}
        yield gateway


def put(folder: Path, card: Card, stem: str) -> None:
    (folder / f"{stem}.card.json").write_text(card.to_json())
    (folder / f"{stem}.mar").write_bytes(b"archive")


def want(folder: Path, **entry: Any) -> None:
    rollout_spec.edit(folder / rollout_spec.FILE_NAME, lambda entries: entries.update({NAME: Entry(**entry)}))


def page(running: RunningGateway, series: str) -> float:
    lines = running.metrics.page().decode().splitlines()
    return float(next((line for line in lines if line.startswith(f"mobilevision_{series} ")), "0 0").rpartition(" ")[2])


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


async def answers(running: RunningGateway, count: int = 60) -> Counter[str]:
    """How many of some calls were answered by which version."""
    stub: Any = vision_pb2_grpc.VisionServiceStub(running.channel)
    replies = []
    for number in range(count):
        request = vision_pb2.ClassifyRequest(image=picture(gray=100))
        replies.append(await stub.Classify(request, timeout=10, metadata=(("x-request-id", f"call-{number}"),)))
    return Counter(reply.model.version for reply in replies)


async def tried(running: RunningGateway) -> None:
    """Wait until version 1.1 is a candidate that is ready."""
    await until(lambda: share("1.1", "candidate") in running.metrics.page().decode())
    await until(lambda: page(running, SETTLED) == 1)


def share(version: str, role: str) -> str:
    return f'version_share{{model="{NAME}",role="{role}",version="{version}"}}'


def requests(version: str, outcome: str) -> str:
    return f'version_requests_total{{model="{NAME}",outcome="{outcome}",version="{version}"}}'


async def test_a_candidate_answers_its_share_and_a_request_id_meets_the_same_version(
    running: RunningGateway, tmp_path: Path
) -> None:
    assert await answers(running) == {"1.0": 60}
    want(tmp_path, stable="1.0", candidate="1.1", weight=0.5)
    await until(lambda: page(running, SETTLED) == 1 and page(running, share("1.1", "candidate")) > 0)
    assert running.backend.workers == {NAME: {"1.0": 2, "1.1": 1}}
    first = await answers(running)
    assert first.keys() == {"1.0", "1.1"}
    assert 15 < first["1.1"] < 45
    assert await answers(running) == first
    assert page(running, requests("1.1", "answered")) == 2 * first["1.1"]


async def test_what_a_candidate_fails_or_refuses_the_stable_version_answers(
    running: RunningGateway, tmp_path: Path
) -> None:
    want(tmp_path, stable="1.0", candidate="1.1", weight=1)
    await tried(running)
    for error in (BackendFault("broken"), BackendUnavailable("gone")):
        running.backend.broken = {"1.1": error}
        assert await answers(running, 10) == {"1.0": 10}
    assert page(running, requests("1.1", "passed_on")) == 20
    assert page(running, requests("1.1", "failed")) == 0


async def test_a_candidate_that_hangs_costs_half_the_time_a_call_has(running: RunningGateway, tmp_path: Path) -> None:
    want(tmp_path, stable="1.0", candidate="1.1", weight=1)
    await tried(running)
    assert await answers(running, 5) == {"1.1": 5}
    running.backend.hanging = {"1.1"}
    stub: Any = vision_pb2_grpc.VisionServiceStub(running.channel)
    reply = await stub.Classify(vision_pb2.ClassifyRequest(image=picture()), timeout=1)
    assert reply.model.version == "1.0"
    running.backend.hanging = set()


async def test_a_candidate_that_is_not_ready_gets_nothing_and_the_service_stays_ready(
    running: RunningGateway, tmp_path: Path
) -> None:
    running.backend.loading = {"1.1"}
    want(tmp_path, stable="1.0", candidate="1.1", weight=1)
    await until(lambda: "1.1" in running.backend.workers[NAME])
    assert await answers(running, 10) == {"1.0": 10}
    assert running.gateway.health.report().all_ready
    assert page(running, SETTLED) == 0
    running.backend.loading = set()
    await until(lambda: page(running, SETTLED) == 1)
    assert await answers(running, 10) == {"1.1": 10}


async def test_promotion_gives_all_workers_drains_the_old_version_and_unloads_it(
    running: RunningGateway, tmp_path: Path
) -> None:
    running.backend.gate = asyncio.Event()
    held = asyncio.create_task(answers(running, 1))
    await until(lambda: len(running.backend.batch_sizes) == 1)
    running.backend.about = {"engine": "openvino", "dtype": "float32", "device": "cpu"}
    want(tmp_path, stable="1.1")
    await until(lambda: running.backend.defaults[NAME] == "1.1")
    for _ in range(10):  # looks
        await asyncio.sleep(0.01)
    assert running.backend.workers == {NAME: {"1.0": 2, "1.1": 2}}  # a batch is in the old one
    running.backend.gate.set()
    assert await held == {"1.0": 1}
    await until(lambda: running.backend.workers == {NAME: {"1.1": 2}})
    assert running.backend.lost == 0
    assert await answers(running, 10) == {"1.1": 10}
    stub: Any = vision_pb2_grpc.VisionServiceStub(running.channel)
    listed = await stub.ListModels(vision_pb2.ListModelsRequest())
    assert [model.version for model in listed.models] == ["1.1"]
    text = running.metrics.page().decode()
    assert f'mobilevision_version_share{{model="{NAME}",role="stable",version="1.1"}} 1.0' in text
    (info,) = (line for line in text.splitlines() if line.startswith("mobilevision_model_info{"))
    assert 'version="1.1"' in info
    assert 'device="cpu",dtype="float32",engine="openvino"' in info


async def test_taking_a_candidate_back_leaves_nothing_of_it(running: RunningGateway, tmp_path: Path) -> None:
    want(tmp_path, stable="1.0", candidate="1.1", weight=0.5)
    await tried(running)
    directories = len(list(tmp_path.glob("mobilevision-*")))
    want(tmp_path, stable="1.0")
    await until(lambda: running.backend.workers == {NAME: {"1.0": 2}})
    assert len(list(tmp_path.glob("mobilevision-*"))) == directories - 1
    assert await answers(running, 10) == {"1.0": 10}
    assert page(running, share("1.1", "candidate")) == 0


async def test_a_broken_file_or_an_impossible_candidate_changes_nothing_and_is_told(
    running: RunningGateway, tmp_path: Path
) -> None:
    want(tmp_path, stable="1.0", candidate="1.1", weight=1)
    await tried(running)
    (tmp_path / rollout_spec.FILE_NAME).write_text("{")
    await until(lambda: page(running, "rollout_file_valid") == 0)
    assert await answers(running, 10) == {"1.1": 10}
    want_labels = toy_card().model_copy(update={"version": "1.2", "labels": ("cat", "dog")})
    put(tmp_path, want_labels, f"{NAME}@1.2")
    (tmp_path / rollout_spec.FILE_NAME).unlink()
    want(tmp_path, stable="1.2")
    await until(lambda: page(running, SETTLED) == 0)
    assert page(running, "rollout_file_valid") == 1
    assert await answers(running, 10) == {"1.0": 10}


async def test_a_version_torchserve_lost_is_loaded_again(running: RunningGateway, tmp_path: Path) -> None:
    want(tmp_path, stable="1.0", candidate="1.1", weight=0.5)
    await tried(running)
    running.backend.workers = {}
    await until(lambda: running.backend.workers == {NAME: {"1.0": 2, "1.1": 1}})


async def test_shadow_runs_are_compared_and_nobody_gets_their_answers(running: RunningGateway, tmp_path: Path) -> None:
    def other(model: str, pixels: Array) -> Any:
        outputs = toy_run(model, pixels)
        return outputs | {"labels": (outputs["labels"] + 1) % 3}

    want(tmp_path, stable="1.0", candidate="1.1", shadow=1)
    await tried(running)
    pair = f'candidate="1.1",metric="top1",model="{NAME}",stable="1.0"'
    runs = f'shadow_runs_total{{model="{NAME}",outcome="compared",version="1.1"}}'
    for _ in range(4):
        before = page(running, runs)
        assert await answers(running, 1) == {"1.0": 1}
        await until(lambda before=before: page(running, runs) == before + 1)  # type: ignore[misc]
    running.backend.runs = {"1.1": other}
    await answers(running, 1)
    await until(lambda: page(running, runs) == 5)
    assert page(running, f"version_agreement_sum{{{pair}}}") == 4
    running.backend.broken = {"1.1": BackendFault("broken")}
    assert await answers(running, 1) == {"1.0": 1}
    await until(lambda: page(running, runs.replace("compared", "failed")) == 1)


async def test_shadow_runs_are_dropped_where_there_is_no_room(running: RunningGateway, tmp_path: Path) -> None:
    want(tmp_path, stable="1.0", candidate="1.1", shadow=1)
    await tried(running)
    running.backend.hanging = {"1.1"}
    assert await answers(running, 20) == {"1.0": 20}
    # One that waits for a worker keeps others out; four at once are the most, where they come while it is decoded.
    dropped = page(running, f'shadow_runs_total{{model="{NAME}",outcome="dropped",version="1.1"}}')
    assert dropped in {17, 20 - MOST_AT_ONCE}
    running.backend.hanging = set()


async def test_a_candidate_whose_archive_is_refused_changes_nothing(
    running: RunningGateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    async def refuse(_: object, model: str, version: str, loading: Loading) -> None:
        asked.append(version)
        raise ArchiveUntrusted(f"{loading.archive}: it is not signed")

    monkeypatch.setattr(type(running.backend.versions), "load", refuse)
    put(tmp_path, toy_card().model_copy(update={"version": "1.1"}), f"{NAME}@1.1")
    want(tmp_path, stable="1.0", candidate="1.1", weight=1.0)
    await until(lambda: len(asked) > 1)
    assert await answers(running, 20) == {"1.0": 20}
