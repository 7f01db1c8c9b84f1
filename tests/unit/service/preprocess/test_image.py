import contextlib
import time
import warnings
import zlib
from dataclasses import replace

import numpy as np
import picture_files
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from handlers.contract.card import InputSize, Preprocess
from service.core.errors import (
    ImageTooManyBytes,
    ImageTooManyPixels,
    InvalidImage,
)
from service.preprocess.formats import SUPPORTED_FORMATS
from service.preprocess.image import decode
from service.preprocess.limits import Limits

# Pillow warns about odd metadata and decodes all the same; `decode` silences that in production.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")

LIMITS = Limits(max_bytes=20 * 2**20, max_pixels=150_000_000)
SIZE = InputSize(height=96, width=128)
SQUASH = Preprocess(mode="squash")
CROP = Preprocess(mode="crop", shorter_side_px=144)
REDUCED = CROP.model_copy(update={"reduced_decoding": True})
OPENCV = Preprocess(mode="squash", antialias=False)


def decoded(data: bytes, size: InputSize = SIZE, preprocess: Preprocess = SQUASH, limits: Limits = LIMITS):
    return decode(data, size=size, preprocess=preprocess, limits=limits)


@pytest.mark.parametrize("preprocess", [SQUASH, CROP, OPENCV], ids=["squash", "crop", "opencv"])
@pytest.mark.parametrize("name", picture_files.PICTURES)
def test_every_kind_of_picture_becomes_the_input(name, preprocess):
    result = decoded(picture_files.PICTURES[name], preprocess=preprocess)
    assert result.pixels.shape == (96, 128, 3)
    assert result.pixels.dtype == np.uint8
    assert result.pixels.flags.c_contiguous
    assert result.format == {"mpo": "JPEG"}.get(name, name.split()[0].upper())


@pytest.mark.parametrize(
    "name",
    [
        "jpeg", "jpeg progressive", "mpo", "png", "png rgba", "png palette", "png palette transparent index",
        "png palette alpha", "png rgb transparent colour", "webp", "webp alpha", "bmp", "gif", "tiff", "tiff lzw",
        "tiff deflate", "tiff jpeg", "tiff two pages", "tiff rgb called grey", "jpeg without end", "jpeg arithmetic",
        "jpeg without half of its end", "png text of 2 MiB", "png international text of 2 MiB", "png profile of 2 MiB",
        "png broken profile",
    ],
)  # fmt: skip
def test_colours_survive(name):
    pixels = decoded(picture_files.PICTURES[name]).pixels
    expected = {(8, 8): (255, 0, 0), (8, 120): (0, 255, 0), (88, 8): (0, 0, 255), (88, 120): (255, 255, 255)}
    for (y, x), colour in expected.items():
        assert np.abs(pixels[y, x].astype(int) - colour).max() <= 3


@pytest.mark.parametrize(
    "name",
    [
        "png 16-bit", "tiff 16-bit", "tiff float 0..1", "tiff float 0..255", "tiff float 0..1e6", "tiff 16-bit rgb",
        "tiff 16-bit rgb called grey", "tiff 16-bit rgb called grey big-endian", "tiff 16-bit alpha",
        "tiff 16-bit alpha big-endian", "tiff 32-bit rgb", "tiff float rgb",
        "tiff float rgb big-endian", "tiff float rgba", "tiff double", "tiff double rgb",
    ],
)  # fmt: skip
def test_deep_samples_are_scaled_not_clipped(name):
    row = decoded(picture_files.PICTURES[name]).pixels[48].astype(int)
    ramp = np.linspace(0, 255, 128)
    assert np.abs(row - ramp[:, None]).max() <= 4
    assert (row[:, 0] == row[:, 1]).all()
    assert (row[:, 0] == row[:, 2]).all()


def test_negative_and_nan_samples_are_black():
    samples = np.array([[np.nan, -5.0], [np.inf, 1.0]], np.float32)
    data = picture_files.encoded(Image.fromarray(samples), "TIFF")
    pixels = decoded(data, InputSize(height=32, width=32), OPENCV).pixels
    assert pixels[0, 0].tolist() == [0, 0, 0]
    assert pixels[-1, -1].tolist() == [255, 255, 255]


def test_cmyk_is_not_inverted():
    pixels = decoded(picture_files.PICTURES["jpeg cmyk adobe"]).pixels.astype(int)
    expected = np.asarray(Image.fromarray(picture_files.gradient()).resize((128, 96), Image.Resampling.BILINEAR))
    assert np.abs(pixels - expected).mean() < 4


