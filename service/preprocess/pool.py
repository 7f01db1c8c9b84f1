"""The pool of decoding threads: encoded pictures in, `Decoded` ones out.

`service.preprocess.image` says how a picture is decoded. A picture whose call has ended is not decoded.

Interactive pictures are decoded before batch-priority ones, and the earliest deadline first. While both wait, every
eighth picture is a batch-priority one. The pool predicts how long a picture would wait, so that a call that would wait
too long is refused at once. Where several callers use the pool, pictures of the same caller that wait count twice in
this prediction, as in `service.batching.admission`: so one caller cannot take all the time of the threads.
"""

import asyncio
import contextlib
import logging
import math
import threading
import time
from bisect import insort
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import count
from typing import Protocol

from handlers.contract.card import InputSize, Preprocess
from handlers.contract.frame import Array
from service.core.call_scope import ANONYMOUS
from service.core.callers import RecentCallers
from service.core.errors import DeadlineExceeded
from service.core.types import Decoded, Priority
from service.preprocess.daemon_threads import DaemonThreads
from service.preprocess.image import decode
from service.preprocess.limits import Limits
from service.preprocess.memory import DecodeBudget
from service.preprocess.small_jpeg import is_small_jpeg

# If all cores are busy, the way to a thread and back takes half as long as decoding a small picture. With at most this
# many threads, small pictures are decoded on the event loop.
_FEW_THREADS = 2
_INTERACTIVE_PER_BATCH = 7  # interactive pictures that are decoded per batch-priority one, while both wait
_GAIN = 0.1  # weight of the newest decoding time in the running mean

_log = logging.getLogger(__name__)


class Destination(Protocol):
    """Memory for the pixels of one picture, valid while it has holders. `service.core.types.Lease` is one."""

    def allocate(self) -> Array | None:
        """A writable uint8 (height, width, 3) array of the model's input size; None for a new array. Any thread."""
        ...

    def acquire(self) -> None:
        """Add a holder. Event loop only."""
        ...

    def release(self) -> None:
        """Remove a holder. Event loop only."""
        ...


class _NewArray:
    """The destination of pixels that may lie anywhere."""

    def allocate(self) -> None:
        return None

    def acquire(self) -> None:
        pass

    def release(self) -> None:
        pass


@dataclass(order=True, slots=True)
class _Waiting:
    deadline_at: float
    number: int  # in the order of arrival
    work: Callable[[], Decoded] = field(compare=False)
    caller: str = field(compare=False)
    future: Future[Decoded] = field(compare=False, default_factory=Future)


