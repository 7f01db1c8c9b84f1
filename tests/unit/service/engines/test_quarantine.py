"""When a model that cannot be loaded is tried again, and what its workers said."""

import json
from pathlib import Path

import pytest

from service.engines.torchserve.quarantine import Quarantine
from service.engines.torchserve.server_state import MAX_REASON_CHARS, ServerState, reason_of
from service.engines.torchserve.worker_log import DIED, WORDLESS, WorkerLog


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def made() -> tuple[Quarantine, Clock]:
    clock = Clock()
    return Quarantine(first_seconds=10.0, last_seconds=60.0, clock=clock), clock


def test_the_wait_doubles_up_to_its_limit_and_never_ends() -> None:
    quarantine, clock = made()
    waits = []
    for _ in range(6):
        waits.append(quarantine.failed("m", "1.0"))
        assert quarantine.held == {"m": "1.0"}
        clock.now += waits[-1] - 1.0
        assert quarantine.due() == []
        clock.now += 1.0
        assert quarantine.due() == ["m"]
        assert quarantine.trying("m")
        assert quarantine.held == {}
        assert quarantine.due() == []  # one try at a time
    assert waits == [10.0, 20.0, 40.0, 60.0, 60.0, 60.0]


def test_a_model_that_was_loaded_starts_anew() -> None:
    quarantine, _ = made()
    quarantine.failed("m", "1.0")
    quarantine.failed("m", "1.0")
    assert quarantine.loaded("m")
    assert not quarantine.loaded("m")
    assert quarantine.failed("m", "1.0") == 10.0


def test_another_version_is_another_model_that_may_be_in_order() -> None:
    quarantine, _ = made()
    quarantine.failed("m", "1.0")
    quarantine.failed("m", "1.0")
    assert quarantine.failed("m", "1.1") == 10.0
    quarantine.failed("other", "1.0")
    assert quarantine.held == {"m": "1.1", "other": "1.0"}


def line(model: str, message: str, version: str = "1.0", worker: int = 9000) -> str:
    return f"2026-11-28T11:53:13,132 W-{worker}-{model}_{version}-stdout {message}"


def written(path: Path, *lines: str) -> None:
    with path.open("a") as file:
        file.writelines(f"{each}\n" for each in lines)


def test_the_words_of_a_worker_are_those_of_its_own_exception(tmp_path: Path) -> None:
    log = WorkerLog(tmp_path / "workers.log")
    assert log.deaths() == {}
    written(
        tmp_path / "workers.log",
        "not a line of a worker",
        line("a_b", "Torch worker started."),
        line("fine", "Failed to load model fine, exception a first attempt"),  # it has not ended
        line("a_b", "Failed to load model a_b, exception the digest differs"),
        line("a_b", "Traceback (most recent call last):"),
        line("a_b", "RuntimeLoadError: the digest differs"),
        line("a_b", DIED),
        line("a_b", "RuntimeError: 500 - Unknown exception"),
        line("gpu", "Load model gpu cuda out of memory, exception CUDA out of memory.", version="2.0"),
        line("gpu", DIED, version="2.0"),
        line("silent", DIED),
    )
    assert log.deaths() == {"a_b": "the digest differs", "gpu": "CUDA out of memory.", "silent": WORDLESS}


def test_each_death_is_told_once_also_when_the_log_is_cut_or_replaced(tmp_path: Path) -> None:
    path = tmp_path / "workers.log"
    log = WorkerLog(path)
    written(path, line("m", "Failed to load model m, exception first"))
    assert log.deaths() == {}
    with path.open("a") as file:
        file.write(line("m", DIED)[:-5])
    assert log.deaths() == {}
    with path.open("a") as file:
        file.write(DIED[-5:] + "\n")
    assert log.deaths() == {"m": "first"}
    assert log.deaths() == {}
    path.replace(tmp_path / "workers.log.1")
    written(path, line("m", "Failed to load model m, exception second"), line("m", DIED))
    assert log.deaths() == {"m": "second"}
    path.write_bytes(b"\xff\n" * 10)
    assert log.deaths() == {}


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("plain", "plain"),
        ("two\nlines\t and   gaps", "two lines and gaps"),
        ("\x1b[31mred\x00", "\\x1b[31mred\\x00"),
        ("x" * 1000, "x" * MAX_REASON_CHARS + "..."),
    ],
)
def test_words_become_one_short_printable_line(words: str, reason: str) -> None:
    assert reason_of(words) == reason


def test_the_state_is_written_and_read_as_a_whole(tmp_path: Path) -> None:
    state = ServerState(1, 2, {"m": "why"}, {"m": "1.0"})
    state.write(tmp_path)
    assert ServerState.read(tmp_path) == state
    [path] = tmp_path.iterdir()
    path.write_text(json.dumps({"unknown": 1}))
    with pytest.raises(TypeError):
        ServerState.read(tmp_path)
