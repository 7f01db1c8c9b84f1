"""A gateway process as its supervisor sees it, played by small programs."""

import asyncio
import os
import sys
from pathlib import Path

import psutil
import pytest

from service import member
from service.member import MemberFailed, MemberProcess

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


def children() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


async def test_it_answers_drains_and_ends(tmp_path: Path) -> None:
    file = tmp_path / "said"
    made = await MemberProcess.spawn(program(DRAINS + ANSWERS + STAYS, str(file)), os.environ)
    assert made.http == "h:1"
    started = children()
    made.terminate()
    await asyncio.wait_for(made.ended(), SECONDS)
    assert file.read_text() == "drained"
    assert not psutil.wait_procs(started, timeout=SECONDS)[1]
    made.terminate()  # nothing to do, and no error
    made.kill()


async def test_its_death_is_noticed_though_it_is_on_a_leash() -> None:
    made = await MemberProcess.spawn(program(ANSWERS + STAYS), os.environ)
    [leash] = psutil.Process().children()
    [process] = leash.children()
    process.kill()
    await asyncio.wait_for(made.ended(), SECONDS)


async def test_kill_ends_the_leash_and_what_it_holds() -> None:
    made = await MemberProcess.spawn(program(ANSWERS + STAYS), os.environ)
    started = children()
    assert len(started) == 2
    made.kill()
    await asyncio.wait_for(made.ended(), SECONDS)
    assert not psutil.wait_procs(started, timeout=SECONDS)[1]


async def test_it_gets_the_environment_it_is_given() -> None:
    text = "import json, os; print(json.dumps({'http': os.environ['SAY']}), flush=True)\n"
    made = await MemberProcess.spawn(program(text + STAYS), {"SAY": "this"})
    assert made.http == "this"
    made.kill()
    await asyncio.wait_for(made.ended(), SECONDS)


@pytest.mark.parametrize("text", ["import sys; sys.exit(3)", "print('not an address')\n" + STAYS])
async def test_one_that_does_not_say_its_address_failed_and_is_gone(text: str) -> None:
    with pytest.raises(MemberFailed, match="ended before it answered"):
        await MemberProcess.spawn(program(text), os.environ)
    assert not psutil.wait_procs(children(), timeout=SECONDS)[1]


async def test_one_that_hangs_at_its_start_failed_and_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(member, "START_SECONDS", 0.5)
    with pytest.raises(MemberFailed, match="did not answer within"):
        await MemberProcess.spawn(program(STAYS), os.environ)
    assert not psutil.wait_procs(children(), timeout=SECONDS)[1]


async def test_a_start_that_is_given_up_leaves_nothing() -> None:
    spawning = asyncio.create_task(MemberProcess.spawn(program(STAYS), os.environ))
    async with asyncio.timeout(SECONDS):
        while len(children()) < 2:
            await asyncio.sleep(0.01)
    spawning.cancel()
    with pytest.raises(asyncio.CancelledError):
        await spawning
    assert not psutil.wait_procs(children(), timeout=SECONDS)[1]
