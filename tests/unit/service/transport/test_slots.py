import errno
import random
import threading
from pathlib import Path

import pytest

from handlers.contract.shm_layout import Memory, Refused, SlotFile
from service.transport.slots import GROW_AGAIN_SECONDS, InputSlots, OutputSlots, Usage

FOLDER = "mobilevision-shm-test"
SHAPE = (2, 2, 3)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / FOLDER).mkdir(mode=0o700)
    return tmp_path / FOLDER


class Inputs:
    def __init__(self, folder: Path, count: int) -> None:
        self.exhausted = 0
        self.file = SlotFile.create(folder / "m.inputs", slots=count, slot_bytes=12)
        self.slots = InputSlots(self.file, SHAPE, on_exhausted=self._count)
        self.slots.offered = True

    def _count(self) -> None:
        self.exhausted += 1


def outputs(folder: Path, count: int) -> tuple[OutputSlots, list[SlotFile]]:
    files = [SlotFile.create(folder / f"m.output-{i}", slots=1, slot_bytes=64) for i in range(count)]
    slots = OutputSlots(files)
    slots.reserve()
    return slots, files


def test_a_slot_is_free_again_when_its_last_holder_drops_it(folder: Path) -> None:
    bench = Inputs(folder, 2)
    with bench.slots.lease() as lease:
        pixels = lease.allocate()
        assert pixels is not None
        assert (pixels.shape, pixels.flags.writeable) == (SHAPE, True)
        lease.acquire()
    assert lease.held
    assert bench.slots.usage() == Usage(free=1, used=1)
    lease.release()
    assert not lease.held
    assert bench.slots.usage() == Usage(free=2)


def test_every_use_has_a_new_generation(folder: Path) -> None:
    bench, seen = Inputs(folder, 1), []
    for _ in range(3):
        with bench.slots.lease() as lease:
            lease.allocate()
            seen.append((lease.index, lease.generation))
    assert len(set(seen)) == 3


def test_a_picture_without_a_free_slot_is_counted_and_gets_none(folder: Path) -> None:
    bench = Inputs(folder, 1)
    with bench.slots.lease() as first, bench.slots.lease() as second:
        assert first.allocate() is not None
        assert second.allocate() is None
        assert second.index is None
    assert bench.exhausted == 1
    assert bench.slots.usage() == Usage(free=1)


def test_nothing_is_lent_while_the_workers_do_not_read_it(folder: Path) -> None:
    bench = Inputs(folder, 1)
    bench.slots.offered = False
    with bench.slots.lease() as lease:
        assert lease.allocate() is None
    assert bench.exhausted == 0


