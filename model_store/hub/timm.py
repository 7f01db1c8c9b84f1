"""timm's `config.json`: architecture, classes, labels and preprocessing.

In: the file. Out: what it says. Its evaluation transform is the one that counts: resize, crop the centre, normalise.
"""

import math
from pathlib import Path
from typing import Any

from model_store import zoo
from model_store.hub.errors import HubError
from model_store.hub.said import Said, numbers, read_json, typed

_LAYOUTS = {"mobilevit": "timm", "swiftformer": "swiftformer_timm"}
# What does not change the network, or is checked against the tensors anyway.
_NO_MATTER = {
    "num_classes", "in_chans", "global_pool", "drop_rate", "drop_path_rate", "pretrained", "checkpoint_path",
}  # fmt: skip


def is_timm(config: dict[str, Any]) -> bool:
    """Whether a `config.json` is one of timm."""
    return isinstance(config.get("architecture"), str)


def read(path: Path, said: Said) -> None:
    """Add what the file says. Raises `HubError`."""
    config = read_json(path)
    trained = typed(config, "pretrained_cfg", dict, f"{path} pretrained_cfg") or {}
    merged = {**config, **trained}  # before pretrained_cfg, files had its keys beside the others
    _architecture(config, path, said)
    said.say("classes", typed(config, "num_classes", int, f"{path} num_classes"), f"{path} num_classes")
    if "num_classes" in trained:
        said.say("classes", trained["num_classes"], f"{path} pretrained_cfg.num_classes")
    _labels(config, trained, path, said)
    _preprocess(merged, path, said)
    said.say("licence", typed(merged, "license", str, f"{path} license"), f"{path} license")
    arguments = typed(config, "model_args", dict, f"{path} model_args") or {}
    others = [key for key in arguments if key not in _NO_MATTER]
    if others:
        said.notes.append(f"{path} model_args.{', '.join(others)}: not understood; check that the answers are right")


def _architecture(config: dict[str, Any], path: Path, said: Said) -> None:
    name = config["architecture"].partition(".")[0]  # the tag behind the dot names the weights
    base = f"{name}_classify"
    if base not in zoo.names():
        raise HubError(
            f"{path} architecture {name!r} is none of `mobilevision models list`; save the model as TorchScript, and "
            "serve that with `mobilevision models add`"
        )
    said.say("base", base, f"{path} architecture")
    said.say("layout", _LAYOUTS.get(zoo.get(base).family), f"{path} architecture")


def _labels(config: dict[str, Any], trained: dict[str, Any], path: Path, said: Said) -> None:
    for where, content in (("label_names", config), ("pretrained_cfg.label_names", trained)):
        place = f"{path} {where}"
        names = typed(content, "label_names", (list, dict), place)
        if isinstance(names, dict):
            names = by_number(names, place)
        if names is not None and not all(isinstance(name, str) for name in names):
            raise HubError(f"{place}: every label must be text")
        said.say("labels", names, place)
    descriptions = config.get("label_descriptions")
    if descriptions and said.get("labels") is None and isinstance(descriptions, dict):
        said.say("labels", list(descriptions), f"{path} label_descriptions")
    elif descriptions:
        said.notes.append(f"{path} label_descriptions: not served; answers have label_names")


def by_number(names: dict[str, Any], place: str) -> list[Any]:
    """The labels of an object from class number to label. Raises `HubError` where numbers are missing."""
    try:
        numbered = {int(number): name for number, name in names.items()}
    except ValueError as error:
        raise HubError(f'{place}: keys must be class numbers, such as "0"') from error
    if sorted(numbered) != list(range(len(numbered))):
        raise HubError(f"{place}: class numbers must be 0 to {len(numbered) - 1}, each once; give --labels")
    return [numbered[number] for number in range(len(numbered))]


def _preprocess(config: dict[str, Any], path: Path, said: Said) -> None:
    size = numbers(config, "input_size", 3, f"{path} input_size")
    said.say("channels", "RGB", f"{path}: timm reads pictures as RGB")
    for key in ("mean", "std"):
        said.say(key, numbers(config, key, 3, f"{path} {key}"), f"{path} {key}")
    interpolation = typed(config, "interpolation", str, f"{path} interpolation")
    if interpolation in {"bilinear", "bicubic"}:
        said.say("interpolation", interpolation, f"{path} interpolation")
    elif interpolation is not None:
        said.unclear["interpolation"] = (
            f"{path} interpolation {interpolation!r} is not served; train or evaluate with bilinear or bicubic"
        )
    said.say("antialias", True, f"{path}: timm resizes with Pillow")
    for key in ("test_input_size", "test_crop_pct"):
        if config.get(key) is not None:
            said.notes.append(f"{path} {key} {config[key]}: not used; timm uses it where asked for only")
    if size is None:
        return
    channels, height, width = (int(each) for each in size)
    if channels != 3:
        raise HubError(f"{path} input_size has {channels} channels; pictures have 3")
    said.say("width", width, f"{path} input_size")
    said.say("height", height, f"{path} input_size")
    _crop(config, width, height, path, said)


def _crop(config: dict[str, Any], width: int, height: int, path: Path, said: Said) -> None:
    share = typed(config, "crop_pct", (int, float), f"{path} crop_pct")
    mode = typed(config, "crop_mode", str, f"{path} crop_mode") or "center"
    share = 0.875 if share is None else share  # timm's default
    if not 0 < share <= 1:
        raise HubError(f"{path} crop_pct has {share}; it is a share of the picture, above 0 and at most 1")
    if mode == "squash" and share == 1:
        said.say("resize", "squash", f"{path} crop_mode")
    elif mode == "center" and width == height:
        said.say("resize", "crop", f"{path} crop_mode")
        said.say("shorter_side_px", math.floor(width / share), f"{path} crop_pct")
        said.say("crop_offset", "round", f"{path}: timm's crop")
    else:
        said.unclear["resize"] = (
            f"{path}: crop_mode {mode!r} with crop_pct {share} to {width}x{height} is not served exactly; "
            "give --resize squash or crop, and measure what that changes"
        )