@pytest.mark.parametrize("name", ["gif animated", "webp animated"])
def test_first_frame_only(name):
    assert np.abs(decoded(picture_files.PICTURES[name]).pixels.astype(int) - (255, 0, 0)).max() <= 3


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation, file_format):
    result = decoded(picture_files.rotated(orientation, file_format))
    assert (result.geometry.width_px, result.geometry.height_px) == (64, 48)
    upright = decoded(picture_files.rotated(1, file_format)).pixels.astype(int)
    assert np.abs(result.pixels - upright).max() <= 6


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_of_a_tiff_that_pillow_does_not_read(orientation):
    how = picture_files.STORED[orientation]
    stored = picture_files.quadrants() if how is None else picture_files.quadrants().transpose(how)
    samples = np.asarray(stored).astype(np.float32) / 255
    result = decoded(picture_files.tiff(samples, photometric=2, orientation=orientation))
    assert (result.geometry.width_px, result.geometry.height_px) == (64, 48)
    np.testing.assert_array_equal(result.pixels, decoded(picture_files.PICTURES["png"]).pixels)


def test_orientation_in_the_text_of_a_png_is_kept():
    packet = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><r tiff:Orientation="3" xmlns:tiff="t"/></x:xmpmeta>'
    data = picture_files.png_with(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + packet)
    assert decoded(data).pixels[8, 8].tolist() == [255, 255, 255]  # turned by half: bottom right is white


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_of_jpegs_decoded_at_a_fraction(orientation):
    # 1001 x 751 leaves a partial pixel at 1/2: the box must follow the turn.
    data = picture_files.rotated(orientation, size=(1001, 751))
    result = decoded(data, preprocess=REDUCED)
    assert (result.geometry.width_px, result.geometry.height_px) == (1001, 751)
    full = picture_files.quadrants(1001, 751).resize((192, 144), Image.Resampling.BILINEAR)
    expected = np.asarray(full.crop((32, 24, 160, 120))).astype(int)
    assert np.abs(result.pixels - expected).mean() < 1.5


