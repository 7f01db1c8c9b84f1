"""Comparison of the way from a picture to a network's input against the golden files `preprocess`.

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
import torch.nn.functional as F
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
        "emo_psp": (_OPENCV, _IMAGENET),
        "mmdet_1333x800": (_OPENCV, _IMAGENET),  # its padding is part of the network, see `zoo.RetinaNetHead`
        "align_resize_512": (_OPENCV, _IMAGENET),  # resizes twice
        "hf_deeplabv3": (Preprocess(mode="crop", shorter_side_px=544), _BGR),
    }
)
_DESCRIPTION = {"size", "first_pixels"}  # fields of a picture that are no pipeline


def check_preprocess(content: Mapping[str, Any], to_input: ToInput) -> list[Check]:
    """Every pipeline of the file on every picture. Raises `GoldenError` for a pipeline that is not here."""
    checks = []
    for stored in content["images"]:
        height, width = stored["size"]
        pixels = _picture(content["seed"], height, width)
        if pixels.reshape(-1, 3)[: len(stored["first_pixels"])].tolist() != stored["first_pixels"]:
            raise GoldenError(f"the picture of {height} x {width} does not begin as the file says")
        for name in stored.keys() - _DESCRIPTION:
            if name not in _PIPELINES:
                raise GoldenError(f"no pipeline is called {name!r} here")
        for name, (preprocess, normalize) in _PIPELINES.items():
            if name not in stored:
                continue  # of another file
            steps = stored[name]
            resized = pixels
            for height_px, width_px in _sizes(steps):
                asked = InputSize(height=height_px, width=width_px)
                resized = np.array(to_input(_png(resized), asked, preprocess))  # (H, W, 3)
            planes = Pixels(normalize=normalize)(torch.from_numpy(resized).unsqueeze(0))[0]  # (3, H, W)
            if "padded" in steps:  # with zeros, at the bottom and right
                rows, columns = steps["padded"]
                planes = F.pad(planes, [0, columns - planes.shape[2], 0, rows - planes.shape[1]])
            checks.append(_compare(f"{width}x{height}: {name}", planes, steps["out"]))
    return checks


def _sizes(steps: Mapping[str, Any]) -> list[list[int]]:
    """Height and width after each resize of a pipeline."""
    last = steps.get("new_size", steps["out"]["shape"][1:])
    return [steps["first_size"], last] if "first_size" in steps else [last]


def _png(pixels: NDArray[Any]) -> bytes:
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, "PNG")
    return encoded.getvalue()


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
