"""Comparison of the way from a picture to a network's input against the golden file `preprocess`.

In: the content of the file, and the function by which the gateway brings pictures to a model's input. Out: a list of
`Check`. The function's result goes through `networks.pixels.Pixels`, the first stage of every archive, so that both
halves of the way are compared. This room never imports the gateway: the server's command line passes the function.
"""

import io
import zlib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from handlers.contract.card import InputSize, Normalize, Preprocess
from model_store.networks.pixels import Pixels
from model_store.verify.golden import Check, GoldenError, distance

# (encoded picture, size, how) -> uint8 [H, W, 3] RGB
ToInput = Callable[[bytes, InputSize, Preprocess], NDArray[Any]]

VALUES = 2e-6  # the stored ones are float32 with seven digits

_OPENCV = Preprocess(mode="squash", antialias=False)
_BGR = Normalize(channel_order="BGR")
_IMAGENET = Normalize(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
# Pipeline of the file -> how our cards say the same; the size is that of what is stored.
_PIPELINES: Mapping[str, tuple[Preprocess, Normalize]] = MappingProxyType(
    {
        "cvnets_v01_ssd_320": (_OPENCV, _BGR),
        "cvnets_main_ssd_320": (Preprocess(mode="squash", interpolation="bicubic"), Normalize()),
        "cvnets_main_ssd_320_bilinear": (Preprocess(mode="squash"), Normalize()),
        "emo_ssd_320": (_OPENCV, _IMAGENET),
        "emo_seg": (_OPENCV, _IMAGENET),  # keeps the aspect ratio by the size it asks for
        "hf_deeplabv3": (Preprocess(mode="crop", shorter_side_px=544), _BGR),
    }
)
_DESCRIPTION = {"size", "first_pixels"}  # fields of a picture that are no pipeline


def check_preprocess(content: Mapping[str, Any], to_input: ToInput) -> list[Check]:
    """Every pipeline on every picture. Raises `GoldenError` for a pipeline that is not here."""
    checks = []
    for stored in content["images"]:
        height, width = stored["size"]
        pixels = _picture(content["seed"], height, width)
        if pixels.reshape(-1, 3)[: len(stored["first_pixels"])].tolist() != stored["first_pixels"]:
            raise GoldenError(f"the picture of {height} x {width} does not begin as the file says")
        encoded = io.BytesIO()
        Image.fromarray(pixels).save(encoded, "PNG")
        for name in stored.keys() - _DESCRIPTION:
            if name not in _PIPELINES:
                raise GoldenError(f"no pipeline is called {name!r} here")
        for name, (preprocess, normalize) in _PIPELINES.items():
            expected = stored[name]["out"]
            size = InputSize(height=expected["shape"][1], width=expected["shape"][2])
            found = torch.from_numpy(np.array(to_input(encoded.getvalue(), size, preprocess)))  # (H, W, 3)
            planes = Pixels(normalize=normalize)(found.unsqueeze(0))[0]  # (3, H, W)
            checks.append(_compare(f"{width}x{height}: {name}", planes, expected))
    return checks


def _compare(name: str, planes: torch.Tensor, expected: Mapping[str, Any]) -> Check:
    if list(planes.shape) != expected["shape"]:
        return Check(f"{name}: shape", float("inf"), VALUES)
    flat = planes.contiguous().reshape(-1)
    worst = max(
        distance(flat[: len(expected["first"])], expected["first"]),
        distance(flat[:: expected["step"]][: len(expected["strided"])], expected["strided"]),
        abs(float(flat.double().mean()) - expected["mean"]),
        abs(float(flat.double().std(correction=0)) - expected["std"]),
    )
    return Check(name, worst, VALUES)


def _picture(seed: str, height: int, width: int) -> NDArray[np.uint8]:
    """Coarse blocks and fine noise, as the file's field `image` says: uint8 [H, W, 3]."""
    random = np.random.RandomState(zlib.crc32(f"{seed}/{height}x{width}".encode()))
    low = random.randint(0, 200, (-(-height // 12), -(-width // 12), 3))
    fine = random.randint(0, 56, (height, width, 3))
    return (low.repeat(12, axis=0).repeat(12, axis=1)[:height, :width] + fine).astype(np.uint8)