class _UrgentFirst:
    """Threads that run the most urgent work first, and a prediction of the wait. Any thread."""

    def __init__(self, threads: int, clock: Callable[[], float]) -> None:
        self._threads = threads
        self._clock = clock
        self._pool = DaemonThreads(threads, "decode")
        self._lock = threading.Lock()
        self._waiting: dict[Priority, list[_Waiting]] = {priority: [] for priority in Priority}
        self._callers = {priority: RecentCallers() for priority in Priority}
        self._numbers = count()
        self._interactive_in_turn = 0  # taken while batch-priority work waited
        self._started_at: dict[int, float] = {}  # by number, readings of the clock
        self._decoding: dict[int, tuple[int, float]] = {}  # by thread: number, start; without waits for memory
        self._mean_seconds: float | None = None

    def submit(self, work: Callable[[], Decoded], priority: Priority, deadline_at: float, caller: str) -> _Waiting:
        waiting = _Waiting(deadline_at, next(self._numbers), work, caller)
        with self._lock:
            insort(self._waiting[priority], waiting)
        self._pool.submit(self._run_next)
        return waiting

    def discard(self, waiting: _Waiting, priority: Priority) -> None:
        """Take work out of the queue, if it still waits."""
        with self._lock:
            if waiting in self._waiting[priority]:
                self._waiting[priority].remove(waiting)

    def wait_seconds(self, priority: Priority, deadline_at: float, caller: str) -> float:
        """Predicted seconds until such work would begin. 0 if a thread is free, and before anything was learned."""
        with self._lock:
            shared = self._callers[priority].note(caller, self._clock())
            interactive, batch = self._waiting[Priority.INTERACTIVE], self._waiting[Priority.BATCH]
            if self._mean_seconds is None or len(self._started_at) + len(interactive) + len(batch) < self._threads:
                return 0.0
            before = [waiting.caller for waiting in self._waiting[priority] if waiting.deadline_at <= deadline_at]
            ahead = len(before)
            own_ahead = before.count(caller) if shared else 0
            if priority is Priority.INTERACTIVE:
                ahead += min(len(batch), (ahead + self._interactive_in_turn) // _INTERACTIVE_PER_BATCH)
            else:
                ahead += min(len(interactive), (ahead + 1) * _INTERACTIVE_PER_BATCH)
            now, mean_seconds = self._clock(), self._mean_seconds
            # Work that is overdue is expected to take as long again as it is overdue.
            remaining = [abs(started_at + mean_seconds - now) for started_at in self._started_at.values()]
        first_seconds = min(remaining) if len(remaining) >= self._threads else 0.0
        return first_seconds + (ahead + own_ahead) * mean_seconds / self._threads

    def running_seconds(self) -> Mapping[int, float]:
        """How long each running work has taken, by number, without waits."""
        with self._lock:
            now = self._clock()
            return {number: now - began_at for number, began_at in self._decoding.values()}

    def wait_for(self, wait: Callable[[], None]) -> None:
        """Call `wait` within running work. The work counts as begun afterwards."""
        thread = threading.get_ident()
        with self._lock:
            number, _ = self._decoding.pop(thread)
        wait()
        with self._lock:
            self._decoding[thread] = number, self._clock()

    def close(self, wait_seconds: float) -> None:
        """Cancel the work that waits, and wait for the work that runs, but not longer than `wait_seconds`."""
        with self._lock:
            dropped = [waiting for queue in self._waiting.values() for waiting in queue]
            for queue in self._waiting.values():
                queue.clear()
        for waiting in dropped:
            waiting.future.cancel()
        if not self._pool.close(wait_seconds):
            _log.warning("a picture is still being decoded after %.0f s; the process ends without it", wait_seconds)

    def _run_next(self) -> None:
        with self._lock:
            waiting = self._take()
            if waiting is None:  # discarded
                return
            started_at = self._started_at[waiting.number] = self._clock()
            self._decoding[threading.get_ident()] = waiting.number, started_at
        try:
            if not waiting.future.set_running_or_notify_cancel():
                return
            try:
                decoded = waiting.work()
            except BaseException as error:  # noqa: BLE001 - the caller gets it
                if not isinstance(error, DeadlineExceeded):  # a broken picture may take long too
                    self._learn(self._clock() - started_at)
                waiting.future.set_exception(error)
            else:
                self._learn(self._clock() - started_at)
                waiting.future.set_result(decoded)
        finally:
            with self._lock:
                del self._started_at[waiting.number]
                self._decoding.pop(threading.get_ident(), None)

    def _take(self) -> _Waiting | None:
        interactive, batch = self._waiting[Priority.INTERACTIVE], self._waiting[Priority.BATCH]
        if not batch:
            return interactive.pop(0) if interactive else None
        if interactive and self._interactive_in_turn < _INTERACTIVE_PER_BATCH:
            self._interactive_in_turn += 1
            return interactive.pop(0)
        self._interactive_in_turn = 0
        return batch.pop(0)

    def _learn(self, seconds: float) -> None:
        with self._lock:
            mean_seconds = seconds if self._mean_seconds is None else self._mean_seconds
            self._mean_seconds = mean_seconds + (seconds - mean_seconds) * _GAIN


class DecodePool:
    """Decodes in `threads` threads. Pillow and numpy release the GIL for most of the work.

    With one or two threads, small JPEGs are decoded on the event loop. `limits` are those of every picture. Threads
    wait for each other where their pictures together would take more than `limits.max_decode_bytes`. Deadlines are
    readings of `clock`.
    """

    def __init__(self, *, threads: int, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._budget = DecodeBudget(limits.max_decode_bytes)
        self._few_threads = threads <= _FEW_THREADS
        self._pool = _UrgentFirst(threads, clock)

    @property
    def reserved_bytes(self) -> int:
        """Memory that decodes have reserved now, in bytes."""
        return self._budget.used_bytes

    def wait_seconds(self, image: bytes, priority: Priority, deadline_at: float, caller: str = ANONYMOUS) -> float:
        """Predicted seconds until `decode` would begin to decode this picture. Event loop only.

        Where several callers use the pool, the caller's pictures that wait count twice.
        """
        wait_seconds = self._pool.wait_seconds(priority, deadline_at, caller)
        return 0.0 if wait_seconds and self._few_threads and is_small_jpeg(image) else wait_seconds

    def running_seconds(self) -> Mapping[int, float]:
        """How long each picture in a thread has been decoded, by number. Waits for memory do not count. Any thread."""
        return self._pool.running_seconds()

    async def decode(
        self,
        image: bytes,
        *,
        size: InputSize,
        preprocess: Preprocess,
        still_wanted: Callable[[], bool],
        priority: Priority = Priority.INTERACTIVE,
        deadline_at: float = math.inf,
        caller: str = ANONYMOUS,
        destination: Destination = _NewArray(),  # noqa: B008 - it has no state
    ) -> Decoded:
        """Decode a picture to an input of `size`, into `destination`.

        The destination is held until the picture is decoded, even if the caller is cancelled. Cancelling the caller
        drops a picture that is not being decoded yet. `still_wanted` is asked right before the work, in a thread.

        Raises:
            DeadlineExceeded: the picture was not wanted any more.
            InvalidImage: the bytes are no picture that can be decoded.
        """

        def check_wanted() -> None:
            if not still_wanted():
                raise DeadlineExceeded("the deadline passed before the picture was decoded")

        def work(reserve: Callable[[int], None]) -> Decoded:
            check_wanted()
            return decode(
                image,
                size=size,
                preprocess=preprocess,
                limits=self._limits,
                allocate=destination.allocate,
                reserve=reserve,
            )

        if self._few_threads and is_small_jpeg(image):
            return work(lambda _bytes: None)  # it takes little memory, and the event loop must not wait

        def work_in_thread() -> Decoded:
            with self._budget.share() as share:

                def reserve(count: int) -> None:
                    self._pool.wait_for(lambda: share.reserve(count))  # for the memory of other decodes
                    check_wanted()

                return work(reserve)

        loop = asyncio.get_running_loop()
        waiting = self._pool.submit(work_in_thread, priority, deadline_at, caller)
        future = waiting.future
        destination.acquire()
        try:
            return await asyncio.wrap_future(future)
        finally:
            if future.cancelled():
                self._pool.discard(waiting, priority)
            if future.done():
                destination.release()
            else:  # cancelled, but the thread is still decoding

                def release(_: Future[Decoded]) -> None:
                    with contextlib.suppress(RuntimeError):  # the server ended before this picture was decoded
                        loop.call_soon_threadsafe(destination.release)

                future.add_done_callback(release)

    def close(self, wait_seconds: float = 5.0) -> None:
        """Drop the pictures that wait, and wait for those that are being decoded, for at most `wait_seconds`."""
        self._pool.close(wait_seconds)
