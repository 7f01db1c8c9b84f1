"""The folder of recorded calls, and the recorder in front of it."""

import asyncio
import logging
import os
import stat
import threading
from pathlib import Path

import pytest

from mobilevision.replay import find
from service.core.call_scope import CallScope
from service.core.errors import BackendFault, QueueFull
from service.core.types import RequestRecord
from service.frontends.recording import recorder as recorder_module
from service.frontends.recording.recorder import Recorder
from service.frontends.recording.store import Bounds, FolderNotPrivate, RecordingStore, prepare
from service.pb.mobilevision.v1 import vision_pb2

BOUNDS = Bounds(most_bytes=800, most_calls=16, most_seconds=100.0)


class Clock:
    def __init__(self) -> None:
        self.now = 1e9

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


def store_in(folder: Path, bounds: Bounds = BOUNDS, clock: Clock | None = None) -> RecordingStore:
    store = RecordingStore(folder, bounds, clock or Clock())
    store.open()
    return store


def calls(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.call"))


def test_folder_and_files_are_for_their_owner_only(tmp_path: Path) -> None:
    folder = tmp_path / "recorded" / "calls"
    store_in(folder).write("id", b"content")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    (file,) = calls(folder)
    assert (stat.S_IMODE(file.stat().st_mode), file.read_bytes()) == (0o600, b"content")
    folder.chmod(0o750)
    with pytest.raises(FolderNotPrivate, match="chmod 700"):
        prepare(folder)


@pytest.mark.parametrize("writers", [1, 3])
def test_bytes_and_number_are_bounded_and_the_newest_stay(tmp_path: Path, writers: int) -> None:
    clock = Clock()
    stores = [store_in(tmp_path, Bounds(800, 16, 1e6, writers), clock) for _ in range(writers)]
    for size in (10, 90, 300):
        for number in range(60):
            stores[number % writers].write(f"{size} {number}", b"x" * size)
            assert sum(file.stat().st_size for file in calls(tmp_path)) <= 800
            assert len(calls(tmp_path)) <= 16
    assert calls(tmp_path)[-1].stat().st_size == 300
    assert len(calls(tmp_path)) >= 1
    with pytest.raises(OSError, match="larger"):
        stores[0].write("huge", b"x" * 801)


def test_old_calls_and_remains_of_killed_processes_are_deleted_and_nothing_else(tmp_path: Path) -> None:
    clock = Clock()
    store = store_in(tmp_path, clock=clock)
    store.write("old", b"")
    clock.now += 80
    store.write("young", b"")
    (tmp_path / "notes.txt").touch()
    for name, age_seconds in (("dead.part", 90), ("alive.part", 0)):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (clock.now - age_seconds,) * 2)
    clock.now += 30
    store.prune()
    assert len(calls(tmp_path)) == 1
    assert {path.name for path in tmp_path.iterdir() if path.suffix != ".call"} == {"notes.txt", "alive.part"}


def scope(request_id: str = "id/1") -> CallScope:
    record = RequestRecord(request_id=request_id, method="Classify", model="toy", version="1.0", module_sha256="ab")
    record.dtype, record.device, record.batch_size = "float32", "cpu", 3
    return CallScope(record=record, deadline_at=1e12)


REQUEST = vision_pb2.ClassifyRequest(model="toy", image=b"picture", top_k=3)
REPLY = vision_pb2.ClassifyResponse(labels=[vision_pb2.Label(id=1, name="cat", score=0.5)])


class Recording:
    """A recorder over a folder, and what became of the calls."""

    def __init__(self, folder: Path, *, share: float = 1.0, content: bool = True) -> None:
        self.outcomes: list[str] = []
        self.folder = folder
        store = RecordingStore(folder, BOUNDS, Clock())
        self.recorder = Recorder(
            store, engine="fake", share=share, content=content, on_outcome=self.outcomes.append, clock=Clock()
        )
        self.recorder.start()

    async def call(self, answer: object, request_id: str = "id/1") -> object:
        async def method(request: object, scope: CallScope) -> object:
            if isinstance(answer, BaseException):
                raise answer
            return answer

        return await self.recorder.recorded(method)(REQUEST, scope(request_id))

    async def close(self) -> None:
        await asyncio.to_thread(self.recorder.close)
        await asyncio.to_thread(self.recorder._thread.join, 60)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "calls"


