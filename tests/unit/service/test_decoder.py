"""Decoder: threads, and what is decoded without one."""

import asyncio
import struct
import threading

import numpy as np
import picture_files
import pytest

from model_store.card import InputSize, Preprocess
from service.decode import Limits, decode
from service.decoder import Decoder
from service.errors import DeadlineExceeded, InvalidImage

LIMITS = Limits(max_bytes=20 * 2**20, max_pixels=150_000_000)
SIZE = InputSize(height=96, width=128)
SQUASH = Preprocess(mode="squash")


class WhoAllocates:
    """A destination that remembers the thread that asked it for a place."""

    def __init__(self):
        self.thread = None

    def allocate(self):
        self.thread = threading.current_thread()

    def hold(self):
        pass

    def drop(self):
        pass


async def thread_that_decodes(image: bytes, *, threads: int):
    decoder, destination = Decoder(threads=threads, limits=LIMITS), WhoAllocates()
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


async def test_many_pixels_in_few_bytes_are_decoded_in_a_thread():
    image = picture_files.encoded(picture_files.Image.new("RGB", (2000, 1500)), "JPEG")
    assert len(image) < 64 * 1024
    assert await thread_that_decodes(image, threads=1) is not threading.current_thread()


async def test_a_broken_small_jpeg_is_refused_like_any_other():
    image = picture_files.PICTURES["jpeg"]
    frame = image.index(b"\xff\xc0")
    no_pixels = image[: frame + 5] + struct.pack(">HH", 0, 0) + image[frame + 9 :]
    decoder = Decoder(threads=1, limits=LIMITS)
    try:
        for broken in (image[:3], image[:30], image[: len(image) // 2], no_pixels, image[:2] + b"\xff\xe0\0\0"):
            with pytest.raises(InvalidImage):
                await decoder.decode(broken, size=SIZE, preprocess=SQUASH, still_wanted=lambda: True)
        with pytest.raises(DeadlineExceeded):
            await decoder.decode(image, size=SIZE, preprocess=SQUASH, still_wanted=lambda: False)
    finally:
        decoder.close()


async def test_decodes_in_a_thread():
    decoder = Decoder(threads=2, limits=LIMITS)
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

        def hold(self):
            self.held = True

        def drop(self):
            self.dropped.set()

    decoder, destination = Decoder(threads=1, limits=LIMITS), Destination()
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
    decoder = Decoder(threads=1, limits=LIMITS)
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
