"""The last moments of a gateway: gRPC's own stop begins when no caller is about to call. On virtual time."""

import asyncio
from types import SimpleNamespace

import pytest
import virtual

from service.app.gateway import HELD_SECONDS, MOST_HELD_SECONDS, Gateway


def waited_seconds(calls: int) -> float:
    """How long the stop waits while calls come in, two per `HELD_SECONDS`."""

    async def play() -> float:
        pipeline = SimpleNamespace(refused=0)
        gateway = SimpleNamespace(_stack=SimpleNamespace(pipeline=pipeline))

        async def call() -> None:
            for _ in range(calls):
                await asyncio.sleep(HELD_SECONDS / 2)
                pipeline.refused += 1

        calling = asyncio.create_task(call())
        began_at = asyncio.get_running_loop().time()
        await Gateway._until_no_call_comes(gateway)  # type: ignore[arg-type]
        calling.cancel()
        return asyncio.get_running_loop().time() - began_at

    return virtual.run(play())


def test_grpc_is_stopped_only_when_no_call_comes_any_more() -> None:
    assert waited_seconds(0) == pytest.approx(HELD_SECONDS)
    assert waited_seconds(8) == pytest.approx(5 * HELD_SECONDS, abs=HELD_SECONDS)


def test_callers_that_never_stop_do_not_hold_up_the_stop() -> None:
    assert waited_seconds(10_000) == pytest.approx(MOST_HELD_SECONDS)
