import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from handlers.contract.shm_layout import LAST_GENERATION, PAGE_BYTES, Memory, Refused, SlotFile

FOLDER = "mobilevision-shm-test"
ROOT = Path(__file__).parents[3]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / FOLDER).mkdir(mode=0o700)
    return tmp_path / FOLDER


def slot_file(folder: Path, name: str = "m.inputs", *, slots: int = 3, slot_bytes: int = 12) -> SlotFile:
    file = SlotFile.create(folder / name, slots=slots, slot_bytes=slot_bytes)
    for index in range(slots):
        file.reserve(index)
    return file


def described(*slots: tuple[int, int]) -> np.ndarray:
    return np.array(slots, np.int32)


def test_a_worker_reads_what_the_gateway_wrote(folder: Path) -> None:
    file = slot_file(folder)
    for index in range(3):
        file.slot(index)[:] = index + 1
    generations = [file.renew(index) for index in range(3)]
    memory = Memory(folder.parent)
    rows = memory.rows(f"{FOLDER}/m.inputs", described((2, generations[2]), (0, generations[0])), (2, 2, 3))
    assert [int(row.min()) for row in rows] == [int(row.max()) for row in rows] == [3, 1]
    assert rows[0].shape == (2, 2, 3)
    with pytest.raises(ValueError, match="read-only"):
        rows[0][:] = 0
    assert file.slot(1).ctypes.data % PAGE_BYTES == 0


def test_a_slot_that_was_given_to_another_is_refused_before_and_after_reading(folder: Path) -> None:
    file = slot_file(folder)
    memory, mine = Memory(folder.parent), described((1, file.renew(1)))
    memory.rows(f"{FOLDER}/m.inputs", mine, (2, 2, 3))
    memory.check(f"{FOLDER}/m.inputs", mine)
    file.renew(1)
    with pytest.raises(Refused, match="late"):
        memory.check(f"{FOLDER}/m.inputs", mine)
    with pytest.raises(Refused, match="late"):
        memory.rows(f"{FOLDER}/m.inputs", mine, (2, 2, 3))


def test_generations_start_again_before_they_overflow(folder: Path) -> None:
    file = slot_file(folder)
    file.generations[0] = LAST_GENERATION
    assert file.renew(0) == 1


@pytest.mark.parametrize("index", [-2, 3, 2**31 - 1])
def test_a_slot_that_is_not_there_is_refused(folder: Path, index: int) -> None:
    slot_file(folder)
    with pytest.raises(Refused, match="the file has 3 slots"):
        Memory(folder.parent).rows(f"{FOLDER}/m.inputs", described((index, 0)), (2, 2, 3))


@pytest.mark.parametrize("shape", [(2, 3, 3), (-2, -2, 3), (0, 0, 3)])
def test_a_shape_the_slots_do_not_have_is_refused(folder: Path, shape: tuple[int, int, int]) -> None:
    slot_file(folder)
    with pytest.raises(Refused, match="do not hold"):
        Memory(folder.parent).rows(f"{FOLDER}/m.inputs", described((0, 0)), shape)


@pytest.mark.parametrize(
    "name",
    [
        "/etc/passwd",
        f"{FOLDER}/../secret",
        f"{FOLDER}/..",
        f"{FOLDER}/",
        f"{FOLDER}//etc/passwd",
        "../secret",
        "secret",
        "other/m.inputs",
        f"{FOLDER}/m.inputs\n",
        f"{FOLDER}/m\0.inputs",
        "",
    ],
)
def test_only_files_of_a_gateways_directory_can_be_named(folder: Path, name: str) -> None:
    (folder.parent / "secret").write_text("token")
    with pytest.raises(Refused, match="is not the name"):
        Memory(folder.parent).token(name)


def test_without_a_directory_everything_is_refused() -> None:
    with pytest.raises(Refused, match="MOBILEVISION_SHM_DIR is not set"):
        Memory(None).token(f"{FOLDER}/probe")


def _link_to_a_file(folder: Path) -> None:
    slot_file(folder, "real")
    (folder / "m.inputs").symlink_to(folder / "real")


def _link_to_a_folder(folder: Path) -> None:
    real = folder.rename(folder.parent / "real")
    slot_file(real)
    folder.symlink_to(real)


def _open_to_others(folder: Path) -> None:
    slot_file(folder)
    folder.chmod(0o755)


def _pipe(folder: Path) -> None:
    os.mkfifo(folder / "m.inputs")