def test_unreadable_exif_does_not_spoil_the_picture():
    data = picture_files.encoded(picture_files.quadrants(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff" + bytes(30))
    assert decoded(data).geometry.width_px == 64


@pytest.mark.parametrize("name", picture_files.BROKEN)
def test_broken_pictures_are_refused_with_their_reason(name):
    data, reason = picture_files.BROKEN[name]
    with pytest.raises(InvalidImage) as raised:
        decoded(data)
    assert raised.value.reason == reason
    assert raised.value.message
    if reason == "IMAGE_FORMAT_UNSUPPORTED":
        assert raised.value.metadata == {"supported_formats": ",".join(SUPPORTED_FORMATS)}


@pytest.mark.parametrize(
    ("name", "guess"),
    [
        ("svg", "SVG"), ("heic", "HEIC"), ("pdf", "PDF"), ("base64", "base64"), ("avif", "AVIF"),
        ("avif of the brand mif1", "AVIF"), ("jpeg of 12 bits", "JPEG of 12 bits per sample"),
        ("jpeg lossless", "lossless JPEG"), ("tiff half floats", r"TIFF of 3 x 16 bits per pixel \(floats"),
        ("tiff of five bands", "TIFF of 5 x 16 bits"), ("tiff float alpha", "TIFF of 2 x 32 bits"),
    ],
)  # fmt: skip
def test_says_what_was_sent_instead(name, guess):
    with pytest.raises(InvalidImage, match=guess):
        decoded(picture_files.BROKEN[name][0])


def test_byte_limit():
    data = picture_files.PICTURES["png"]
    with pytest.raises(ImageTooManyBytes) as raised:
        decoded(data, limits=Limits(max_bytes=len(data) - 1, max_pixels=10**6))
    assert raised.value.metadata == {"limit_bytes": str(len(data) - 1), "actual_bytes": str(len(data))}
    decoded(data, limits=Limits(max_bytes=len(data), max_pixels=10**6))


def test_pixel_limit_comes_from_the_header():
    started = time.perf_counter()
    with pytest.raises(ImageTooManyPixels) as raised:
        decoded(picture_files.png(60000, 50000), limits=replace(LIMITS, max_side_px=60000))
    assert time.perf_counter() - started < 1.0
    assert raised.value.metadata == {"limit_pixels": "150000000", "width": "60000", "height": "50000"}
    limits = Limits(max_bytes=10**6, max_pixels=64 * 48)
    decoded(picture_files.PICTURES["jpeg"], limits=limits)
    with pytest.raises(ImageTooManyPixels):
        decoded(picture_files.PICTURES["jpeg"], limits=Limits(max_bytes=10**6, max_pixels=64 * 48 - 1))


@pytest.mark.parametrize("sides", [(1_000_000, 1), (1, 1_000_000)])
def test_side_limit_comes_from_the_header(sides):
    limits = Limits(max_bytes=10**6, max_pixels=10**8, max_side_px=16_384)
    with pytest.raises(ImageTooManyPixels) as raised:
        decoded(picture_files.png(*sides, data=bytes(4_000_000)), limits=limits)
    assert raised.value.metadata == {"limit_side_px": "16384", "width": str(sides[0]), "height": str(sides[1])}


def test_a_picture_above_pillows_own_limit_is_read_without_warning():
    rows = zlib.compressobj(1)
    width, height = 20_000, 9_100  # 182 million pixels of one bit: above what Pillow calls a bomb
    line = b"\0" + bytes(width // 8)
    data = b"".join([rows.compress(line) for _ in range(height)] + [rows.flush()])
    png = picture_files.png(width, height, data=zlib.decompress(data), bit_depth=1, colour=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = decoded(png, limits=replace(LIMITS, max_pixels=200_000_000, max_side_px=width, max_decode_bytes=2**30))
    assert not result.pixels.any()


def test_broken_tiffs_print_nothing(capfd):
    data = bytearray(picture_files.PICTURES["tiff 1-bit group4"])
    data[8:60] = bytes(value ^ 0x55 for value in data[8:60])
    with contextlib.suppress(InvalidImage):
        decoded(bytes(data))
    with contextlib.suppress(InvalidImage):
        decoded(picture_files.BROKEN["tiff lzw cut"][0])
    assert capfd.readouterr() == ("", "")


def test_no_surprising_global_state():
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


@settings(max_examples=300, deadline=2000, suppress_health_check=[HealthCheck.too_slow])
@given(
    name=st.sampled_from(sorted(n for n in picture_files.PICTURES if "12000" not in n)),
    edits=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=12),
    cut=st.one_of(st.just(1.0), st.floats(0, 1)),
    head_only=st.booleans(),
)
def test_damaged_pictures_never_crash(name, edits, cut, head_only):
    data = bytearray(picture_files.PICTURES[name])
    data = data[: round(len(data) * cut)]
    for place, value in edits if data else ():
        data[int(place * min(len(data), 200 if head_only else len(data)))] = value
    try:
        result = decoded(bytes(data), limits=Limits(max_bytes=10**7, max_pixels=10**7))
    except InvalidImage:
        return
    assert result.pixels.shape == (96, 128, 3)


SIGNATURES = [
    b"",
    b"\xff\xd8\xff",
    b"\x89PNG\r\n\x1a\n",
    b"RIFF\x40\0\0\0WEBPVP8 ",
    b"GIF89a",
    b"II*\0\x08\0\0\0",
    b"BM",
]


@settings(max_examples=200, deadline=2000)
@given(signature=st.sampled_from(SIGNATURES), rest=st.binary(max_size=400))
def test_random_bytes_never_crash(signature, rest):
    with contextlib.suppress(InvalidImage):
        decoded(signature + rest, limits=Limits(max_bytes=10**7, max_pixels=10**7))


def test_pixels_are_put_where_the_caller_wants_them():
    for size, preprocess in ((SIZE, SQUASH), (InputSize(height=400, width=416), CROP)):
        expected = decode(picture_files.PICTURES["png"], size=size, preprocess=preprocess, limits=LIMITS)
        destination = np.full((size.height, size.width, 3), 99, np.uint8)
        placed = decode(
            picture_files.PICTURES["png"],
            size=size,
            preprocess=preprocess,
            limits=LIMITS,
            allocate=lambda array=destination: array,
        )
        assert placed.pixels is destination
        np.testing.assert_array_equal(placed.pixels, expected.pixels)


def test_too_little_memory_is_not_reported_as_a_fault_of_the_picture(monkeypatch):
    def load(picture):
        raise MemoryError

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    with pytest.raises(MemoryError):
        decoded(picture_files.rotated(1, "PNG"))
