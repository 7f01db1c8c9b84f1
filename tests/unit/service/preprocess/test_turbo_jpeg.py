"""Pixels without Pillow are those of Pillow, to the bit, or none."""

import io
import random

import numpy as np
import pytest
from PIL import Image

from handlers.contract.card import InputSize, Preprocess
from service.core.errors import ImageTruncated, InvalidImage
from service.preprocess import jpeg as jpeg_header
from service.preprocess import turbo_jpeg
from service.preprocess.image import decode
from service.preprocess.limits import Limits
from service.preprocess.memory import decode_bytes, plain_jpeg_bytes

LIMITS = Limits(max_bytes=20 * 2**20, max_pixels=50_000_000)
TWO_TAPS = Preprocess(mode="squash", antialias=False)
SIZE = InputSize(height=64, width=96)
SIDES = [(1, 1), (7, 3), (8, 8), (17, 33), (255, 256), (300, 200)]


def photograph(width: int, height: int, mode: str = "RGB", seed: int = 1) -> Image.Image:
    """Smooth colours with noise, so that neighbouring pixels differ."""
    noise = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    smooth = np.stack([x * 255 / width, y * 255 / height, (x + y) * 255 / (width + height)], -1)
    pixels = np.clip(smooth + noise.normal(0, 20, smooth.shape), 0, 255).astype(np.uint8)
    return Image.fromarray(pixels).convert(mode)


def encoded(picture: Image.Image, **options: object) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "JPEG", **options)
    return stream.getvalue()


def by_pillow(jpeg: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(jpeg)) as picture:
        return np.asarray(picture)


def without_pillow(jpeg: bytes) -> np.ndarray | None:
    with Image.open(io.BytesIO(jpeg)) as picture:
        return turbo_jpeg.pixels(jpeg, width=picture.width, height=picture.height, grey=picture.mode == "L")


@pytest.mark.parametrize("side", SIDES, ids=lambda side: f"{side[0]}x{side[1]}")
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"subsampling": "4:4:4", "quality": 95},
        {"subsampling": "4:2:2", "quality": 30},
        {"subsampling": "4:1:1"},
        {"progressive": True},
        {"progressive": True, "subsampling": "4:4:4", "quality": 90},
        {"restart_marker_blocks": 2},
        {"optimize": True, "quality": 5},
        {"keep_rgb": True},
        {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0"},
    ],
    ids=repr,
)
def test_pixels_of_colours_are_those_of_pillow(side, options):
    jpeg = encoded(photograph(*side), **options)
    found = without_pillow(jpeg)
    assert found is not None
    assert np.array_equal(found, by_pillow(jpeg))


@pytest.mark.parametrize("side", SIDES, ids=lambda side: f"{side[0]}x{side[1]}")
@pytest.mark.parametrize("progressive", [False, True])
def test_pixels_of_greys_are_those_of_pillow(side, progressive):
    jpeg = encoded(photograph(*side, "L"), progressive=progressive)
    found = without_pillow(jpeg)
    assert found is not None
    assert found.shape == side[::-1]
    assert np.array_equal(found, by_pillow(jpeg))


def test_another_size_than_stated_is_not_decoded():
    jpeg = encoded(photograph(64, 48))
    assert turbo_jpeg.pixels(jpeg, width=48, height=64, grey=False) is None
    assert turbo_jpeg.pixels(jpeg, width=8, height=8, grey=False) is None


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9, 0.99])
def test_missing_data_is_left_to_pillow(share, progressive):
    jpeg = encoded(photograph(120, 80), progressive=progressive)
    cut = jpeg[: int(len(jpeg) * share)]
    assert without_pillow(cut) is None
    with pytest.raises(ImageTruncated):
        decode(cut, size=SIZE, preprocess=TWO_TAPS, limits=LIMITS)


def outcome(jpeg: bytes) -> object:
    """The pixels of the input as bytes, or the class of the error."""
    try:
        return decode(jpeg, size=SIZE, preprocess=TWO_TAPS, limits=LIMITS).pixels.tobytes()
    except InvalidImage as error:
        return type(error)


