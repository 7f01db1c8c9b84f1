"""Where pictures are decoded: in threads, or where a thread would cost more than it saves, on the event loop.

`decode` says how. Work that nobody waits for any more is skipped.
"""

import asyncio
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from handlers.frame import Array
from model_store.card import InputSize, Preprocess
from service.decode import Limits, decode
from service.errors import DeadlineExceeded
from service.work import Decoded

# The way to a thread and back takes as long as half a small picture where all cores are busy. Only with more cores than
# the event loop keeps busy is that time well spent.
_FEW_THREADS = 2
_SMALL_BYTES = 64 * 1024
_SMALL_PIXELS = 512 * 512  # one or two milliseconds

_BASELINE, _EXTENDED, _CODED_DATA = 0xC0, 0xC1, 0xDA  # JPEG markers
_SEGMENT = struct.Struct(">BBH")  # 0xFF, the marker, the length of what follows the marker
_FRAME_SIDES = struct.Struct(">xHH")  # bits per sample; height, width


class Destination(Protocol):
    """Where decoded pixels should lie. Held as long as a thread may write into it."""

    def allocate(self) -> Array | None:
        """A writable uint8 (height, width, 3) array of the model's input size, None for an ordinary one."""
        ...

    def hold(self) -> None:
        """Keep what `allocate` gives."""
        ...

    def drop(self) -> None:
        """Keep it no longer."""
        ...


class _Anywhere:
    """Pixels may lie in an ordinary array."""

    def allocate(self) -> None:
        return None

    def hold(self) -> None:
        pass

    def drop(self) -> None:
        pass


class Decoder:
    """`decode` in a pool of threads (Pillow and numpy release the GIL for the work that counts).

    With one or two threads, small JPEGs are decoded on the event loop.
    """

    def __init__(self, *, threads: int, limits: Limits) -> None:
        self._limits = limits
        self._few_threads = threads <= _FEW_THREADS
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")

    async def decode(
        self,
        image: bytes,
        *,
        size: InputSize,
        preprocess: Preprocess,
        still_wanted: Callable[[], bool],
        destination: Destination = _Anywhere(),  # noqa: B008 - it has no state
    ) -> Decoded:
        """Decode into `destination`, held until that is done, whatever becomes of the caller.

        `still_wanted` is asked right before the work: work queued for a call that expired meanwhile is skipped with
        `DeadlineExceeded`. Cancelling the caller's task takes queued work off the queue as well.
        """

        def work() -> Decoded:
            if not still_wanted():
                raise DeadlineExceeded("the deadline passed before the picture was decoded")
            return decode(image, size=size, preprocess=preprocess, limits=self._limits, allocate=destination.allocate)

        if self._few_threads and _is_small(image):
            return work()
        loop = asyncio.get_running_loop()
        future = self._pool.submit(work)
        destination.hold()
        try:
            return await asyncio.wrap_future(future)
        finally:
            if future.done():
                destination.drop()
            else:  # cancelled, but the thread is still at it
                future.add_done_callback(lambda _: loop.call_soon_threadsafe(destination.drop))

    def close(self) -> None:
        """Drop queued work and wait for the pictures being decoded."""
        self._pool.shutdown(wait=True, cancel_futures=True)


def _is_small(image: bytes) -> bool:
    """Whether these are the bytes of a JPEG that is decoded at once, by its headers alone.

    Baseline and extended JPEGs are decoded in one pass. A progressive one may have any number of them.
    """
    if len(image) > _SMALL_BYTES or not image.startswith(b"\xff\xd8\xff"):
        return False
    at = 2
    while at + _SEGMENT.size + _FRAME_SIDES.size <= len(image):
        mark, marker, length = _SEGMENT.unpack_from(image, at)
        if mark != 0xFF or marker == _CODED_DATA or length < 2:
            return False
        if marker in (_BASELINE, _EXTENDED):
            height, width = _FRAME_SIDES.unpack_from(image, at + _SEGMENT.size)
            return bool(0 < height * width <= _SMALL_PIXELS)
        at += 2 + length
    return False
