"""The model card: everything that the gateway must know to serve an archive, as JSON beside the archive and inside it.

`model_store.build.export` writes cards, `service.core.catalog` reads them. The worker reads the same JSON without this
module, because the worker has no pydantic (see `handlers.runtime`). Never imports torch.
"""

from enum import StrEnum
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

NAME_PATTERN = r"^[a-z0-9][a-z0-9_.-]{0,99}$"
VERSION_PATTERN = r"^\d+(\.\d+){0,2}$"
FIRST_VERSION = "1.0"


class Task(StrEnum):
    """What a model predicts."""

    CLASSIFY = "classify"
    DETECT = "detect"
    SEGMENT = "segment"


class WeightsState(StrEnum):
    """Where the weights come from. Predictions of `RANDOM` weights are meaningless, and every reply says so.

    `OFFICIAL` weights were published by the authors of the model; they are recognised by address or by content. Any
    other checkpoint is `CUSTOM`.
    """

    RANDOM = "random"
    DEMO = "demo"
    CUSTOM = "custom"
    OFFICIAL = "official"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class InputSize(_Frozen):
    """Side lengths in pixels of the module's input, a uint8 RGB tensor `[N, height, width, 3]`."""

    height: int = Field(ge=32, le=4096)
    width: int = Field(ge=32, le=4096)


class Preprocess(_Frozen):
    """How the gateway turns a decoded upright RGB picture of any size into the module's input.

    `squash`: the whole picture is resized to (width, height), aspect ratio ignored.
    `crop`: the shorter side is resized to `shorter_side_px`, then the centre (height, width) is cut out. What lies
    beyond the picture is black (torchvision, transformers, timm with square inputs).
    `cover`: the picture is resized until it covers (height, width) / `crop_share`, each rounded down, then the centre
    (height, width) is cut out (timm with inputs that are not square).
    `crop_offset`: how half of the margin becomes a whole number of pixels. `floor` cuts less on the left and above
    (ml-cvnets, transformers). `round` takes the nearest number, and the even one of two (torchvision, timm).
    `antialias`: false is OpenCV's bilinear filter (two taps at every scale), true is Pillow's filters.
    `alpha`: what becomes of transparency. `drop` ignores it, as `convert("RGB")` does in the training code of all
    frameworks: the stored colour of transparent pixels reaches the model. `white` and `black` lay the picture on that
    colour.
    `reduced_decoding`: JPEGs of more than twice the size that is needed are decoded at 1/2, 1/4 or 1/8. This is faster
    and takes less memory, but the pixels differ from those of training; docs/pictures.md says by how much.
    """

    mode: Literal["squash", "crop", "cover"]
    shorter_side_px: int | None = Field(default=None, ge=32, le=4096)
    crop_share: float | None = Field(default=None, gt=0.1, le=1)
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    antialias: bool = True
    crop_offset: Literal["floor", "round"] = "floor"
    alpha: Literal["drop", "white", "black"] = "drop"
    reduced_decoding: bool = False

    @model_validator(mode="after")
    def _crop_has_a_side(self) -> "Preprocess":
        if (self.mode == "crop") != (self.shorter_side_px is not None):
            raise ValueError("shorter_side_px is needed in mode 'crop', and allowed in no other mode")
        if (self.mode == "cover") != (self.crop_share is not None):
            raise ValueError("crop_share is needed in mode 'cover', and allowed in no other mode")
        if self.interpolation == "bicubic" and not self.antialias:
            raise ValueError("bicubic without antialias is not implemented: set antialias to true")
        if self.mode == "squash" and self.crop_offset != "floor":
            raise ValueError("crop_offset is not allowed in mode 'squash'")
        return self


class Normalize(_Frozen):
    """What the module does to its input after it scaled the input to 0..1: channel order, then (x - mean) / std.

    `mean` and `std` are in the order of `channel_order`.
    """

    channel_order: Literal["RGB", "BGR"] = "RGB"
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)


class Output(_Frozen):
    """One result tensor: `shape` leaves out the leading batch dimension N."""

    name: str
    dtype: Literal["float32", "int32", "uint8"]
    shape: tuple[int, ...]


