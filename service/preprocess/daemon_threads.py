"""Threads that never keep a process from ending: work in, run in the order of arrival.

The threads of `concurrent.futures` are joined when the interpreter exits. So a picture that is decoded for ever would
keep a server from ending. Never returns results: the work does that itself.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable

_log = logging.getLogger(__name__)


class DaemonThreads:
    """At most `count` daemon threads, started at need. Any thread may call the methods."""

    def __init__(self, count: int, name: str) -> None:
        self._count = count
        self._name = name
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []

    def submit(self, work: Callable[[], None]) -> None:
        """Run `work` in one of the threads. An exception is logged."""
        self._work.put(work)
        with self._lock:
            if len(self._threads) < self._count:
                name = f"{self._name}_{len(self._threads)}"
                self._threads.append(threading.Thread(target=self._run, name=name, daemon=True))
                self._threads[-1].start()

    def close(self, wait_seconds: float) -> bool:
        """Let the threads end after the work that waits. Returns whether all ended within `wait_seconds`."""
        for _ in self._threads:
            self._work.put(None)
        deadline_at = time.monotonic() + wait_seconds
        for thread in self._threads:
            thread.join(max(0.0, deadline_at - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            try:
                work()
            except BaseException:  # noqa: BLE001 - any work, any failure
                _log.exception("a thread %s goes on after an exception", self._name)
