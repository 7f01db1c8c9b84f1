import contextlib
import json
import time
import warnings
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import picture_files
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from model_store.card import InputSize, Preprocess
from service.decode import SUPPORTED_FORMATS, Limits, decode
from service.errors import ImageTooManyBytes, ImageTooManyPixels, InvalidImage

# Pillow warns about odd metadata and decodes all the same; `decode` silences that in production.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")

GOLDEN = Path(__file__).parents[2] / "parity" / "golden" / "heads" / "preprocess.json"
LIMITS = Limits(max_bytes=20 * 2**20, max_pixels=150_000_000)
SIZE = InputSize(height=96, width=128)
SQUASH = Preprocess(mode="squash")
CROP = Preprocess(mode="crop", shorter_side_px=144)
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
        "tiff deflate", "tiff jpeg", "tiff two pages",
    ],
)  # fmt: skip
def test_colours_survive(name):
    pixels = decoded(picture_files.PICTURES[name]).pixels
    expected = {(8, 8): (255, 0, 0), (8, 120): (0, 255, 0), (88, 8): (0, 0, 255), (88, 120): (255, 255, 255)}
    for (y, x), colour in expected.items():
        assert np.abs(pixels[y, x].astype(int) - colour).max() <= 3


@pytest.mark.parametrize(
    "name", ["png 16-bit", "tiff 16-bit", "tiff float 0..1", "tiff float 0..255", "tiff float 0..1e6"]
)
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
def test_exif_orientation_of_jpegs_decoded_at_a_fraction(orientation):
    # 1001 x 751 leaves a partial pixel at 1/2: the box must follow the turn.
    data = picture_files.rotated(orientation, size=(1001, 751))
    result = decoded(data, preprocess=CROP)
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


@pytest.mark.parametrize(("name", "guess"), [("svg", "SVG"), ("heic", "HEIC"), ("pdf", "PDF"), ("base64", "base64")])
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
        decoded(picture_files.png(60000, 50000))
    assert time.perf_counter() - started < 1.0
    assert raised.value.metadata == {"limit_pixels": "150000000", "width": "60000", "height": "50000"}
    limits = Limits(max_bytes=10**6, max_pixels=64 * 48)
    decoded(picture_files.PICTURES["jpeg"], limits=limits)
    with pytest.raises(ImageTooManyPixels):
        decoded(picture_files.PICTURES["jpeg"], limits=Limits(max_bytes=10**6, max_pixels=64 * 48 - 1))


