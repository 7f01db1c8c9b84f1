"""DecodePool: threads, and what is decoded without one."""

import asyncio
import struct
import threading

import numpy as np
import picture_files
import pytest

from handlers.contract.card import InputSize, Preprocess
from service.core.errors import DeadlineExceeded, InvalidImage
from service.core.types import Priority
from service.preprocess.image import decode
from service.preprocess.limits import Limits
from service.preprocess.memory import DecodeBudget
from service.preprocess.pool import DecodePool

LIMITS = Limits(max_bytes=20 * 2**20, max_pixels=150_000_000)
SIZE = InputSize(height=96, width=128)
SQUASH = Preprocess(mode="squash")


class WhoAllocates:
    """A destination that remembers the thread that asked it for a place."""

    def __init__(self):
        self.thread = None

    def allocate(self):
        self.thread = threading.current_thread()

    def acquire(self):
        pass

    def release(self):
        pass


async def thread_that_decodes(image: bytes, *, threads: int):
    decoder, destination = DecodePool(threads=threads, limits=LIMITS), WhoAllocates()
    try:
        result = await decoder.decode(
            image, size=SIZE, preprocess=SQUASH, still_wanted=lambda: True, destination=destination
        )
        np.testing.assert_array_equal(result.pixels, decode(image, size=SIZE, preprocess=SQUASH, limits=LIMITS).pixels)
    finally:
        decoder.close()
    return destination.thread


async def test_a_small_jpeg_needs_no_thread_where_cores_are_few():
    image = picture_files.PICTURES["jpeg"]
    assert await thread_that_decodes(image, threads=2) is threading.current_thread()
    assert await thread_that_decodes(image, threads=3) is not threading.current_thread()


@pytest.mark.parametrize("name", ["jpeg progressive", "png", "webp", "gif", "bmp", "tiff"])
async def test_what_may_take_long_is_decoded_in_a_thread(name):
    assert await thread_that_decodes(picture_files.PICTURES[name], threads=1) is not threading.current_thread()


async def test_a_baseline_jpeg_of_many_scans_is_decoded_in_a_thread():
    image = picture_files.PICTURES["jpeg"]
    image = image[:2] + b"\xff\xfe\x00\x0c" + b"\xff\xda" * 5 + image[2:]  # a comment: any place counts
    assert await thread_that_decodes(image, threads=1) is not threading.current_thread()


def test_threads_wait_for_the_memory_of_others():
    budget, order = DecodeBudget(100), []

    def work(name: str, count: int) -> None:
        with budget.share() as share:
            share.reserve(count)
            order.append(name)

    with budget.share() as share:
        share.reserve(60)
        threads = []
        for name, count in (("large", 80), ("small", 10)):
            threads.append(threading.Thread(target=work, args=(name, count)))
            threads[-1].start()
            threads[-1].join(0.1)
        assert order == []  # the small one does not overtake
    for thread in threads:
        thread.join(5)
    assert order == ["large", "small"]


async def test_a_jpeg_of_many_segments_is_decoded_in_a_thread():
    image = picture_files.PICTURES["jpeg"]
    image = image[:2] + b"\xff\xe5\x00\x02" * 200 + image[2:]
    assert await thread_that_decodes(image, threads=1) is not threading.current_thread()


async def test_many_pixels_in_few_bytes_are_decoded_in_a_thread():
    image = picture_files.encoded(picture_files.Image.new("RGB", (2000, 1500)), "JPEG")
    assert len(image) < 64 * 1024
    assert await thread_that_decodes(image, threads=1) is not threading.current_thread()


