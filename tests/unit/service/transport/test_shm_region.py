import errno
import subprocess
import sys
from pathlib import Path

import pytest
from fakes import SIDE, toy_card

from handlers.contract.card import Task
from handlers.contract.shm_layout import DIRECTORY_PREFIX, SlotFile
from service.core import locked_directory
from service.transport.shm_region import SharedDirectory, Size, shares
from service.transport.slots import Usage

ROOT = Path(__file__).parents[4]


def size(inputs: int = 10, outputs: int = 2, **changes: int) -> Size:
    sides = {"max_batch": 4, "input_bytes": SIDE * SIDE * 3, "output_bytes": 8192} | changes
    return Size(inputs=inputs, outputs=outputs, **sides)


def test_the_directory_is_private_and_nothing_is_left_of_it(tmp_path: Path) -> None:
    shared = SharedDirectory(tmp_path)
    region = shared.region(toy_card(), size())
    assert shared.path.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in shared.path.iterdir()} == {0o600}
    assert (tmp_path / region.inputs_name).is_file()
    assert (tmp_path / region.probe_name).read_text() == region.token
    assert region.inputs.usage() == Usage(free=10)
    shared.remove()
    assert list(tmp_path.iterdir()) == []


def test_memory_is_taken_as_it_is_needed(tmp_path: Path) -> None:
    shared = SharedDirectory(tmp_path)
    region = shared.region(toy_card(), size(inputs=10_000))
    stored = (tmp_path / region.inputs_name).stat()
    assert stored.st_size > 10_000 * SIDE * SIDE * 3
    assert stored.st_blocks * 512 < 100 * SIDE * SIDE * 3
    shared.remove()


def test_an_output_slot_holds_the_largest_batch() -> None:
    wanted = Size.wanted(toy_card(Task.SEGMENT), max_batch=8, batches=2, pictures=50)
    assert (wanted.inputs, wanted.outputs, wanted.input_bytes) == (50, 4, SIDE * SIDE * 3)
    assert wanted.output_bytes >= 8 * (SIDE * SIDE + 4)


def test_the_budget_is_shared_in_proportion() -> None:
    wanted = {"small": size(inputs=100), "large": size(inputs=100, input_bytes=9 * SIDE * SIDE * 3)}
    assert shares(wanted, 2**30) == wanted
    budget = sum(each.total_bytes for each in wanted.values()) // 2
    cut = shares(wanted, budget)
    assert sum(each.total_bytes for each in cut.values()) <= budget
    assert all(40 <= each.inputs <= 50 for each in cut.values())
    assert [each.inputs for each in shares(wanted, 1).values()] == [1, 1]


def test_a_region_that_does_not_fit_is_told_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = SharedDirectory(tmp_path)
    before = sorted(shared.path.iterdir())

    def full(file: SlotFile, index: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(SlotFile, "reserve", full)
    with pytest.raises(OSError, match="No space left"):
        shared.region(toy_card(), size())
    assert sorted(shared.path.iterdir()) == before
    shared.remove()


def test_what_a_killed_gateway_left_is_removed_and_what_a_living_one_has_is_not(tmp_path: Path) -> None:
    living = SharedDirectory(tmp_path)
    program = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from service.transport.shm_region import SharedDirectory\n"
        "print(SharedDirectory(Path(sys.argv[1])).path, flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    killed = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    left = Path(killed.stdout.strip())
    assert left.is_dir()
    (tmp_path / "mobilevision-run").mkdir()  # somebody else's
    (tmp_path / f"{DIRECTORY_PREFIX}link").symlink_to(tmp_path / "mobilevision-run")
    another = SharedDirectory(tmp_path)
    assert not left.exists()
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {living.path.name, another.path.name, "mobilevision-run", f"{DIRECTORY_PREFIX}link"}
    living.remove()
    locked_directory.remove_stale(tmp_path, DIRECTORY_PREFIX)
    assert another.path.is_dir()
    another.remove()


def test_a_base_that_is_not_there_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        SharedDirectory(tmp_path / "absent")
    assert list(tmp_path.iterdir()) == []
