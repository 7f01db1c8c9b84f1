"""Pictures made to take much memory or time are refused before they are decoded."""

import struct
import subprocess
import sys
import time
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import picture_files
import pytest
from PIL import Image

from handlers.contract.card import InputSize, Preprocess
from service.core.errors import ImageCorrupt, ImageFormatUnsupported, ImageTooManyPixels, ImageTruncated
from service.preprocess.image import decode
from service.preprocess.limits import Limits

LIMITS = Limits(max_bytes=20 * 2**20, max_pixels=150_000_000)
SIZE = InputSize(height=96, width=128)
SQUASH = Preprocess(mode="squash")


def decoded(data: bytes, limits: Limits = LIMITS):
    return decode(data, size=SIZE, preprocess=SQUASH, limits=limits)


def tiled_tiff(side_px: int, tile_px: int) -> bytes:
    """A TIFF of one tile that is larger than the picture."""
    entries = [(256, side_px), (257, side_px), (258, 8), (259, 8), (262, 1), (277, 1), (322, tile_px), (323, tile_px),
               (324, 138), (325, 20)]  # fmt: skip
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + directory + bytes(4) + bytes(4) + zlib.compress(bytes(999))


def strips_over_the_same_bytes(strips: int) -> bytes:
    """A TIFF whose strips of one row are all the whole file. Fill order 2: libtiff reverses the bits."""
    after = 8 + 2 + 10 * 12 + 4
    total = after + 8 * strips
    entries = [(256, 1, 16), (257, 1, strips), (258, 1, 8), (259, 1, 32773), (262, 1, 1), (266, 1, 2),
               (273, strips, after), (277, 1, 1), (278, 1, 1), (279, strips, after + 4 * strips)]  # fmt: skip
    directory = b"".join(struct.pack("<HHII", tag, 4, number, value) for tag, number, value in entries)
    head = b"II*\0" + struct.pack("<IH", 8, len(entries)) + directory + bytes(4)
    return head + struct.pack("<I", 0) * strips + struct.pack("<I", total) * strips


def tiles_of_one_lump(samples: int, bits: int) -> bytes:
    """A TIFF of 64 tiles of 256 x 22,000 pixels over the same bytes, which deflate packs a thousand times."""
    tiles = 64
    lump = zlib.compress(bytes(256 * 22_000 * samples * bits // 8)) + bytes(2**19)
    after = 8 + 2 + 12 * 12 + 4 + len(lump)
    entries = [(256, 1, 16_384), (257, 1, 61), (258, samples, after), (259, 1, 8), (262, 1, 2), (277, 1, samples),
               (284, 1, 1), (322, 1, 256), (323, 1, 22_000), (324, tiles, after + 4 * samples),
               (325, tiles, after + 4 * samples + 4 * tiles), (338, 1, 2)]  # fmt: skip
    directory = b"".join(struct.pack("<HHII", tag, 4, number, value) for tag, number, value in entries)
    head = b"II*\0" + struct.pack("<IH", 8, len(entries)) + directory + bytes(4)
    arrays = struct.pack("<I", bits) * samples + struct.pack("<I", len(head)) * tiles
    return head + lump + arrays + struct.pack("<I", len(lump) - 2**19) * tiles


HUNGRY = {  # pictures of 16 million pixels that take much memory per pixel to decode
    "float tiff": lambda: picture_files.encoded(Image.new("F", (4000, 4000)), "TIFF", compression="tiff_adobe_deflate"),
    "webp": lambda: picture_files.encoded(Image.new("RGB", (4000, 4000)), "WEBP"),
    "png 16-bit": lambda: picture_files.encoded(Image.new("I;16", (4000, 4000)), "PNG"),
    "png rgba": lambda: picture_files.encoded(Image.new("RGBA", (4000, 4000)), "PNG"),
    "rgb float tiff": lambda: picture_files.tiff(np.zeros((1000, 1000, 3), np.float32), photometric=2),
    "jpeg": lambda: picture_files.encoded(Image.new("RGB", (4000, 4000)), "JPEG", subsampling=0),
    "jpeg progressive": lambda: picture_files.encoded(
        Image.new("RGB", (4000, 4000)), "JPEG", progressive=True, subsampling=0
    ),
}


@pytest.mark.parametrize("name", HUNGRY)
def test_memory_of_a_decode_is_known_before_it_and_limited(name):
    image, reserved = HUNGRY[name](), []
    script = """
import resource, sys
from test_hostile_pictures import *
image = sys.stdin.buffer.read()
decoded(picture_files.PICTURES["png"])
before = int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
decoded(image, limits=replace(LIMITS, max_decode_bytes=2**30))
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(int(peak.split()[1]) * 1024 - before)
"""
    paths = [str(Path(__file__).parent), *sys.path]
    child = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {paths!r}\n{script}"], input=image, capture_output=True,
        check=True,
    )  # fmt: skip
    used = int(child.stdout)
    limits = replace(LIMITS, max_decode_bytes=2**30)
    decode(image, size=SIZE, preprocess=SQUASH, limits=limits, reserve=reserved.append)
    assert len(reserved) == 1
    assert used < reserved[0] + 8 * 2**20
    # A TIFF without compression is no bomb: it takes a few times its own bytes.
    assert reserved[0] < max(20 * 4000 * 4000, 4 * len(image))
    with pytest.raises(ImageTooManyPixels) as raised:
        decoded(image, limits=replace(LIMITS, max_decode_bytes=reserved[0] - 1))
    assert raised.value.metadata["limit_decode_bytes"] == str(reserved[0] - 1)


def test_a_tile_larger_than_its_picture_counts_whole():
    with pytest.raises(ImageTooManyPixels):
        decoded(tiled_tiff(16, 16384))


def test_formats_that_are_not_accepted_are_refused():
    limits = replace(LIMITS, formats=("JPEG", "PNG"))
    decoded(picture_files.PICTURES["png"], limits=limits)
    with pytest.raises(ImageFormatUnsupported) as raised:
        decoded(picture_files.PICTURES["tiff"], limits=limits)
    assert raised.value.metadata == {"supported_formats": "JPEG,PNG"}


def baseline_of_many_scans(side_px: int, scans: int) -> bytes:
    """A baseline JPEG of three colours, each in scans of its own."""
    gray = picture_files.encoded(Image.new("L", (64, 64)), "JPEG")
    frame, scan = gray.index(b"\xff\xc0"), gray.index(b"\xff\xda")
    tables, between, coded = gray[2:frame], gray[frame + 13 : scan], gray[scan + 10 : -2]
    components = b"".join(bytes([colour, 0x11, 0]) for colour in (1, 2, 3))
    sides = b"\xff\xc0" + struct.pack(">HBHHB", 17, 8, side_px, side_px, 3) + components
    passes = (bytes([0xFF, 0xDA, 0, 8, 1, 1 + number % 3, 0, 0, 63, 0]) + coded for number in range(scans))
    return gray[:2] + tables + sides + between + b"".join(passes) + b"\xff\xd9"


def bmp_of_run_lengths(side_px: int) -> bytes:
    header = struct.pack("<IiiHHIIiiII", 40, side_px, side_px, 1, 8, 1, 0, 0, 0, 256, 0)
    data = b"\x01\x01\x00\x00" * side_px  # a pixel, then the end of the line: Pillow fills it up in Python
    return b"BM" + struct.pack("<IHHI", 0, 0, 0, 14 + 40 + 1024) + header + bytes(1024) + data


def png_of_texts(count: int) -> bytes:
    """A PNG whose texts and profiles unpack to a MiB each."""
    packed = zlib.compress(bytes(2**20 - 1))
    parts = [picture_files.PICTURES["png"][:33]]
    for number in range(count):
        kind, body = ((b"zTXt", b"text"), (b"iCCP", b"icc"), (b"zTXt", b"Raw profile type exif"))[number % 3]
        body += b"\0\0" + packed
        parts.append(struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)))
    return b"".join([*parts, picture_files.PICTURES["png"][33:]])