def _folder(folder: Path) -> None:
    (folder / "m.inputs").mkdir()


def _too_short(folder: Path) -> None:
    slot_file(folder)
    os.truncate(folder / "m.inputs", PAGE_BYTES)


def _too_long(folder: Path) -> None:
    slot_file(folder)
    os.truncate(folder / "m.inputs", 10 * PAGE_BYTES)


def _another_file(folder: Path) -> None:
    (folder / "m.inputs").write_bytes(b"x" * PAGE_BYTES)


def _empty(folder: Path) -> None:
    (folder / "m.inputs").touch()


@pytest.mark.parametrize(
    "make",
    [
        _link_to_a_file,
        _link_to_a_folder,
        _open_to_others,
        _pipe,
        _folder,
        _too_short,
        _too_long,
        _another_file,
        _empty,
        lambda folder: None,
    ],
)
def test_what_is_no_slot_file_is_refused(folder: Path, make) -> None:
    make(folder)
    with pytest.raises(Refused):
        Memory(folder.parent).rows(f"{FOLDER}/m.inputs", described((0, 0)), (2, 2, 3))


def test_files_of_a_gateway_that_was_started_anew_are_mapped_anew(folder: Path) -> None:
    memory, name = Memory(folder.parent), f"{FOLDER}/m.inputs"
    for shade in (7, 9):
        file = slot_file(folder)
        file.slot(0)[:] = shade
        [row] = memory.rows(name, described((0, file.renew(0))), (2, 2, 3))
        assert int(row.max()) == shade
        (folder / "m.inputs").unlink()
    with pytest.raises(Refused, match="cannot be opened"):
        memory.rows(name, described((0, 1)), (2, 2, 3))


def test_a_late_worker_does_not_write(folder: Path) -> None:
    file = slot_file(folder, "m.output-0", slots=1)
    memory, generation = Memory(folder.parent), file.renew(0)
    file.renew(0)
    with pytest.raises(Refused, match="late"), memory.output(f"{FOLDER}/m.output-0", generation) as buffer:
        buffer[:] = 1
    assert not file.slot(0).any()


def test_the_gateway_sees_that_a_worker_writes(folder: Path) -> None:
    file = slot_file(folder, "m.output-0", slots=1)
    with Memory(folder.parent).output(f"{FOLDER}/m.output-0", file.renew(0)) as buffer:
        buffer[:] = 1
        with file.locked() as nobody_writes:
            assert not nobody_writes
    with file.locked() as nobody_writes:
        assert nobody_writes
    assert file.slot(0).all()


def test_a_worker_that_is_killed_while_it_writes_lets_go(folder: Path) -> None:
    file = slot_file(folder, "m.output-0", slots=1)
    program = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from handlers.contract.shm_layout import Memory\n"
        f"with Memory(Path(sys.argv[1])).output('{FOLDER}/m.output-0', {file.renew(0)}):\n"
        "    print('writing', flush=True)\n"
        "    time.sleep(600)\n"
    )
    command = [sys.executable, "-c", program, str(folder.parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as worker:
        assert worker.stdout is not None
        assert worker.stdout.readline() == b"writing\n"
        with file.locked() as nobody_writes:
            assert not nobody_writes
        worker.send_signal(signal.SIGKILL)
        worker.wait()
    with file.locked() as nobody_writes:
        assert nobody_writes


def test_a_token_counts_only_if_its_lock_is_seen(folder: Path) -> None:
    probe = os.open(folder / "probe", os.O_RDWR | os.O_CREAT, 0o600)
    os.write(probe, b"1234")
    memory = Memory(folder.parent)
    with pytest.raises(Refused, match="locks"):
        memory.token(f"{FOLDER}/probe")
    fcntl.flock(probe, fcntl.LOCK_EX)
    assert memory.token(f"{FOLDER}/probe") == "1234"
    os.close(probe)


def test_a_closed_file_gives_its_memory_back_although_something_still_refers_to_it(folder: Path) -> None:
    file = slot_file(folder)
    view = file.slot(1)
    view[:] = 7
    generation = file.renew(1)
    (folder / "m.inputs").unlink()
    file.close()
    assert view.tolist() == [7] * 12, "a view stays valid"
    del view
    assert "m.inputs" not in Path("/proc/self/maps").read_text()
    assert file.renew(1) == generation + 1, "a batch that ends late changes nothing"
    assert len(file.slot(1)) == 12
