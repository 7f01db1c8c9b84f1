"""The model card: everything the gateway must know to serve an archive, as JSON beside and inside it.

One of the two contracts between the build path and the request path (the other is the tensor frame,
`handlers/frame.py`). Written by `model_store.export`, read by `service.catalog`; never imports torch.
"""

from enum import StrEnum
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

VERSION_PATTERN = r"^\d+(\.\d+){0,2}$"
FIRST_VERSION = "1.0"


class Task(StrEnum):
    """What a model answers."""

    CLASSIFY = "classify"
    DETECT = "detect"
    SEGMENT = "segment"


class WeightsState(StrEnum):
    """Where the weights come from. `RANDOM` answers are meaningless and are labelled so everywhere.

    `OFFICIAL` is what the authors of the model published, known by its address or its bytes; any other checkpoint
    is `CUSTOM`.
    """

    RANDOM = "random"
    DEMO = "demo"
    CUSTOM = "custom"
    OFFICIAL = "official"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class InputSize(_Frozen):
    """Side lengths of the uint8 `[N, height, width, 3]` RGB tensor the module takes, in pixels."""

    height: int = Field(ge=32, le=4096)
    width: int = Field(ge=32, le=4096)


class Preprocess(_Frozen):
    """How the gateway turns a decoded upright RGB picture of any size into the module's input.

    `squash`: the whole picture is resized to (width, height), aspect ratio ignored.
    `crop`: the shorter side is resized to `shorter_side_px`, then the centre (height, width) is cut out.
    `crop_offset`: where half of what is cut off is no whole number of pixels: `floor` cuts less on the left and above
    (ml-cvnets, transformers), `round` to the even of the two (torchvision, timm).
    `antialias` false reproduces OpenCV's bilinear (two taps whatever the scale), true Pillow's filters.
    """

    mode: Literal["squash", "crop"]
    shorter_side_px: int | None = Field(default=None, ge=32, le=4096)
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    antialias: bool = True
    crop_offset: Literal["floor", "round"] = "floor"

    @model_validator(mode="after")
    def _crop_has_a_side(self) -> "Preprocess":
        if (self.mode == "crop") != (self.shorter_side_px is not None):
            raise ValueError("shorter_side_px belongs to mode 'crop', and only to it")
        if self.interpolation == "bicubic" and not self.antialias:
            raise ValueError("bicubic without antialiasing is not implemented")
        if self.mode == "squash" and self.crop_offset != "floor":
            raise ValueError("crop_offset belongs to mode 'crop'")
        return self


class Normalize(_Frozen):
    """What the module itself does to its input after scaling to 0..1: channel order, then (x - mean) / std.

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

    `source` is the address or the name of the file they were read from, or the seed. `sha256` is over the tensors
    (names, shapes, bytes), not over a file.
    """

    state: WeightsState
    source: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    licence: str = ""
    published: dict[str, float] = Field(default_factory=dict)  # metric -> score of that checkpoint, e.g. {"top1": 69.0}


class Parity(_Frozen):
    """What was measured when the archive was built: agreement of the scripted module with the eager one."""

    scripted_max_abs_diff: float
    reloaded_max_abs_diff: float
    batch_row_max_abs_diff: float


class Agreement(_Frozen):
    """How far the module's answers in bfloat16 are those in float32, on pictures drawn when the archive was built.

    `agreement` is a share, 0..1, of what `metric` names:
    `top1`: the pictures whose best class is the same;
    `boxes`: the float32 boxes, each weighted by its score, that have a partner in bfloat16: a box of the same class
    with an IoU of at least 0.5 that is the partner of no better box;
    `class_map`: the pixels of the same class.
    `score_max_abs_diff` is the largest difference of a score: of the best class, of partners, of a cell's confidence.
    Under random weights scores lie close together, so that the share may be low.
    """

    metric: Literal["top1", "boxes", "class_map"]
    pictures: int = Field(ge=1)
    agreement: float = Field(ge=0, le=1)
    score_max_abs_diff: float = Field(ge=0, le=1)


class Card(_Frozen):
    """The card of one archive.

    `labels[i]` names label id i of a reply; detection labels leave the background out, segmentation
    labels hold every class of the class map.
    """

    schema_version: Literal[1] = 1
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_.-]{0,99}$")
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
    outputs: tuple[Output, ...] = Field(min_length=1)
    max_batch: int = Field(default=64, ge=1, le=64)
    parameters: int
    macs: int  # multiply-adds of convolutions and matrix products for one picture
    weights: Weights
    parity: Parity
    bfloat16: Agreement | None = None  # None: not measured
    module_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")  # of model.pt inside the archive

    def to_json(self) -> str:
        """Serialise with stable order and layout: equal cards give equal bytes."""
        return self.model_dump_json(indent=2) + "\n"

    @classmethod
    def read(cls, path: Path) -> "Card":
        """Read a card file. Raises `pydantic.ValidationError` with the offending fields."""
        return cls.model_validate_json(path.read_bytes())