def test_a_picture_above_pillows_own_limit_is_read_without_warning():
    rows = zlib.compressobj(1)
    width, height = 20_000, 9_100  # 182 million pixels of one bit: above what Pillow calls a bomb
    line = b"\0" + bytes(width // 8)
    data = b"".join([rows.compress(line) for _ in range(height)] + [rows.flush()])
    png = picture_files.png(width, height, data=zlib.decompress(data), bit_depth=1, colour=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = decoded(png, limits=Limits(max_bytes=10**7, max_pixels=200_000_000))
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


def golden_input(height: int, width: int) -> np.ndarray:
    random = np.random.RandomState(zlib.crc32(f"prep-1/{height}x{width}".encode()))
    low = random.randint(0, 200, (-(-height // 12), -(-width // 12), 3))
    fine = random.randint(0, 56, (height, width, 3))
    return (np.repeat(np.repeat(low, 12, 0), 12, 1)[:height, :width] + fine).astype(np.uint8)


IMAGENET_MEAN = np.array([123.675, 116.28, 103.53])
IMAGENET_STD = np.array([58.395, 57.12, 57.375])
GOLDENS = {
    "cvnets_v01_ssd_320": (OPENCV, 320, lambda x: x[..., ::-1] / 255),
    "cvnets_main_ssd_320": (Preprocess(mode="squash", interpolation="bicubic"), 320, lambda x: x / 255),
    "cvnets_main_ssd_320_bilinear": (SQUASH, 320, lambda x: x / 255),
    "emo_ssd_320": (OPENCV, 320, lambda x: (x - IMAGENET_MEAN) / IMAGENET_STD),
    "hf_deeplabv3": (Preprocess(mode="crop", shorter_side_px=544), 512, lambda x: x[..., ::-1] / 255),
}


@pytest.mark.parametrize("case", [0, 1], ids=["120x160", "97x61"])
@pytest.mark.parametrize("name", GOLDENS)
def test_equals_the_original_projects_pipelines(name, case):
    golden = json.loads(GOLDEN.read_text())["images"][case]
    pixels = golden_input(*golden["size"])
    assert pixels.reshape(-1, 3)[:4].tolist() == golden["first_pixels"]
    preprocess, side, normalise = GOLDENS[name]
    data = picture_files.encoded(Image.fromarray(pixels), "PNG")
    result = decoded(data, InputSize(height=side, width=side), preprocess).pixels
    planes = normalise(result.astype(np.float64)).transpose(2, 0, 1)  # (H, W, 3) -> (3, H, W)
    expected = golden[name]["out"]
    assert list(planes.shape) == expected["shape"]
    flat = planes.ravel()
    # To the bit, OpenCV's fixed-point rounding included; what is left is the golden's own float32.
    np.testing.assert_allclose(flat[: len(expected["first"])], expected["first"], atol=2e-6)
    np.testing.assert_allclose(flat[:: expected["step"]][: len(expected["strided"])], expected["strided"], atol=2e-6)
    assert flat.mean() == pytest.approx(expected["mean"], abs=1e-6)
    assert flat.std() == pytest.approx(expected["std"], abs=1e-6)


@pytest.mark.parametrize(("width", "height"), [(500, 333), (333, 500), (200, 1000), (97, 61)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_crop_equals_resize_then_crop(width, height, interpolation):
    pixels = golden_input(height, width)
    preprocess = Preprocess(mode="crop", shorter_side_px=288, interpolation=interpolation)
    size = InputSize(height=256, width=256)
    result = decoded(picture_files.encoded(Image.fromarray(pixels), "PNG"), size, preprocess)
    short = min(width, height)
    resized = (int(288 * width / short), int(288 * height / short))
    method = Image.Resampling.BILINEAR if interpolation == "bilinear" else Image.Resampling.BICUBIC
    left, top = (resized[0] - 256) // 2, (resized[1] - 256) // 2
    expected = Image.fromarray(pixels).resize(resized, method).crop((left, top, left + 256, top + 256))
    difference = np.abs(result.pixels.astype(int) - np.asarray(expected))
    if max(width, height) < 4 * short:
        assert difference.max() == 0
    else:  # the cut alone is resized: see `_MAX_CROP_WASTE`
        assert difference.mean() < 0.5
        assert difference.max() <= (2 if interpolation == "bilinear" else 10)
    geometry = result.geometry
    assert geometry.x0 == pytest.approx(left * width / resized[0])
    assert geometry.y1 == pytest.approx((top + 256) * height / resized[1])


def test_an_odd_margin_is_cut_as_the_card_says():
    pixels = np.zeros((64, 67, 3), np.uint8)
    pixels[:, :, 0] = np.arange(67)  # the column a pixel is from
    data = picture_files.encoded(Image.fromarray(pixels), "PNG")
    for offset, first in (("floor", 1), ("round", 2)):  # of a margin of 3
        preprocess = Preprocess(mode="crop", shorter_side_px=64, crop_offset=offset)
        result = decoded(data, InputSize(height=64, width=64), preprocess)
        assert result.pixels[0, 0, 0] == first
        assert result.geometry.x0 == first


def test_crop_larger_than_the_resized_picture_is_padded_black():
    data = picture_files.encoded(Image.new("RGB", (100, 100), "white"), "PNG")
    result = decoded(data, InputSize(height=64, width=96), Preprocess(mode="crop", shorter_side_px=64))
    assert result.pixels[:, 16:80].min() == 255
    assert result.pixels[:, :16].max() == 0
    assert result.pixels[:, 80:].max() == 0
    assert (result.geometry.x0, result.geometry.x1) == (-25.0, 125.0)


def test_jpegs_decoded_at_a_fraction_stay_close_to_the_full_picture():
    photograph = Path(__file__).parents[3] / "docs/pictures/astronaut.jpg"
    image = Image.open(photograph).convert("RGB").resize((1030, 1030), Image.Resampling.BICUBIC)
    data = picture_files.encoded(image, "JPEG", quality=92)
    result = decoded(data, InputSize(height=224, width=224)).pixels.astype(int)
    expected = np.asarray(Image.open(BytesIO(data)).resize((224, 224), Image.Resampling.BILINEAR))
    assert np.abs(result - expected).mean() < 1.5


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