class Weights(_Frozen):
    """Provenance of the weights.

    `source` is the address or the name of the checkpoint file, or the seed. `sha256` is computed over the tensors
    (names, shapes, bytes), not over a file.
    """

    state: WeightsState
    source: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    licence: str = ""
    published: dict[str, float] = Field(
        default_factory=dict
    )  # metric -> published score in percent, e.g. {"top1": 69.0}


class Parity(_Frozen):
    """Largest differences between outputs, measured when the archive was built: scripted, reloaded, in a batch."""

    scripted_max_abs_diff: float
    reloaded_max_abs_diff: float
    batch_row_max_abs_diff: float


class Agreement(_Frozen):
    """Agreement of predictions in bfloat16 with predictions in float32, on pictures drawn when the archive was built.

    `agreement` is a share, 0..1. `metric` names the share:
    `top1`: pictures with the same best class;
    `boxes`: float32 boxes, each weighted by its score, that have a partner in bfloat16: a box of the same class with an
    IoU of at least 0.5 that is not the partner of a better box;
    `class_map`: pixels with the same class.
    `score_max_abs_diff` is the largest difference between scores: of the best class, of partners, or of a cell's
    confidence. With random weights the scores are close together, so the share may be low.
    """

    metric: Literal["top1", "boxes", "class_map"]
    pictures: int = Field(ge=1)
    agreement: float = Field(ge=0, le=1)
    score_max_abs_diff: float = Field(ge=0, le=1)


class Recipe(_Frozen):
    """How the archive was made: what cannot be seen from the weights.

    `base` is the entry of the zoo; empty for a TorchScript module from elsewhere, whose file has the digest
    `source_sha256`. `layout`: the project whose tensor names the checkpoint had; empty for random weights.
    `weight_set`: which of several sets in the checkpoint was taken, such as `state_dict_ema`; empty where there was
    one. `backbone` and `head` have the options of both, by name. `definition` is the text of the definition file,
    `definition_sha256` its digest; both are empty without a file.
    """

    base: str = ""
    layout: str = ""
    weight_set: str = ""
    backbone: dict[str, str | int | float | bool | tuple[int, ...] | None] = Field(default_factory=dict)
    head: dict[str, str | int | float | bool | tuple[int, ...] | None] = Field(default_factory=dict)
    source_sha256: str = Field(default="", pattern=r"^([0-9a-f]{64})?$")
    definition: str = Field(default="", max_length=2**20)
    definition_sha256: str = Field(default="", pattern=r"^([0-9a-f]{64})?$")


class Card(_Frozen):
    """The card of one archive.

    `labels[i]` is the name of label id i in a reply. Detection labels do not include the background. Segmentation
    labels include every class of the class map. `label_colours` has one `#rrggbb` per label, or none.
    """

    schema_version: Literal[1] = 1
    name: str = Field(pattern=NAME_PATTERN)
    version: str = Field(default=FIRST_VERSION, pattern=VERSION_PATTERN)
    task: Task
    family: str
    variant: str
    head: str
    paper: str
    input: InputSize
    preprocess: Preprocess
    normalize: Normalize
    labels: tuple[str, ...] = Field(min_length=1)
    label_colours: tuple[str, ...] = ()
    outputs: tuple[Output, ...] = Field(min_length=1)
    max_batch: int = Field(default=64, ge=1, le=64)
    parameters: int
    macs: int  # multiply-adds of convolutions and matrix products for one picture
    weights: Weights
    recipe: Recipe = Recipe()
    parity: Parity
    bfloat16: Agreement | None = None  # None: not measured
    module_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")  # of model.pt inside the archive

    def to_json(self) -> str:
        """Serialise with a fixed order and layout, so that equal cards give equal bytes."""
        return self.model_dump_json(indent=2) + "\n"

    @classmethod
    def read(cls, path: Path) -> "Card":
        """Read a card file. Raises `OSError`, or `pydantic.ValidationError`, which names the wrong fields."""
        return cls.model_validate_json(path.read_bytes())
