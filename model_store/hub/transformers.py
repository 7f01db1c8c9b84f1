"""transformers' `config.json` and `preprocessor_config.json`: MobileViT and SwiftFormer.

In: the two files. Out: what they say. Values that the networks here do not have are errors, as far as no tensor shows
them: the activation, for example.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model_store.hub.errors import HubError
from model_store.hub.said import Said, numbers, read_json, typed
from model_store.hub.timm import by_number

_LAYOUTS = {"mobilevit": "transformers", "swiftformer": "swiftformer_transformers"}
_TASKS = {"ForImageClassification": "classify", "ForSemanticSegmentation": "segment"}
_VARIANTS: Mapping[str, tuple[str, Mapping[tuple[int, ...], str]]] = {
    "mobilevit": ("hidden_sizes", {(64, 80, 96): "xxs", (96, 120, 144): "xs", (144, 192, 240): "s"}),
    "swiftformer": (
        "embed_dims",
        {(48, 56, 112, 220): "xs", (48, 64, 168, 224): "s", (48, 96, 192, 384): "l1", (64, 128, 320, 512): "l3"},
    ),
}
# What no tensor shows: the value that the network here has.
_FIXED: Mapping[str, Mapping[str, object]] = {
    "mobilevit": {
        "hidden_act": "silu", "num_attention_heads": 4, "layer_norm_eps": 1e-5, "patch_size": 2, "num_channels": 3,
        "conv_kernel_size": 3, "qkv_bias": True,
    },
    "swiftformer": {"hidden_act": "gelu", "batch_norm_eps": 1e-5, "num_channels": 3, "use_layer_scale": True},
}  # fmt: skip
_PLACEHOLDER = "LABEL_"  # transformers writes LABEL_0, LABEL_1, ... where nobody named the classes
_FILTERS = {2: "bilinear", 3: "bicubic"}  # numbers of Pillow


def is_transformers(config: dict[str, Any]) -> bool:
    """Whether a `config.json` is one of transformers."""
    return isinstance(config.get("model_type"), str)


def read(path: Path, said: Said) -> None:
    """Add what `config.json` says, and the `preprocessor_config.json` beside it. Raises `HubError`."""
    config = read_json(path)
    family = config["model_type"]
    if family not in _LAYOUTS:
        raise HubError(
            f"{path} model_type {family!r} is none of `mobilevision models list`; save the model as TorchScript, and "
            "serve that with `mobilevision models add`"
        )
    said.say("layout", _LAYOUTS[family], f"{path} model_type")
    for key, ours in _FIXED[family].items():
        if config.get(key, ours) != ours:
            raise HubError(f"{path} {key} is {config[key]!r}; the network of this project has {ours!r}")
    task = _task(config, path)
    _base(config, family, task, path, said)
    if task == "segment":
        _head(config, path, said)
    _labels(config, path, said)
    processor = path.parent / "preprocessor_config.json"
    if processor.is_file():
        _preprocess(read_json(processor), family, processor, said)
    else:
        said.notes.append(f"{path.parent} has no preprocessor_config.json: preprocessing is not said")


def _task(config: dict[str, Any], path: Path) -> str | None:
    for name in typed(config, "architectures", list, f"{path} architectures") or []:
        for end, task in _TASKS.items():
            if str(name).endswith(end):
                return task
        raise HubError(f"{path} architectures: {name} has no head that is served; there are {', '.join(_TASKS)}")
    return None


def _base(config: dict[str, Any], family: str, task: str | None, path: Path, said: Said) -> None:
    key, variants = _VARIANTS[family]
    given = typed(config, key, list, f"{path} {key}")
    if given is None:  # the tensors tell
        return
    widths = tuple(given)
    variant = variants.get(widths)
    if variant is None:
        raise HubError(f"{path} {key} is {list(widths)}; the networks of this project have {_list(variants)}")
    if task is not None:
        said.say("base", f"{family}_{variant}_{task}", f"{path} {key}")


def _head(config: dict[str, Any], path: Path, said: Said) -> None:
    said.say("output_stride", typed(config, "output_stride", int, f"{path} output_stride"), f"{path} output_stride")
    said.say("rates", numbers(config, "atrous_rates", 3, f"{path} atrous_rates"), f"{path} atrous_rates")
    width = typed(config, "aspp_out_channels", int, f"{path} aspp_out_channels")
    said.say("head_width", width, f"{path} aspp_out_channels")


def _labels(config: dict[str, Any], path: Path, said: Said) -> None:
    place = f"{path} id2label"
    given = typed(config, "id2label", dict, place)
    said.say("classes", typed(config, "num_labels", int, f"{path} num_labels"), f"{path} num_labels")
    if given is None:
        return
    names = by_number(given, place)
    said.say("classes", len(names), place)
    if all(name == f"{_PLACEHOLDER}{number}" for number, name in enumerate(names)):
        said.unclear["labels"] = f"{place} has only LABEL_0, LABEL_1, ...; give --labels"
    elif not all(isinstance(name, str) for name in names):
        raise HubError(f"{place}: every label must be text")
    else:
        said.say("labels", names, place)


def _preprocess(config: dict[str, Any], family: str, path: Path, said: Said) -> None:
    kind = config.get("image_processor_type") or config.get("feature_extractor_type") or ""
    mobilevit = str(kind).startswith("MobileViT") or (not kind and family == "mobilevit")
    _normalise(config, path, said, mobilevit=mobilevit)
    said.say("antialias", True, f"{path}: transformers resizes with antialiasing")
    resample = typed(config, "resample", int, f"{path} resample")
    if resample is None:
        said.unclear["interpolation"] = (
            f"{path} has no resample, and its default differs between versions of transformers; add it: 2 is bilinear, "
            "3 is bicubic"
        )
    elif resample not in _FILTERS:
        said.unclear["interpolation"] = f"{path} resample {resample} is not served; 2 is bilinear, 3 is bicubic"
    else:
        said.say("interpolation", _FILTERS[resample], f"{path} resample")
    _resize(config, path, said, mobilevit=mobilevit)
    if config.get("do_reduce_labels"):
        said.notes.append(f"{path} do_reduce_labels: class 0 of the masks was left out; labels begin with class 1")


def _normalise(config: dict[str, Any], path: Path, said: Said, *, mobilevit: bool) -> None:
    flips = config.get("do_flip_channel_order", mobilevit)
    said.say("channels", "BGR" if flips else "RGB", f"{path} do_flip_channel_order")
    scale = 1.0 if config.get("do_rescale") is False else config.get("rescale_factor", 1 / 255)
    if not isinstance(scale, int | float) or abs(scale - 1 / 255) > 1e-6:
        raise HubError(f"{path} do_rescale, rescale_factor: values must be scaled to 0..1 (1/255)")
    # The processor of MobileViT does not normalise, although its file has image_mean and image_std.
    if mobilevit or not config.get("do_normalize", True):
        said.say("mean", [0.0, 0.0, 0.0], f"{path}: not normalised")
        said.say("std", [1.0, 1.0, 1.0], f"{path}: not normalised")
        return
    for key, name in (("mean", "image_mean"), ("std", "image_std")):
        said.say(key, numbers(config, name, 3, f"{path} {name}"), f"{path} {name}")


def _resize(config: dict[str, Any], path: Path, said: Said, *, mobilevit: bool) -> None:
    size, crop = _size(config, "size", path), _size(config, "crop_size", path)
    resized, cropped = config.get("do_resize", True), config.get("do_center_crop", mobilevit)
    if resized and cropped and size and crop and "shortest_edge" in size and "height" in crop:
        said.say("resize", "crop", f"{path} do_center_crop")
        said.say("shorter_side_px", size["shortest_edge"], f"{path} size")
        said.say("crop_offset", "floor", f"{path}: the crop of transformers")
        _input(crop, f"{path} crop_size", said)
    elif resized and not cropped and size and "height" in size:
        said.say("resize", "squash", f"{path} size")
        _input(size, f"{path} size", said)
    elif resized and cropped and size and size == crop:
        said.say("resize", "squash", f"{path} size")  # the crop leaves the picture as it is
        _input(size, f"{path} size", said)
    else:
        if crop and cropped and "height" in crop:
            _input(crop, f"{path} crop_size", said)
        said.unclear["resize"] = (
            f"{path}: do_resize {resized}, do_center_crop {cropped}, size {size}, crop_size {crop} is not served "
            "exactly; give --resize squash or crop and --input WIDTHxHEIGHT, and measure what that changes"
        )


def _size(config: dict[str, Any], key: str, path: Path) -> dict[str, int] | None:
    value = typed(config, key, (int, dict), f"{path} {key}")
    if isinstance(value, int):  # the form of old files
        return {"shortest_edge": value} if key == "size" else {"height": value, "width": value}
    if value is not None and not all(isinstance(each, int) for each in value.values()):
        raise HubError(f"{path} {key} has {value}, not whole numbers")
    return None if value is None else dict(value)


def _input(size: Mapping[str, int], place: str, said: Said) -> None:
    said.say("width", size.get("width"), place)
    said.say("height", size.get("height"), place)


def _list(variants: Mapping[tuple[int, ...], str]) -> str:
    return ", ".join(f"{list(widths)} ({variant})" for widths, variant in variants.items())
