"""`ReplicaProcess` against small programs that play a gateway process."""

import asyncio
import os
import sys
from pathlib import Path

import psutil
import pytest

from service.app import replica
from service.app.replica import ReplicaFailed, ReplicaProcess

SECONDS = 30.0
ANSWERS = "import json, os; print(json.dumps({'grpc': 'g', 'http': 'h:1'}), flush=True)\n"
STAYS = "import time; time.sleep(600)\n"
# Drains: says so where the test can see it, then ends.
DRAINS = (
    "import pathlib, signal, sys\n"
    "signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path(sys.argv[1]).write_text('drained'), sys.exit(0)))\n"
)


def program(text: str, *arguments: str) -> list[str]:
    return [sys.executable, "-c", text, *arguments]


_of_other_tests: set[psutil.Process] = set()


@pytest.fixture(autouse=True)
def _other_processes() -> None:
    """A test process may already run servers that other test files share."""
    _of_other_tests.clear()
    _of_other_tests.update(psutil.Process().children(recursive=True))


def children() -> list[psutil.Process]:
    """Processes that this test started."""
    return [one for one in psutil.Process().children(recursive=True) if one not in _of_other_tests]


async def test_a_process_answers_drains_and_ends(tmp_path: Path) -> None:
    file = tmp_path / "said"
    made = await ReplicaProcess.spawn(program(DRAINS + ANSWERS + STAYS, str(file)), os.environ)
    assert made.http == "h:1"
    started = children()
    made.terminate()
    await asyncio.wait_for(made.ended(), SECONDS)
    assert file.read_text() == "drained"
    assert not psutil.wait_procs(started, timeout=SECONDS)[1]
    made.terminate()  # nothing to do, and no error
    made.kill()


async def test_its_death_is_noticed_behind_the_process_guard() -> None:
    made = await ReplicaProcess.spawn(program(ANSWERS + STAYS), os.environ)
    [guard] = [one for one in children() if one.ppid() == os.getpid()]
    [process] = guard.children()
    process.kill()
    await asyncio.wait_for(made.ended(), SECONDS)


async def test_kill_ends_the_process_guard_and_its_program() -> None:
    made = await ReplicaProcess.spawn(program(ANSWERS + STAYS), os.environ)
    started = children()
    assert len(started) == 2
    made.kill()
    await asyncio.wait_for(made.ended(), SECONDS)
    assert not psutil.wait_procs(started, timeout=SECONDS)[1]


async def test_a_process_gets_the_given_environment() -> None:
    text = "import json, os; print(json.dumps({'http': os.environ['SAY']}), flush=True)\n"
    made = await ReplicaProcess.spawn(program(text + STAYS), {"SAY": "this"})
    assert made.http == "this"
    made.kill()
    await asyncio.wait_for(made.ended(), SECONDS)


@pytest.mark.parametrize("text", ["import sys; sys.exit(3)", "print('not an address')\n" + STAYS])
async def test_a_process_that_prints_no_address_fails_and_is_ended(text: str) -> None:
    with pytest.raises(ReplicaFailed, match="ended before it answered"):
        await ReplicaProcess.spawn(program(text), os.environ)
    assert not psutil.wait_procs(children(), timeout=SECONDS)[1]


async def test_a_process_that_hangs_at_start_fails_and_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replica, "START_SECONDS", 0.5)
    with pytest.raises(ReplicaFailed, match="did not answer within"):
        await ReplicaProcess.spawn(program(STAYS), os.environ)
    assert not psutil.wait_procs(children(), timeout=SECONDS)[1]


async def test_a_cancelled_start_leaves_no_process() -> None:
    spawning = asyncio.create_task(ReplicaProcess.spawn(program(STAYS), os.environ))
    async with asyncio.timeout(SECONDS):
        while len(children()) < 2:
            await asyncio.sleep(0.01)
    spawning.cancel()
    with pytest.raises(asyncio.CancelledError):
        await spawning
    assert not psutil.wait_procs(children(), timeout=SECONDS)[1]
