"""The text of a new definition file, with every key of the base as a comment. Base in, text out."""

from model_store import zoo

_TEXT = """# A model of your own. `mobilevision models build {name}.toml` makes an archive of it.
# Lines that begin with # show what the base has. Remove the # to say something else.
# docs/your-model.md explains every key.

name = "{name}"
base = "{base}"
version = "1.0"

# One label per line in class order, or a JSON file. The checkpoint has as many classes{background}.
labels = "labels.txt"

# The trained weights: .safetensors, .pt, .pth, .ckpt, ... Paths are relative to this file.
checkpoint = "best.pt"
# layout = "{layout}"  # the project whose tensor names the checkpoint has; without it, the names tell
# weights = "ema"  # raw or ema, where the checkpoint has both
# licence = "CC-BY-4.0"

[input]  # the size of the pictures in training, in pixels
width = {width}
height = {height}

[preprocess]  # must be that of the training, or the answers are wrong without an error
# resize = "{resize}"  # squash: resize to width x height. crop: resize the shorter side and cut. cover: timm's
{side}# interpolation = "{interpolation}"  # bilinear or bicubic
# antialias = {antialias}  # true: Pillow's filters. false: OpenCV's bilinear filter
# alpha = "{alpha}"  # drop: ignore transparency. white, black: lay transparent pictures on that colour
# reduced_decoding = {reduced}  # true: faster with large JPEGs, and less exact (docs/pictures.md)
# channels = "{channels}"  # RGB or BGR
# mean = {mean}  # of values in 0..1, in the order of channels
# std = {std}

[head]
# output_stride = {stride}
{head}
# [published]  # scores in percent, shown beside those that you measure
# {metric} = 90.0
"""

_METRICS = {"classify": "top1", "detect": "map", "segment": "miou"}


def template(name: str, base: zoo.ModelSpec) -> str:
    """Return the text of a definition file called `name` that starts from `base`."""
    preprocess = base.preprocess
    side = preprocess.shorter_side_px
    options = {"width", "rates", "align_corners", "score_threshold", "iou_threshold", "max_boxes"}
    head = [
        f"# {key} = {_toml(getattr(base.head, key))}\n"
        for key in sorted(options & set(type(base.head).__dataclass_fields__))
        if getattr(base.head, key)  # no value, or a width of 0: the form has no such layer
    ]
    background = {
        "detect": " (its background is not a label)",
        "segment": "; the background is a label where it is a class",
    }
    return _TEXT.format(
        name=name,
        base=base.name,
        background=background.get(base.task.value, ""),
        layout=base.layout,
        width=base.input.width,
        height=base.input.height,
        resize=preprocess.mode,
        side="" if side is None else f"# shorter_side_px = {side}  # before the crop\n",
        interpolation=preprocess.interpolation,
        antialias=_toml(preprocess.antialias),
        alpha=preprocess.alpha,
        reduced=_toml(preprocess.reduced_decoding),
        channels=base.normalize.channel_order,
        mean=list(base.normalize.mean),
        std=list(base.normalize.std),
        stride=base.backbone.output_stride,
        head="".join(head),
        metric=_METRICS[base.task.value],
    )


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return str(list(value)) if isinstance(value, tuple) else str(value)
