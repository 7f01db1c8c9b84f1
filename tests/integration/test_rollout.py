"""A real TorchServe and two versions of a toy under constant calls: one starts, is promoted, and one is taken back."""

import asyncio
import contextlib
import shutil
import time
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import psutil
import pytest
import toy_torchserve
from fakes import picture
from grpc import aio
from serving import Served, served

from service.cli.canary_analysis import analyze_canary
from service.pb.mobilevision.v1 import vision_pb2, vision_pb2_grpc
from service.serving import rollout_spec
from service.serving.rollout_spec import Entry

pytestmark = [
    pytest.mark.integration,
    # TorchScript is this project's format; torch deprecates it in favour of torch.export.
    pytest.mark.filterwarnings(r"ignore:`torch\.jit\.:DeprecationWarning"),
]

SECONDS = 60.0
CALLERS = 3


@pytest.fixture
def archives(tmp_path: Path) -> Path:
    """Versions 1.0 and 1.1 of the toy."""
    folder = tmp_path / "archives"
    toy_torchserve.build(folder)
    toy_torchserve.build(tmp_path / "new", "1.1")
    for suffix in (".mar", ".card.json"):
        shutil.copy(tmp_path / "new" / f"toy{suffix}", folder / f"toy@1.1{suffix}")
    return folder


class Callers:
    """Calls without a pause, and what became of them."""

    def __init__(self, server: Served) -> None:
        self._server = server
        self.answered: Counter[str] = Counter()  # by version
        self.failed: list[str] = []

    @contextlib.asynccontextmanager
    async def calling(self) -> AsyncIterator[None]:
        async with aio.insecure_channel(self._server.grpc) as channel:
            calls = [asyncio.create_task(self._call(channel, 80 + number)) for number in range(CALLERS)]
            try:
                yield
            finally:
                for call in calls:
                    call.cancel()
                await asyncio.gather(*calls, return_exceptions=True)

    async def _call(self, channel: aio.Channel, gray: int) -> None:
        stub = vision_pb2_grpc.VisionServiceStub(channel)
        request = vision_pb2.ClassifyRequest(image=picture(gray=gray))
        while True:
            try:
                reply = await stub.Classify(request, timeout=10)  # type: ignore[misc]
            except grpc.RpcError as error:
                self.failed.append(str(error))
            else:
                self.answered[reply.model.version] += 1
            await asyncio.sleep(0.005)

    async def until(self, *versions: str, most: int = 0) -> Counter[str]:
        """Wait until each of these versions answered some more calls, and the others not: what was answered since."""
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            before = self.answered.copy()
            await asyncio.sleep(1)
            since = self.answered - before
            if since.keys() == set(versions):
                return since
        raise AssertionError(f"the last second's answers: {since}; failed: {self.failed[:3]}")


def put(folder: Path, **entry: object) -> None:
    rollout_spec.edit(folder / rollout_spec.FILE_NAME, lambda entries: entries.update(toy=Entry(**entry)))  # type: ignore[arg-type]


def page(server: Served) -> str:
    with urllib.request.urlopen(f"http://{server.http}/metrics", timeout=10) as reply:
        return str(reply.read().decode())


def workers(server: Served) -> int:
    found = 0
    for process in server.descendants():
        with contextlib.suppress(psutil.NoSuchProcess):  # it ended meanwhile, or is a zombie
            found += any("model_service_worker" in part for part in process.cmdline())
    return found


async def until_workers(server: Served, count: int) -> None:
    async with asyncio.timeout(SECONDS):
        while await asyncio.to_thread(workers, server) != count:
            await asyncio.sleep(0.2)


@pytest.mark.parametrize("processes", ["1", "2"])
async def test_no_call_is_lost_while_versions_come_and_go(archives: Path, tmp_path: Path, processes: str) -> None:
    with served(
        archives,
        tmp_path,
        "toy",
        MOBILEVISION_WORKERS_PER_MODEL="1",
        MOBILEVISION_GATEWAY_PROCESSES=processes,
        MOBILEVISION_BATCH_TIMEOUT_SECONDS="5",
    ) as server:
        callers = Callers(server)
        async with callers.calling():
            await callers.until("1.0")
            put(archives, stable="1.0", candidate="1.1", weight=0.5, shadow=0.5)
            await callers.until("1.0", "1.1")
            pages = [await asyncio.to_thread(page, server)]
            assert analyze_canary("toy", pages).agreement == 1
            put(archives, stable="1.1", previous="1.0")
            await callers.until("1.1")
            await until_workers(server, 1)  # the old version's are gone
            put(archives, stable="1.1", candidate="1.0", weight=0.5)
            await callers.until("1.0", "1.1")
            put(archives, stable="1.1")
            await callers.until("1.1")
            await until_workers(server, 1)
            await callers.until("1.1")
        assert callers.failed == []
        assert min(callers.answered["1.0"], callers.answered["1.1"]) > 20


async def test_a_torchserve_that_starts_again_has_what_was_promoted(archives: Path, tmp_path: Path) -> None:
    with served(archives, tmp_path, "toy", MOBILEVISION_WORKERS_PER_MODEL="1") as server:
        callers = Callers(server)
        async with callers.calling():
            put(archives, stable="1.1")
            await callers.until("1.1")
            await until_workers(server, 1)
            assert callers.failed == []
            (archives / "toy.mar").unlink()  # so that it would not start with that
            server.java().kill()
            deadline = time.monotonic() + SECONDS
            while not callers.failed and time.monotonic() < deadline:
                await asyncio.sleep(0.05)
            await callers.until("1.1")