def test_texts_and_profiles_of_a_png_are_not_unpacked(monkeypatch):
    unpacked = []
    real = zlib.decompressobj

    class Counted:
        def __init__(self) -> None:
            self._inner = real()

        def __getattr__(self, name: str) -> object:
            unpacked.append(name)
            return getattr(self._inner, name)

    monkeypatch.setattr(zlib, "decompressobj", Counted)
    assert decoded(png_of_texts(900)).geometry.width_px == 64
    assert len(unpacked) <= 4  # one text that may hold the orientation


def test_a_tiff_of_floats_is_limited_by_its_header():
    image = picture_files.tiff(np.zeros((100, 100, 3), np.float32), photometric=2)
    for side, reason in ((60_000, "IMAGE_TOO_MANY_PIXELS"), (12_000, "IMAGE_TRUNCATED")):
        at = image.index(struct.pack("<HHII", 256, 4, 1, 100))
        huge = bytearray(image)
        struct.pack_into("<I", huge, at + 8, side)
        struct.pack_into("<I", huge, at + 20, side)
        with pytest.raises((ImageTooManyPixels, ImageCorrupt, ImageTruncated)) as raised:
            decoded(bytes(huge))
        assert raised.value.reason in (reason, "IMAGE_TOO_MANY_PIXELS", "IMAGE_CORRUPT")  # the last: too many strips


def test_a_tiff_of_floats_cannot_state_two_sizes():
    image = picture_files.tiff(np.zeros((100, 100, 3), np.float32), photometric=2)
    decoded(image)
    twice = image.replace(struct.pack("<HHI", 274, 3, 1), struct.pack("<HHI", 257, 4, 1))  # the orientation
    assert twice != image
    with pytest.raises(ImageCorrupt):
        decoded(twice)


BOMBS = {
    "baseline jpeg of many scans": lambda: baseline_of_many_scans(8000, 1000),
    "small baseline jpeg of very many scans": lambda: baseline_of_many_scans(64, 20_000),
    "tiff strips over the same bytes": lambda: strips_over_the_same_bytes(16_000),
    "tiff tiles of many bytes": lambda: tiles_of_one_lump(4, 16),
    "bmp of run lengths": lambda: bmp_of_run_lengths(8000),
}


@pytest.mark.parametrize("name", BOMBS)
def test_pictures_that_take_long_to_decode_are_refused_at_once(name):
    image = BOMBS[name]()
    started = time.perf_counter()
    with pytest.raises(ImageCorrupt, match=r"scans|blocks|run lengths"):
        decoded(image)
    assert time.perf_counter() - started < 0.5


def test_a_baseline_jpeg_of_three_scans_is_read():
    assert decoded(baseline_of_many_scans(64, 3)).geometry.width_px == 64
