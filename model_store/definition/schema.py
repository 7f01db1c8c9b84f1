"""The keys of a definition file, with their types and bounds. docs/your-model.md explains them with examples."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from handlers.contract.card import FIRST_VERSION, NAME_PATTERN, VERSION_PATTERN, Task

METRICS = ("top1", "top5", "map", "miou")

Share = Annotated[float, Field(gt=0, le=1)]
Rate = Annotated[int, Field(ge=1, le=64)]


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class InputTable(_Table):
    """`[input]`: the size of the pictures that the network takes, in pixels. They need not be square."""

    width: int = Field(ge=32, le=4096)
    height: int = Field(ge=32, le=4096)


class PreprocessTable(_Table):
    """`[preprocess]`: how a picture becomes the input of the network, as in training. A missing key is the base's.

    `resize`: `squash` resizes the whole picture to the input size. `crop` resizes the shorter side to `shorter_side_px`
    and cuts out the centre. `cover` resizes until the picture covers the input size / `crop_share`, and cuts out the
    centre, as timm does for inputs that are not square. `alpha`: the colour that transparent pictures are laid on, or
    `drop` to ignore transparency. `reduced_decoding` decodes large JPEGs faster and less exactly. `channels`, `mean`
    and `std` are what the network was trained with: values are scaled to 0..1, put in the order of `channels`, and then
    (x - mean) / std.
    """

    resize: Literal["squash", "crop", "cover"] | None = None
    shorter_side_px: int | None = Field(default=None, ge=32, le=4096)
    crop_share: float | None = Field(default=None, gt=0.1, le=1)
    interpolation: Literal["bilinear", "bicubic"] | None = None
    antialias: bool | None = None
    crop_offset: Literal["floor", "round"] | None = None
    alpha: Literal["drop", "white", "black"] | None = None
    reduced_decoding: bool | None = None
    channels: Literal["RGB", "BGR"] | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None

    @model_validator(mode="after")
    def _std_is_positive(self) -> "PreprocessTable":
        if self.std is not None and min(self.std) <= 0:
            raise ValueError("std must be above 0")
        if self.mean is not None and max(map(abs, self.mean)) > 10:
            raise ValueError("mean is for values in 0..1; divide by 255")
        if self.std is not None and max(self.std) > 10:
            raise ValueError("std is for values in 0..1; divide by 255")
        return self


class HeadTable(_Table):
    """`[head]`: options of the head and of the backbone's last stage. A missing key is the base's.

    `output_stride`: pixels of the input per cell of the last feature map. `width` and `rates` (dilations) are those of
    DeepLabv3, `width` also that of a classifier's hidden layer. `score_threshold` and `iou_threshold` are those of a
    detector: boxes below the first are dropped, and boxes that overlap a better box by more than the second.

    With `torchscript`: `background` is the class of the module that has no label, `first` or `last`, or `none`. `boxes`
    is the unit of a detector's corners, `pixels` of the input or `unit` (0..1). `max_boxes` and `score_threshold` are
    for detectors, `align_corners` for segmenters.
    """

    output_stride: Literal[8, 16, 32] | None = None
    width: int | None = Field(default=None, ge=1, le=4096)
    rates: tuple[Rate, Rate, Rate] | None = None
    align_corners: bool | None = None
    score_threshold: Share | None = None
    iou_threshold: Share | None = None
    max_boxes: int | None = Field(default=None, ge=1, le=1000)
    background: Literal["none", "first", "last"] | None = None
    boxes: Literal["pixels", "unit"] | None = None


class ExpectTable(_Table):
    """`[expect]`: one's own answer to one picture. Nothing is written unless the built model answers so too.

    `answer` is a file with logits, probabilities, boxes or a class map (see `model_store.build.expect_file`).
    """

    answer: Path
    picture: Path


class Definition(_Table):
    """A definition file. Paths are relative to the file.

    `base` is an entry of the zoo, which gives all that the definition leaves out. Without `base`, `torchscript` is a
    file with a TorchScript module of one's own, and `task`, `labels` and `input` are needed.

    `labels` is a file with one label per line, a JSON file, or a list. `checkpoint` has the weights; without it they
    are random. `layout` is the project whose tensor names the checkpoint has; without it, the names tell. `weights`:
    which set to use where a checkpoint has raw and averaged (EMA) weights. `published`: metric to score in percent.
    """

    name: str = Field(pattern=NAME_PATTERN)
    base: str | None = None
    torchscript: Path | None = None
    task: Task | None = None
    version: str = Field(default=FIRST_VERSION, pattern=VERSION_PATTERN)
    labels: Path | tuple[str, ...] | None = None
    checkpoint: Path | None = None
    layout: str | None = None
    weights: Literal["raw", "ema"] | None = None
    licence: str = Field(default="", max_length=200)
    input: InputTable | None = None
    preprocess: PreprocessTable = PreprocessTable()
    head: HeadTable = HeadTable()
    expect: ExpectTable | None = None
    published: dict[str, float] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _published_is_known(self) -> "Definition":
        unknown = [metric for metric in self.published if metric not in METRICS]
        if unknown:
            raise ValueError(f"published has {unknown[0]!r}; there are {', '.join(METRICS)}")
        return self

    @model_validator(mode="after")
    def _has_one_origin(self) -> "Definition":
        if (self.base is None) == (self.torchscript is None):
            raise ValueError("give either base (a name of `mobilevision models list`) or torchscript (a file)")
        if self.torchscript is not None:
            missing = [key for key in ("task", "labels", "input") if getattr(self, key) is None]
            if missing:
                raise ValueError(f"with torchscript, {' and '.join(missing)} must be given")
            if self.checkpoint or self.layout or self.weights:
                raise ValueError("torchscript has its weights inside: leave out checkpoint, layout and weights")
        elif self.task is not None:
            raise ValueError("task belongs to torchscript: the base has its task")
        if self.checkpoint is None and (self.layout or self.weights):
            raise ValueError("layout and weights belong to a checkpoint")
        return self