@pytest.mark.parametrize("progressive", [False, True])
def test_damaged_pictures_have_the_outcome_that_pillow_gives_them(progressive, monkeypatch):
    chance = random.Random(7)
    whole = encoded(photograph(90, 70), progressive=progressive)
    damaged = []
    for number in range(300):
        jpeg = bytearray(whole)
        end = 700 if number % 2 else len(jpeg)  # half of them in the header
        for _ in range(chance.choice([1, 1, 2, 5])):
            jpeg[chance.randrange(2, end)] = chance.randrange(256)
        damaged.append(bytes(jpeg))
    here = [outcome(jpeg) for jpeg in damaged]
    with monkeypatch.context() as patched:
        patched.setattr(turbo_jpeg, "pixels", lambda *_, **__: None)
        patched.setattr(jpeg_header, "plain", lambda _: None)
        assert here == [outcome(jpeg) for jpeg in damaged]
    assert len({one for one in here if isinstance(one, bytes)}) > 5, "too few of them are still pictures"


def test_usual_pictures_are_decoded_without_pillow(monkeypatch):
    jpeg = encoded(photograph(90, 70))
    asked = []
    monkeypatch.setattr(turbo_jpeg, "pixels", lambda *_, **sides: asked.append(sides))
    decode(jpeg, size=SIZE, preprocess=TWO_TAPS, limits=LIMITS)
    assert asked == [{"width": 90, "height": 70, "grey": False}]


@pytest.mark.parametrize(
    ("options", "mode", "preprocess"),
    [
        ({}, "CMYK", TWO_TAPS),
        ({"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"}, "RGB", TWO_TAPS),
        ({}, "RGB", Preprocess(mode="squash")),
        ({}, "RGB", Preprocess(mode="squash", antialias=False, reduced_decoding=True)),
    ],
    ids=["CMYK", "turned", "Pillow resizes", "at a fraction of its size"],
)
def test_other_pictures_are_decoded_by_pillow(options, mode, preprocess, monkeypatch):
    jpeg = encoded(photograph(500, 400, mode), **options)
    monkeypatch.setattr(turbo_jpeg, "pixels", lambda *_, **__: pytest.fail("decoded without Pillow"))
    decode(jpeg, size=SIZE, preprocess=preprocess, limits=LIMITS)


@pytest.mark.parametrize("as_array", [False, True])
@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"progressive": True, "subsampling": "4:2:2"}], ids=str)
def test_a_plain_header_says_what_pillow_says(options, mode, as_array):
    jpeg = encoded(photograph(90, 70, mode), **options)
    header = jpeg_header.plain(jpeg)
    with Image.open(io.BytesIO(jpeg)) as picture:
        assert header is not None
        assert (header.width_px, header.height_px) == picture.size
        scans = jpeg.count(b"\xff\xda")
        expected = decode_bytes(
            picture, full_px=6300, scans=scans, rotated=False, as_array=as_array, composited=False, target=(96, 64)
        )
    found = plain_jpeg_bytes((90, 70), header.factors, scans=scans, as_array=as_array, target=(96, 64))
    assert found == expected


@pytest.mark.parametrize(
    "options", [{"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0"}, {"keep_rgb": True}, {"icc_profile": b"x" * 20}], ids=str
)
def test_other_headers_are_not_plain(options):
    assert jpeg_header.plain(encoded(photograph(64, 48), **options)) is None


@pytest.mark.parametrize("damage", [b"\xff\xff", b"\xff\xdb\x00\x01", b"\xff\xe0\x00\x04ab", b"\xff\xc3\x00\x04ab"])
def test_an_odd_header_is_not_plain(damage):
    jpeg = encoded(photograph(64, 48))
    assert jpeg_header.plain(jpeg) is not None
    assert jpeg_header.plain(jpeg[:2] + damage + jpeg[2:]) is None


def test_a_header_with_two_frames_is_not_plain():
    jpeg = encoded(photograph(64, 48))
    frame = jpeg.index(b"\xff\xc0")
    assert jpeg_header.plain(jpeg[:frame] + jpeg[frame : frame + 19] + jpeg[frame:]) is None


def test_memory_is_reserved_once_if_pillow_has_to_decode(monkeypatch):
    monkeypatch.setattr(turbo_jpeg, "pixels", lambda *_, **__: None)
    reserved = []
    decode(encoded(photograph(90, 70)), size=SIZE, preprocess=TWO_TAPS, limits=LIMITS, reserve=reserved.append)
    assert len(reserved) == 1


def test_a_picture_of_the_right_size_is_not_resized():
    jpeg = encoded(photograph(96, 64))
    squash = Preprocess(mode="squash", interpolation="bicubic")
    here = decode(jpeg, size=SIZE, preprocess=squash, limits=LIMITS)
    assert np.array_equal(here.pixels, by_pillow(jpeg))
    grey = decode(encoded(photograph(96, 64, "L")), size=SIZE, preprocess=squash, limits=LIMITS)
    assert np.array_equal(grey.pixels[..., 0], by_pillow(encoded(photograph(96, 64, "L"))))