async def test_an_answered_call_is_recorded_with_all_that_computed_it(folder: Path) -> None:
    recording = Recording(folder)
    assert await recording.call(REPLY) is REPLY
    await recording.close()
    call = find(folder, "id/1")
    assert vision_pb2.ClassifyRequest.FromString(call.request) == REQUEST
    assert vision_pb2.ClassifyResponse.FromString(call.reply) == REPLY
    assert (call.request_id, call.method, call.image_bytes) == ("id/1", "Classify", 7)
    ran = call.execution
    assert (ran.model, ran.version, ran.module_sha256, ran.engine) == ("toy", "1.0", "ab", "fake")
    assert (ran.dtype, ran.device, ran.batch_size) == ("float32", "cpu", 3)
    assert recording.outcomes == ["written"]


@pytest.mark.parametrize(
    ("failure", "code", "reason"),
    [
        (QueueFull("full", metadata={"a": "b"}), "RESOURCE_EXHAUSTED", "QUEUE_FULL"),
        (BackendFault("failed", detail="a secret path"), "INTERNAL", "BACKEND_FAULT"),
        (ValueError("a secret"), "INTERNAL", "BUG"),
        (MemoryError(), "RESOURCE_EXHAUSTED", "TOO_MANY_REQUESTS"),
        (asyncio.CancelledError(), "CANCELLED", "CANCELLED"),
    ],
)
async def test_a_failed_call_is_recorded_with_its_error(
    folder: Path, failure: BaseException, code: str, reason: str
) -> None:
    recording = Recording(folder)
    with pytest.raises(type(failure)):
        await recording.call(failure)
    await recording.close()
    call = find(folder, "id/1")
    assert (call.error.code, call.error.reason) == (code, reason)
    assert dict(call.error.metadata) == getattr(failure, "metadata", {})
    assert "secret" not in call.error.message
    assert not call.HasField("reply")


async def test_metadata_only_keeps_neither_picture_nor_answer(folder: Path) -> None:
    recording = Recording(folder, content=False)
    await recording.call(REPLY)
    await recording.close()
    call = find(folder, "id/1")
    assert vision_pb2.ClassifyRequest.FromString(call.request) == vision_pb2.ClassifyRequest(model="toy", top_k=3)
    assert not call.HasField("reply")
    assert b"picture" not in call.SerializeToString()
    assert b"cat" not in call.SerializeToString()
    assert len(call.image_sha256) == 64
    assert REQUEST.image == b"picture"


async def test_a_share_of_the_calls_is_recorded(folder: Path) -> None:
    recording = Recording(folder, share=0.25)
    for number in range(400):
        await recording.call(REPLY, str(number))
    await recording.close()
    assert 60 <= len(recording.outcomes) <= 140


async def test_a_disk_that_takes_nothing_fails_no_call_and_is_logged_once(
    folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = threading.Event()
    full.set()
    write = RecordingStore.write

    def maybe_write(store: RecordingStore, request_id: str, content: bytes) -> None:
        if full.is_set():
            raise OSError(28, "No space left on device")
        write(store, request_id, content)

    monkeypatch.setattr(RecordingStore, "write", maybe_write)
    caplog.set_level(logging.INFO)
    recording = Recording(folder)
    for _ in range(3):
        assert await recording.call(REPLY) is REPLY
    async with asyncio.timeout(60):
        while len(recording.outcomes) < 3:
            await asyncio.sleep(0.001)
    full.clear()
    await recording.call(REPLY)
    await recording.close()
    assert recording.outcomes == ["failed"] * 3 + ["written"]
    assert [r.message.partition(":")[0] for r in caplog.records if r.name == recorder_module.__name__] == [
        "calls cannot be recorded and are dropped",
        "calls are recorded again",
    ]


async def test_calls_are_dropped_where_too_many_wait_and_none_is_delayed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder_module, "MOST_WAITING_BYTES", 50)
    gate = threading.Event()
    monkeypatch.setattr(RecordingStore, "write", lambda *_: gate.wait(60))
    recording = Recording(folder)
    try:
        for _ in range(5):
            assert await recording.call(REPLY) is REPLY  # the thread is at the first one
        assert recording.outcomes == ["dropped"] * 3
    finally:
        gate.set()
        await recording.close()
    assert recording.outcomes == ["dropped"] * 3 + ["written"] * 2