def test_memory_that_runs_out_makes_fewer_slots_not_a_crash(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bench = Inputs(folder, 5)
    reserve = SlotFile.reserve

    def full(file: SlotFile, index: int) -> None:
        if index >= 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        reserve(file, index)

    monkeypatch.setattr(SlotFile, "reserve", full)
    leases = [bench.slots.lease() for _ in range(4)]
    assert [lease.allocate() is None for lease in leases] == [False, False, True, True]
    assert bench.exhausted == 2
    assert bench.slots.usage() == Usage(free=0, used=2)
    assert [record.levelname for record in caplog.records] == ["WARNING"]  # once
    for lease in leases:
        lease.release()
    assert bench.slots.usage() == Usage(free=2)


def test_slots_grow_again_when_memory_is_free_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now, limit, attempts = 0.0, 1, 0
    file = SlotFile.create(folder / "file", slots=3, slot_bytes=SHAPE[0] * SHAPE[1] * SHAPE[2])
    slots = InputSlots(file, SHAPE, clock=lambda: now)
    slots.offered = True
    reserve = SlotFile.reserve

    def limited(file: SlotFile, index: int) -> None:
        nonlocal attempts
        attempts += 1
        if index >= limit:
            raise OSError(errno.ENOSPC, "No space left on device")
        reserve(file, index)

    monkeypatch.setattr(SlotFile, "reserve", limited)
    assert slots.take() is not None
    assert [slots.take() for _ in range(3)] == [None] * 3
    assert attempts == 2, "not tried for every picture"
    limit = 3
    now = GROW_AGAIN_SECONDS - 0.1
    assert slots.take() is None
    now = GROW_AGAIN_SECONDS
    assert slots.take() is not None
    assert slots.usage() == Usage(free=1, used=2)
    limit = 2
    assert slots.take() is None
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2


def test_a_lease_cannot_be_acquired_or_released_after_its_last_holder_released_it(folder: Path) -> None:
    lease = Inputs(folder, 1).slots.lease()
    lease.release()
    for wrong in (lease.release, lease.acquire):
        with pytest.raises(RuntimeError, match="this is a bug"):
            wrong()


def test_threads_never_get_the_same_slot(folder: Path) -> None:
    bench = Inputs(folder, 8)
    wrong: list[str] = []

    def work(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(300):
            lease = bench.slots.lease()
            pixels = lease.allocate()
            if pixels is not None:
                shade = rng.randrange(256)
                pixels[:] = shade
                if int(pixels.min()) != shade or int(pixels.max()) != shade:
                    wrong.append("somebody else wrote")
                if bench.file.generations[lease.index] != lease.generation:
                    wrong.append("somebody else has it")
            lease.release()

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert bench.slots.usage() == Usage(free=8)


def test_a_lost_batchs_slot_is_reused_only_when_its_worker_cannot_write(folder: Path) -> None:
    slots, _ = outputs(folder, 1)
    lost = slots.take()
    assert lost is not None
    memory = Memory(folder.parent)
    with memory.output(f"{FOLDER}/m.output-0", lost.generation):  # the worker is in the middle of writing
        slots.quarantine(lost)
        assert slots.take() is None
        assert slots.usage() == Usage(quarantined=1)
    again = slots.take()
    assert again is not None
    assert again.generation != lost.generation


def test_a_worker_later_than_the_quarantine_is_kept_out(folder: Path) -> None:
    slots, files = outputs(folder, 1)
    lost = slots.take()
    assert lost is not None
    slots.quarantine(lost)
    memory, name = Memory(folder.parent), f"{FOLDER}/m.output-0"
    with pytest.raises(Refused, match="late"), memory.output(name, lost.generation) as buffer:
        buffer[:] = 1
    reused = slots.take()
    assert reused is not None
    with pytest.raises(Refused, match="late"), memory.output(name, lost.generation) as buffer:
        buffer[:] = 1
    assert not files[0].slot(0).any()
    slots.free(reused)
    assert slots.usage() == Usage(free=1)


def test_late_workers_never_spoil_another_batch(folder: Path) -> None:
    """Batches are lost at random; their workers write at random times. What a live batch wrote is always its own."""
    rng = random.Random(5)
    slots, _ = outputs(folder, 3)
    memory = Memory(folder.parent)
    late: list[tuple[str, int]] = []
    writing: list = []  # workers stopped in the middle of writing
    refused = stuck = 0
    for batch in range(1, 400):
        slot = slots.take()
        if slot is None:
            stuck += 1
            assert len(writing) == 3
            while writing:
                writing.pop().__exit__(None, None, None)
            continue
        name, mine = f"{FOLDER}/m.output-{slot.index}", batch % 256
        with memory.output(name, slot.generation) as buffer:
            buffer[:] = mine
        for late_name, generation in rng.sample(late, min(len(late), 3)):
            try:
                with memory.output(late_name, generation) as buffer:
                    buffer[:] = 255 - mine
            except Refused:
                refused += 1
        assert (slots.content(slot) == mine).all()
        if rng.random() < 0.5:
            slots.free(slot)
            continue
        if rng.random() < 0.2:
            in_the_middle = Memory(folder.parent).output(name, slot.generation)
            in_the_middle.__enter__()
            writing.append(in_the_middle)
        slots.quarantine(slot)
        late.append((name, slot.generation))
    while writing:
        writing.pop().__exit__(None, None, None)
    assert refused > 100
    assert stuck
    assert slots.usage() == Usage(free=3)
