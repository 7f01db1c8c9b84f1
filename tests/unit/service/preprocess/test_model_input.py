"""The model input is that of the frameworks: resize, crop, padding, alpha, and JPEGs decoded whole."""

import json
import zlib
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
import picture_files
import pytest
from PIL import Image

from handlers.contract.card import InputSize, Preprocess
from service.preprocess.image import decode
from service.preprocess.limits import Limits

GOLDEN = Path(__file__).parents[3] / "parity" / "golden" / "heads" / "preprocess.json"
LIMITS = Limits(max_bytes=20 * 2**20, max_pixels=150_000_000)
SIZE = InputSize(height=96, width=128)
SQUASH = Preprocess(mode="squash")
CROP = Preprocess(mode="crop", shorter_side_px=144)
OPENCV = Preprocess(mode="squash", antialias=False)


def decoded(data: bytes, size: InputSize = SIZE, preprocess: Preprocess = SQUASH):
    return decode(data, size=size, preprocess=preprocess, limits=LIMITS)


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
    assert difference.max() == 0
    geometry = result.geometry
    assert geometry.x0 == pytest.approx(left * width / resized[0])
    assert geometry.y1 == pytest.approx((top + 256) * height / resized[1])


def test_of_a_very_long_picture_only_the_crop_is_resized():
    pixels = golden_input(4000, 50)
    preprocess = Preprocess(mode="crop", shorter_side_px=288)
    result = decoded(
        picture_files.encoded(Image.fromarray(pixels), "PNG"), InputSize(height=256, width=256), preprocess
    )
    resized = Image.fromarray(pixels).resize((288, 23040), Image.Resampling.BILINEAR)
    difference = np.abs(result.pixels.astype(int) - np.asarray(resized.crop((16, 11392, 272, 11648))))
    assert difference.mean() < 0.5
    assert difference.max() <= 2


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


PHOTOGRAPH = Path(__file__).parents[4] / "docs/pictures/astronaut.jpg"


def large_jpeg() -> bytes:
    image = Image.open(PHOTOGRAPH).convert("RGB").resize((1030, 1030), Image.Resampling.BICUBIC)
    return picture_files.encoded(image, "JPEG", quality=92)


def test_a_large_jpeg_without_antialiasing_is_what_opencv_makes_of_it():
    data = large_jpeg()
    result = decoded(data, InputSize(height=224, width=224), OPENCV).pixels
    whole = cv2.cvtColor(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    np.testing.assert_array_equal(result, cv2.resize(whole, (224, 224), interpolation=cv2.INTER_LINEAR))


@pytest.mark.parametrize("method", ["bilinear", "bicubic"])
def test_a_large_jpeg_with_antialiasing_is_what_pillow_makes_of_it(method):
    data = large_jpeg()
    result = decoded(data, InputSize(height=224, width=224), Preprocess(mode="squash", interpolation=method)).pixels
    expected = Image.open(BytesIO(data)).resize((224, 224), Image.Resampling[method.upper()])
    np.testing.assert_array_equal(result, np.asarray(expected))


@pytest.mark.parametrize("preprocess", [SQUASH, CROP, OPENCV], ids=["squash", "crop", "opencv"])
def test_a_jpeg_and_a_png_of_one_picture_are_one_input(preprocess):
    data = large_jpeg()
    png = picture_files.encoded(Image.open(BytesIO(data)), "PNG")
    np.testing.assert_array_equal(
        decoded(data, preprocess=preprocess).pixels, decoded(png, preprocess=preprocess).pixels
    )


def test_reduced_decoding_stays_close_with_antialiasing_and_takes_less_memory():
    data = large_jpeg()
    reserved: list[int] = []
    results = []
    for reduced in (False, True):
        preprocess = Preprocess(mode="squash", reduced_decoding=reduced)
        size = InputSize(height=224, width=224)
        results.append(
            decode(data, size=size, preprocess=preprocess, limits=LIMITS, reserve=reserved.append).pixels.astype(int)
        )
    assert 0 < np.abs(results[0] - results[1]).mean() < 1.5
    assert reserved[1] < reserved[0] / 2


ALPHA = [
    "png rgba",
    "png gray alpha clear",
    "png palette transparent index",
    "webp alpha",
    "png rgb transparent colour",
]


def clear(name: str) -> bytes:
    """A picture whose top left is transparent."""
    if name != "png gray alpha clear":
        return picture_files.PICTURES[name]
    image = Image.fromarray(picture_files.gradient()).convert("LA")
    image.putalpha(0)
    return picture_files.encoded(image, "PNG")


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("name", ALPHA)
def test_transparency_becomes_the_colour_of_the_card(name, antialias):
    found = {}
    for alpha in ("drop", "white", "black"):
        preprocess = Preprocess(mode="squash", alpha=alpha, antialias=antialias)
        found[alpha] = decoded(clear(name), preprocess=preprocess).pixels
    if "palette" not in name:  # there the transparent index is the colour of another corner
        assert found["white"][8, 8].tolist() == [255, 255, 255]
        assert found["black"][8, 8].tolist() == [0, 0, 0]
    assert not np.array_equal(found["white"], found["black"])
    # As the frameworks load a picture.
    loaded = Image.open(BytesIO(clear(name))).convert("RGB")
    dropped = decoded(picture_files.encoded(loaded, "PNG"), preprocess=Preprocess(mode="squash", antialias=antialias))
    np.testing.assert_array_equal(found["drop"], dropped.pixels)


def test_half_transparent_pixels_are_mixed_with_the_colour():
    data = picture_files.encoded(Image.new("RGBA", (64, 64), (0, 0, 0, 128)), "PNG")
    pixels = decoded(data, preprocess=Preprocess(mode="squash", alpha="white")).pixels
    assert set(np.unique(pixels)) == {127}


def test_an_input_that_is_not_square_is_covered():
    # As timm: 64 x 48 must cover 146 x 109 (128 x 96 by 0.875), so it becomes 146 x 110.
    data = picture_files.PICTURES["png"]
    result = decoded(data, preprocess=Preprocess(mode="cover", crop_share=0.875, crop_offset="round"))
    whole = Image.open(BytesIO(data)).resize((146, 110), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(result.pixels, np.asarray(whole.crop((9, 7, 137, 103))))


@pytest.mark.parametrize(("offset", "first"), [("floor", 3), ("round", 2)])
def test_an_odd_padding_is_that_of_the_framework(offset, first):
    # transformers pads the larger half on the left, torchvision the smaller one.
    data = picture_files.encoded(Image.new("RGB", (59, 64), "white"), "PNG")
    preprocess = Preprocess(mode="crop", shorter_side_px=59, crop_offset=offset)
    result = decoded(data, InputSize(height=64, width=64), preprocess)
    assert result.pixels[32, :, 0].tolist() == [0] * first + [255] * 59 + [0] * (5 - first)
    assert result.geometry.x0 == -first
