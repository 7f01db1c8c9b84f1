"""Background tasks go on after an exception."""

import asyncio
import logging

import pytest

from service.core.background import PAUSE_SECONDS, keep_running


async def test_a_task_that_fails_is_logged_reported_and_started_again(caplog: pytest.LogCaptureFixture) -> None:
    outcomes: list[Exception | None] = [RuntimeError("first"), OSError("second"), None]
    failed, pauses = list[str](), list[float]()

    async def run() -> None:
        if (outcome := outcomes.pop(0)) is not None:
            raise outcome

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    with caplog.at_level(logging.ERROR):
        await keep_running("health", run, on_failure=failed.append, sleep=sleep)
    assert (outcomes, failed, pauses) == ([], ["health"] * 2, [PAUSE_SECONDS] * 2)
    assert [str(record.exc_info[1]) for record in caplog.records if record.exc_info] == ["first", "second"]


async def test_a_cancelled_task_ends() -> None:
    task = asyncio.create_task(keep_running("health", asyncio.Event().wait, on_failure=print))  # type: ignore[arg-type]
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