async def test_a_broken_small_jpeg_is_refused_like_any_other():
    image = picture_files.PICTURES["jpeg"]
    frame = image.index(b"\xff\xc0")
    no_pixels = image[: frame + 5] + struct.pack(">HH", 0, 0) + image[frame + 9 :]
    decoder = DecodePool(threads=1, limits=LIMITS)
    try:
        for broken in (image[:3], image[:30], image[: len(image) // 2], no_pixels, image[:2] + b"\xff\xe0\0\0"):
            with pytest.raises(InvalidImage):
                await decoder.decode(broken, size=SIZE, preprocess=SQUASH, still_wanted=lambda: True)
        with pytest.raises(DeadlineExceeded):
            await decoder.decode(image, size=SIZE, preprocess=SQUASH, still_wanted=lambda: False)
    finally:
        decoder.close()


async def test_decodes_in_a_thread():
    decoder = DecodePool(threads=2, limits=LIMITS)
    try:
        result = await decoder.decode(
            picture_files.PICTURES["png"], size=SIZE, preprocess=SQUASH, still_wanted=lambda: True
        )
        assert result.pixels.shape == (96, 128, 3)
        with pytest.raises(InvalidImage):
            await decoder.decode(b"no picture", size=SIZE, preprocess=SQUASH, still_wanted=lambda: True)
    finally:
        decoder.close()


async def test_a_destination_is_held_until_the_thread_is_done_with_it():
    class Destination:
        def __init__(self):
            self.entered, self.gate, self.dropped = threading.Event(), threading.Event(), asyncio.Event()

        def allocate(self):
            self.entered.set()
            self.gate.wait(60)

        def acquire(self):
            self.held = True

        def release(self):
            self.dropped.set()

    decoder, destination = DecodePool(threads=1, limits=LIMITS), Destination()
    try:
        asked = asyncio.create_task(
            decoder.decode(
                picture_files.PICTURES["png"],
                size=SIZE,
                preprocess=SQUASH,
                still_wanted=lambda: True,
                destination=destination,
            )
        )
        await asyncio.to_thread(destination.entered.wait, 60)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        assert destination.held
        assert not destination.dropped.is_set()
        destination.gate.set()
        await asyncio.wait_for(destination.dropped.wait(), 60)
    finally:
        destination.gate.set()
        decoder.close()


async def test_queued_work_that_nobody_wants_is_skipped():
    decoder = DecodePool(threads=1, limits=LIMITS)
    entered, gate = threading.Event(), threading.Event()

    def slow() -> bool:
        entered.set()
        return gate.wait(60)

    def ask(still_wanted):
        coroutine = decoder.decode(
            picture_files.PICTURES["png"], size=SIZE, preprocess=SQUASH, still_wanted=still_wanted
        )
        return asyncio.create_task(coroutine)

    asked = []
    try:
        first = ask(slow)
        await asyncio.to_thread(entered.wait, 60)
        expired = ask(lambda: False)
        cancelled = ask(lambda: asked.append("cancelled") or True)
        await asyncio.sleep(0)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        gate.set()
        assert (await first).format == "PNG"
        with pytest.raises(DeadlineExceeded):
            await expired
        assert asked == []  # it left the queue without being looked at
    finally:
        gate.set()
        decoder.close()


class Backlog:
    """A pool of one thread that is busy until `gate` is set. `order` lists the pictures as they are decoded.

    By its clock, decoding a picture takes 0.01 s. `now` is the clock's reading.
    """

    def __init__(self):
        self.now = 0.0
        self.decoder = DecodePool(threads=1, limits=LIMITS, clock=lambda: self.now)
        self.entered, self.gate, self.order = threading.Event(), threading.Event(), []
        self.calls = []

    async def __aenter__(self):
        await self.decode("lesson")
        self.call("running", before=lambda: self.entered.set() or self.gate.wait(60))
        await asyncio.to_thread(self.entered.wait, 60)
        return self

    async def __aexit__(self, *exc):
        self.gate.set()
        await asyncio.gather(*self.calls, return_exceptions=True)
        self.decoder.close()

    async def decode(self, name, *, priority=Priority.INTERACTIVE, deadline=100.0, before=lambda: None, caller=""):
        def still_wanted():
            before()
            if name not in self.order:  # asked again after the wait for memory
                self.order.append(name)
                self.now += 0.01
            return True

        await self.decoder.decode(
            picture_files.PICTURES["png"],
            size=SIZE,
            preprocess=SQUASH,
            still_wanted=still_wanted,
            priority=priority,
            deadline_at=deadline,
            caller=caller,
        )

    def call(self, name, **options):
        self.calls.append(asyncio.create_task(self.decode(name, **options)))
        return self.calls[-1]

    def wait_seconds(self, priority, deadline=100.0, caller=""):
        return self.decoder.wait_seconds(picture_files.PICTURES["png"], priority, deadline, caller)


async def test_interactive_pictures_and_early_deadlines_are_decoded_first():
    async with Backlog() as backlog:
        for place in range(20):
            backlog.call(f"bulk {place}", priority=Priority.BATCH)
        backlog.call("late", deadline=9.0)
        backlog.call("early", deadline=5.0)
        await asyncio.sleep(0)
        backlog.gate.set()
        await asyncio.gather(*backlog.calls)
        assert backlog.order[:5] == ["lesson", "running", "early", "late", "bulk 0"]


async def test_batch_priority_keeps_an_eighth_of_the_decoding():
    async with Backlog() as backlog:
        backlog.call("bulk", priority=Priority.BATCH)
        for place in range(20):
            backlog.call(f"interactive {place}")
        await asyncio.sleep(0)
        backlog.gate.set()
        await asyncio.gather(*backlog.calls)
        assert backlog.order.index("bulk") == 2 + 7


async def test_the_wait_counts_what_is_decoded_before():
    async with Backlog() as backlog:
        running_seconds = backlog.wait_seconds(Priority.INTERACTIVE)
        bulk = [backlog.call("bulk", priority=Priority.BATCH) for _ in range(200)]
        await asyncio.sleep(0)
        assert backlog.wait_seconds(Priority.BATCH) == pytest.approx(running_seconds + 200 * 0.01)
        assert backlog.wait_seconds(Priority.INTERACTIVE) == running_seconds
        for call in bulk:
            call.cancel()
        await asyncio.gather(*bulk, return_exceptions=True)
        assert backlog.wait_seconds(Priority.BATCH) == running_seconds
    free = DecodePool(threads=1, limits=LIMITS)
    assert free.wait_seconds(b"", Priority.INTERACTIVE, 1.0) == 0.0
    free.close()


async def test_own_pictures_that_wait_count_twice_where_callers_share_the_pool():
    async with Backlog() as backlog:
        for place in range(10):
            backlog.call(f"flood {place}", caller="flood")
        await asyncio.sleep(0)
        alone = backlog.wait_seconds(Priority.INTERACTIVE, caller="flood")
        assert alone == pytest.approx(backlog.wait_seconds(Priority.INTERACTIVE, caller="modest"))
        assert backlog.wait_seconds(Priority.INTERACTIVE, caller="flood") == pytest.approx(alone + 10 * 0.01)
        assert backlog.wait_seconds(Priority.INTERACTIVE, caller="modest") == pytest.approx(alone)


async def test_work_that_is_overdue_is_expected_to_take_as_long_again():
    async with Backlog() as backlog:
        assert backlog.wait_seconds(Priority.INTERACTIVE) <= 0.01
        backlog.now += 0.3
        assert backlog.wait_seconds(Priority.INTERACTIVE) == pytest.approx(0.3, abs=0.02)


async def test_close_ends_the_calls_that_wait():
    async with Backlog() as backlog:
        waiting = backlog.call("waiting")
        await asyncio.sleep(0)
        closing = asyncio.create_task(asyncio.to_thread(backlog.decoder.close))
        with pytest.raises(asyncio.CancelledError):
            await waiting
        backlog.gate.set()
        await closing
    assert "waiting" not in backlog.order


async def test_the_time_of_a_running_decode_is_known_and_close_does_not_wait_for_ever():
    async with Backlog() as backlog:
        running = backlog.decoder.running_seconds
        backlog.now += 61.0
        assert list(running().values()) == [pytest.approx(61.0, abs=0.1)]
        backlog.decoder.close(wait_seconds=0.0)
        assert len(running()) == 1, "it still runs"
        backlog.gate.set()
        await asyncio.gather(*backlog.calls)
        await asyncio.to_thread(backlog.decoder.close)
        assert running() == {}


async def test_the_wait_for_memory_is_no_decoding_time(monkeypatch):
    now, asked, gate = 0.0, threading.Event(), threading.Event()

    def reserve(share, count):
        asked.set()
        gate.wait(60)

    monkeypatch.setattr("service.preprocess.memory.Share.reserve", reserve)
    decoder = DecodePool(threads=1, limits=LIMITS, clock=lambda: now)
    destination = WhoAllocates()
    held = threading.Event()
    destination.allocate = lambda: held.wait(60) and None
    decoding = asyncio.create_task(
        decoder.decode(
            picture_files.PICTURES["png"],
            size=SIZE,
            preprocess=SQUASH,
            still_wanted=lambda: True,
            destination=destination,
        )
    )
    await asyncio.to_thread(asked.wait, 60)
    now = 100.0
    assert decoder.running_seconds() == {}
    gate.set()
    while not decoder.running_seconds():
        await asyncio.sleep(0.001)
    now = 103.0
    assert list(decoder.running_seconds().values()) == [3.0]
    held.set()
    await decoding
    decoder.close()
