"""Downloads that break off, continue, are damaged, or meet a full disk."""

import asyncio
import errno
import hashlib
from pathlib import Path

import pytest
from delivered import Pauses, Spy
from obstore.store import MemoryStore

from model_store.delivery import errors
from model_store.delivery.download import ATTEMPTS, RESTARTS, _Part, download
from model_store.delivery.manifest import File
from model_store.delivery.progress import Quiet

CONTENT = bytes(range(256)) * 4096  # 1 MiB
FILE = File(name="a.mar", size_bytes=len(CONTENT), sha256=hashlib.sha256(CONTENT).hexdigest(), version="1.0")


class Counted(Quiet):
    """Adds up what is reported."""

    total = 0

    def advance(self, name: str, count: int) -> None:
        assert name == "a.mar"
        self.total += count


@pytest.fixture
def spy() -> Spy:
    store = MemoryStore()
    store.put(FILE.path, CONTENT)
    return Spy(store)


@pytest.fixture
def part(tmp_path: Path) -> Path:
    return tmp_path / "a.part"


async def fetch(spy: Spy, part: Path, pauses: Pauses | None = None) -> int:
    counted = Counted()
    await download(spy, FILE, part, progress=counted, pause=pauses or Pauses())
    assert part.read_bytes() == CONTENT
    return counted.total


def offsets(spy: Spy) -> list[int]:
    return [offset for _, offset in spy.asked]


async def test_a_download_in_one_piece(spy: Spy, part: Path) -> None:
    assert await fetch(spy, part) == len(CONTENT)
    assert offsets(spy) == [0]


async def test_a_download_that_breaks_off_is_continued(spy: Spy, part: Path) -> None:
    spy.break_after = [1000, 5000]
    pauses = Pauses()
    assert await fetch(spy, part, pauses) == len(CONTENT)
    assert offsets(spy) == [0, 1000, 6000]
    assert all(0.5 <= seconds <= 1 for seconds in pauses.seconds)
    assert len(set(pauses.seconds)) == 2  # with jitter


async def test_attempts_that_bring_nothing_end(spy: Spy, part: Path) -> None:
    spy.break_after = [1000] + [0] * ATTEMPTS
    pauses = Pauses()
    with pytest.raises(errors.Unreachable):
        await fetch(spy, part, pauses)
    assert len(pauses.seconds) == ATTEMPTS - 1
    assert all(2.0**n / 2 <= seconds <= 2.0**n for n, seconds in enumerate(pauses.seconds))
    assert part.read_bytes() == CONTENT[:1000]
    spy.break_after, spy.asked = [], []
    await fetch(spy, part)
    assert offsets(spy) == [1000]


async def test_an_attempt_that_brings_something_counts_anew(spy: Spy, part: Path) -> None:
    spy.break_after = [0, 0, 0, 1000, 0, 0, 0, 1000, 0, 0, 0]
    await fetch(spy, part)


async def test_what_was_left_is_not_trusted(spy: Spy, part: Path) -> None:
    part.write_bytes(b"?" + CONTENT[1:5000])
    assert await fetch(spy, part) == len(CONTENT) - 5000
    assert offsets(spy) == [5000, 0]


@pytest.mark.parametrize("left", [CONTENT[:-1] + b"?", CONTENT + b"?", CONTENT + CONTENT])
async def test_what_was_left_is_as_long_as_the_file_and_wrong(left: bytes, spy: Spy, part: Path) -> None:
    part.write_bytes(left)
    await fetch(spy, part)
    assert offsets(spy) == [0]


async def test_what_was_left_is_the_whole_file(spy: Spy, part: Path) -> None:
    part.write_bytes(CONTENT)
    assert await fetch(spy, part) == 0
    assert offsets(spy) == []


async def test_a_store_without_ranges_sends_the_file_again(spy: Spy, part: Path) -> None:
    spy.has_ranges = False
    spy.break_after = [1000]
    assert await fetch(spy, part) == len(CONTENT)
    assert offsets(spy) == [0, 1000, 0]


async def test_a_store_without_ranges_that_breaks_off_each_time_ends(spy: Spy, part: Path) -> None:
    spy.has_ranges = False
    spy.break_after = [1000] * 100
    with pytest.raises(errors.RangeRefused):
        await fetch(spy, part)
    assert offsets(spy).count(0) == 1 + RESTARTS
    assert not part.exists()


async def test_a_link_is_not_followed(spy: Spy, part: Path) -> None:
    victim = part.with_name("victim")
    victim.write_text("mine")
    part.symlink_to(victim)
    with pytest.raises(errors.FolderError):
        await fetch(spy, part)
    assert victim.read_text() == "mine"


async def test_a_disk_that_fills_up_is_told(spy: Spy, part: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: _Part, chunk: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(_Part, "append", full)
    with pytest.raises(errors.FolderError, match=r"No space left on device; make room"):
        await fetch(spy, part)
    assert not part.exists()


async def test_a_cancelled_download_keeps_what_it_has(spy: Spy, part: Path) -> None:
    spy.break_after = [1000]
    waits = asyncio.Event()

    async def pause(_: float) -> None:
        waits.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(download(spy, FILE, part, progress=Quiet(), pause=pause))
    await asyncio.wait_for(waits.wait(), 60)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert part.read_bytes() == CONTENT[:1000]
    await fetch(spy, part)
