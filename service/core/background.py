"""Keeps a background task going: an unexpected exception is logged and reported, and the task starts again.

In: a coroutine function that runs for ever. Never catches a cancellation, so tasks end as usual at shutdown.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable

PAUSE_SECONDS = 1.0  # between a failure and the next start, so that a task that always fails does not fill the log

_log = logging.getLogger(__name__)


async def keep_running(
    name: str,
    run: Callable[[], Awaitable[None]],
    *,
    on_failure: Callable[[str], None],
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> None:
    """Await `run()`, and again after each exception, until it returns. `on_failure` is called with `name` each time."""
    while True:
        try:
            await run()
        except Exception:  # noqa: BLE001 - any task, any failure
            _log.exception("the background task %s failed and starts again in %.0f s", name, PAUSE_SECONDS)
            on_failure(name)
            await sleep(PAUSE_SECONDS)
        else:
            return
