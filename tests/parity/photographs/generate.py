"""Write the references of this folder: what timm and transformers make of the pictures in docs/pictures.

    python tests/parity/photographs/generate.py

For a person, never for CI: it needs timm, transformers and torchvision, which this project does not depend on (timm
requires torchvision, whose wheel brings CUDA). Versions used are written into reference.json. See README.md.
"""

import importlib.metadata
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

FOLDER = Path(__file__).parent
PICTURES = FOLDER.parents[2] / "docs" / "pictures"
NAMES = ("astronaut", "chelsea", "coffee", "rocket")
STEP = 4  # every fourth row and column is kept
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Transform = Callable[[Image.Image], torch.Tensor]  # RGB -> float32 [3, H, W]


def declare_torchvision_operators() -> None:
    """Let torchvision import beside a torch it was not built for: its compiled operators are not used here."""
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    globals()["_library"] = library  # the operators live as long as this


def references() -> dict[str, tuple[Transform, tuple[float, ...], tuple[float, ...]]]:
    """Name of a pipeline -> transform, mean and std of its result, in its channel order."""
    declare_torchvision_operators()
    import timm  # noqa: PLC0415
    from timm.data import create_transform, resolve_data_config  # noqa: PLC0415
    from torchvision import transforms  # noqa: PLC0415
    from transformers.models.mobilevit.image_processing_mobilevit import MobileViTImageProcessor  # noqa: PLC0415
    from transformers.models.mobilevit.image_processing_pil_mobilevit import (  # noqa: PLC0415
        MobileViTImageProcessorPil,
    )

    def of_timm(name: str) -> Transform:
        config = resolve_data_config(pretrained_cfg=timm.models.get_pretrained_cfg(name).to_dict())
        return create_transform(**config, is_training=False)

    def imagenet(interpolation: str) -> Transform:
        # What create_transform is called with in the evaluation of EMO, SwiftFormer and Mobile-Former.
        return create_transform(
            (3, 224, 224), interpolation=interpolation, mean=IMAGENET_MEAN, std=IMAGENET_STD, crop_pct=0.875
        )

    def of_transformers(processor: Callable[..., dict[str, torch.Tensor]]) -> Transform:
        return lambda picture: processor(picture, return_tensors="pt")["pixel_values"][0]

    def as_published(shorter_side_px: int, side_px: int) -> dict[str, object]:
        # As in the preprocessor_config.json beside Apple's files.
        return {
            "size": {"shortest_edge": shorter_side_px},
            "crop_size": {"height": side_px, "width": side_px},
            "resample": Image.Resampling.BILINEAR,
        }

    none, one = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    return {
        "timm_mobilevit": (of_timm("mobilevit_xxs.cvnets_in1k"), none, one),
        "timm_swiftformer": (of_timm("swiftformer_xs.dist_in1k"), IMAGENET_MEAN, IMAGENET_STD),
        "imagenet_bicubic": (imagenet("bicubic"), IMAGENET_MEAN, IMAGENET_STD),
        "imagenet_bilinear": (imagenet("bilinear"), IMAGENET_MEAN, IMAGENET_STD),
        "transformers_mobilevit": (of_transformers(MobileViTImageProcessorPil(**as_published(288, 256))), none, one),
        "transformers_deeplabv3": (of_transformers(MobileViTImageProcessorPil(**as_published(544, 512))), none, one),
        # Without a configuration: bicubic, and a crop of 256 from 224 pixels, which leaves a black border.
        "transformers_default": (of_transformers(MobileViTImageProcessorPil()), none, one),
        "transformers_fast": (of_transformers(MobileViTImageProcessor(**as_published(288, 256))), none, one),
        "transformers_fast_default": (of_transformers(MobileViTImageProcessor()), none, one),
        # Inputs that are not square, height first.
        "timm_landscape": (
            create_transform((3, 192, 256), interpolation="bicubic", mean=none, std=one, crop_pct=0.875),
            none,
            one,
        ),
        "timm_portrait": (
            create_transform((3, 256, 192), interpolation="bilinear", mean=none, std=one, crop_pct=0.875),
            none,
            one,
        ),
        "torchvision_padded": (
            transforms.Compose([transforms.Resize(216), transforms.CenterCrop((192, 257)), transforms.ToTensor()]),
            none,
            one,
        ),
    }


def main() -> None:
    """Write a PNG per pipeline, the samples of the pictures side by side, and reference.json."""
    packages = ("timm", "transformers", "torchvision", "pillow")
    written: dict[str, object] = {"versions": {name: importlib.metadata.version(name) for name in packages}}
    for pipeline, (transform, mean, std) in references().items():
        tiles, stored = [], {}
        for name in NAMES:
            planes = transform(Image.open(PICTURES / f"{name}.jpg").convert("RGB"))  # (3, H, W)
            values = planes.double().numpy()
            levels = (values * np.array(std)[:, None, None] + np.array(mean)[:, None, None]) * 255
            assert np.abs(levels - levels.round()).max() < 1e-3, "not made of whole levels"
            tiles.append(levels.round().astype(np.uint8).transpose(1, 2, 0)[::STEP, ::STEP])
            stored[name] = {
                "shape": list(values.shape),
                "mean": [round(float(plane.mean()), 7) for plane in values],
                "std": [round(float(plane.std()), 7) for plane in values],
            }
        Image.fromarray(np.concatenate(tiles, axis=1)).save(FOLDER / f"{pipeline}.png", optimize=True)
        written[pipeline] = stored
    (FOLDER / "reference.json").write_text(json.dumps(written, indent=1) + "\n")


if __name__ == "__main__":
    main()
