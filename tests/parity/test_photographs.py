"""Real photographs, from the file to the network's input, against what timm and transformers make of them.

`photographs/` holds their results (README.md there says how they were made). The gateway's decoding and resizing is
followed by `Pixels`, the first stage of every archive, set as the card of the model or of the layout is.
"""

import io
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from handlers.contract.card import InputSize, Normalize, Preprocess
from model_store import zoo
from model_store.networks.pixels import Pixels
from model_store.weights import layouts
from service.cli.main import to_input

FOLDER = Path(__file__).parent / "photographs"
PICTURES = Path(__file__).parents[2] / "docs" / "pictures"
REFERENCE: dict[str, Any] = json.loads((FOLDER / "reference.json").read_text())
PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket")
STEP = 4  # every fourth row and column is stored


@dataclass(frozen=True)
class Case:
    """What a card says of the way to the network's input."""

    size: InputSize
    preprocess: Preprocess
    normalize: Normalize


def card_of(name: str, layout: str | None = None) -> Case:
    entry = zoo.get(name)
    preprocess, normalize = entry.preprocess, entry.normalize
    if layout is not None:
        chosen = layouts.get(layout)
        preprocess = chosen.preprocess or preprocess
        if chosen.channel_order is not None:
            normalize = normalize.model_copy(update={"channel_order": chosen.channel_order})
    return Case(entry.input, preprocess, normalize)


BGR = Normalize(channel_order="BGR")
CASES = {
    "timm_mobilevit": card_of("mobilevit_xxs_classify", "timm"),
    "timm_swiftformer": card_of("swiftformer_xs_classify", "swiftformer_timm"),
    "imagenet_bicubic": card_of("emo_1m_classify"),
    "imagenet_bilinear": card_of("mobileformer_26m_classify"),
    "transformers_mobilevit": Case(InputSize(height=256, width=256), Preprocess(mode="crop", shorter_side_px=288), BGR),
    "transformers_deeplabv3": Case(InputSize(height=512, width=512), Preprocess(mode="crop", shorter_side_px=544), BGR),
    "transformers_default": Case(
        InputSize(height=256, width=256), Preprocess(mode="crop", shorter_side_px=224, interpolation="bicubic"), BGR
    ),
    "timm_landscape": Case(
        InputSize(height=192, width=256),
        Preprocess(mode="cover", crop_share=0.875, interpolation="bicubic", crop_offset="round"),
        Normalize(),
    ),
    "timm_portrait": Case(
        InputSize(height=256, width=192),
        Preprocess(mode="cover", crop_share=0.875, crop_offset="round"),
        Normalize(),
    ),
    "torchvision_padded": Case(
        InputSize(height=192, width=257),
        Preprocess(mode="crop", shorter_side_px=216, crop_offset="round"),
        Normalize(),
    ),
}
# The processors of transformers that work on tensors: their resize rounds its weights otherwise.
FAST = {"transformers_fast": "transformers_mobilevit", "transformers_fast_default": "transformers_default"}


def planes(case: Case, picture: bytes) -> torch.Tensor:
    """The network's input, float32 [3, H, W]."""
    pixels = torch.from_numpy(np.array(to_input(picture, case.size, case.preprocess)))
    return Pixels(normalize=case.normalize)(pixels.unsqueeze(0))[0]


def levels(case: Case, values: torch.Tensor) -> np.ndarray[Any, Any]:
    """Back to 0..255, uint8 [H, W, 3] in the channel order of the network."""
    std, mean = (torch.tensor(part).view(3, 1, 1) for part in (case.normalize.std, case.normalize.mean))
    return ((values * std + mean) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()


def stored_levels(name: str, photograph: str) -> np.ndarray[Any, Any]:
    tiles = np.split(np.asarray(Image.open(FOLDER / f"{name}.png")), len(PHOTOGRAPHS), axis=1)
    return tiles[PHOTOGRAPHS.index(photograph)]


@pytest.mark.parametrize("photograph", PHOTOGRAPHS)
@pytest.mark.parametrize("name", CASES)
def test_equals_timm_and_transformers(name: str, photograph: str) -> None:
    case, stored = CASES[name], REFERENCE[name][photograph]
    found = planes(case, (PICTURES / f"{photograph}.jpg").read_bytes())
    assert list(found.shape) == stored["shape"]
    # To the level: both sides are Pillow, and what Pillow computes is in whole numbers.
    np.testing.assert_array_equal(levels(case, found)[::STEP, ::STEP], stored_levels(name, photograph))
    # Of all pixels, after mean and deviation; one level of 0..255 in one pixel of a hundred would move it by more.
    wide = found.double()
    np.testing.assert_allclose(wide.mean(dim=(1, 2)), stored["mean"], atol=1e-6)
    np.testing.assert_allclose(wide.std(dim=(1, 2), correction=0), stored["std"], atol=1e-6)


@pytest.mark.parametrize("photograph", PHOTOGRAPHS)
@pytest.mark.parametrize("name", FAST)
def test_the_fast_processor_of_transformers_differs_by_two_levels_at_most(name: str, photograph: str) -> None:
    case = CASES[FAST[name]]
    found = levels(case, planes(case, (PICTURES / f"{photograph}.jpg").read_bytes()))[::STEP, ::STEP].astype(int)
    difference = np.abs(found - stored_levels(name, photograph))
    assert difference.max() <= 2
    assert (difference > 0).mean() < 0.01  # of all values; measured: 0.0001 to 0.0075


def four_times(photograph: str) -> tuple[bytes, bytes]:
    """A large JPEG, and its decoded pixels as BMP."""
    with Image.open(PICTURES / f"{photograph}.jpg") as picture:
        large = picture.convert("RGB").resize((picture.width * 4, picture.height * 4), Image.Resampling.BICUBIC)
    jpeg, whole = io.BytesIO(), io.BytesIO()
    large.save(jpeg, "JPEG", quality=92)
    Image.open(jpeg).save(whole, "BMP")
    return jpeg.getvalue(), whole.getvalue()


@pytest.mark.parametrize("name", ["imagenet_bilinear", "imagenet_bicubic", "mobilevit"])
def test_a_large_jpeg_is_the_same_input_as_its_pixels(name: str) -> None:
    case = CASES[name] if name in CASES else card_of("mobilevit_xxs_classify")
    near, exact = (planes(case, data) for data in four_times("astronaut"))
    torch.testing.assert_close(near, exact, rtol=0, atol=0)


@pytest.mark.parametrize("photograph", PHOTOGRAPHS)
def test_reduced_decoding_stays_close_with_antialiasing(photograph: str) -> None:
    case = CASES["imagenet_bilinear"]
    reduced = replace(case, preprocess=case.preprocess.model_copy(update={"reduced_decoding": True}))
    jpeg, whole = four_times(photograph)
    near = levels(case, planes(reduced, jpeg)).astype(int)
    exact = levels(case, planes(case, whole)).astype(int)
    difference = np.abs(near - exact)
    assert 0 < difference.mean() <= 0.6  # measured: 0.07 to 0.48
    assert difference.max() <= 12  # measured: 2 to 10


def test_every_stored_pipeline_is_compared() -> None:
    assert REFERENCE.keys() - {"versions"} == CASES.keys() | FAST.keys()
