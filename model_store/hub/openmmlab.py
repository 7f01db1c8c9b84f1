"""OpenMMLab's configuration, a Python file, beside a `.pth` (mmdetection, mmsegmentation).

The file is parsed, never executed. Assignments of plain values are understood: numbers, text, lists, tuples,
`dict(...)`, names assigned before. What else stands there is named in a note, and so are the files of `_base_`, which
are not read.
"""

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from model_store.hub.errors import HubError
from model_store.hub.said import MAX_BYTES, Said, numbers, typed
from model_store.weights.errors import listed

_UNKNOWN = object()
_MAX_DEPTH = 50
_SHOWN = 6


def read(path: Path, said: Said) -> None:
    """Add what the file says. Raises `HubError`."""
    config, unknown = _literals(path)
    model = typed(config, "model", dict, f"{path} model") or {}
    _head(model, path, said)
    _labels(config, path, said)
    _normalise(config, model, path, said)
    _resize(config, path, said)
    bases = config.get("_base_")
    if bases:
        names = ", ".join(bases) if isinstance(bases, list) else str(bases)
        said.notes.append(f"{path} _base_: {names} not read; what stands there only is not known here")
    if unknown:
        said.notes.append(f"{path}: not understood, because they are no plain values: {listed(unknown, _SHOWN)}")


def _literals(path: Path) -> tuple[dict[str, Any], list[str]]:
    """The plain values that a Python file assigns to names, and what is none. Raises `HubError`."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise HubError(f"{path}: over {MAX_BYTES // 2**20} MiB; is it a configuration?")
        tree = ast.parse(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise HubError(f"{path}: {error.strerror or error}") from error
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise HubError(f"{path}: not a Python file ({str(error).partition(chr(10))[0]})") from error
    names: dict[str, Any] = {}
    unknown: list[str] = []
    for statement in tree.body:
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
            continue  # a docstring
        if not isinstance(statement, ast.Assign) or not all(isinstance(name, ast.Name) for name in statement.targets):
            unknown.append(f"line {statement.lineno}")
            continue
        missed: list[str] = []
        value = _value(statement.value, names, missed, 0)
        for target in statement.targets:
            if isinstance(target, ast.Name):
                unknown += [f"{target.id}{where}" for where in missed]
                names[target.id] = None if value is _UNKNOWN else value
    return names, unknown


def _value(node: ast.expr, names: Mapping[str, Any], missed: list[str], depth: int) -> Any:
    """The plain value of an expression; `_UNKNOWN`, and its line in `missed`, where it is none."""
    if depth < _MAX_DEPTH:
        if isinstance(node, ast.Constant):
            return node.value
        if isinstance(node, ast.Name) and node.id in names:
            return names[node.id]
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            value = _value(node.operand, names, missed, depth + 1)
            if isinstance(value, int | float):
                return -value
        if isinstance(node, ast.List | ast.Tuple):
            parts = [_value(each, names, missed, depth + 1) for each in node.elts]
            return [None if part is _UNKNOWN else part for part in parts]
        pairs = list(_pairs(node))
        if pairs or (isinstance(node, ast.Dict) and not node.keys) or _is_dict_call(node):
            found = {key: _value(each, names, missed, depth + 1) for key, each in pairs}
            return {key: value for key, value in found.items() if value is not _UNKNOWN}
    missed.append(f" (line {node.lineno})")
    return _UNKNOWN


def _is_dict_call(node: ast.expr) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict" and not node.args


def _pairs(node: ast.expr) -> Iterator[tuple[str, ast.expr]]:
    """The keys and values of `{...}` and of `dict(...)`, as far as the keys are text."""
    if isinstance(node, ast.Dict):
        for key, value in zip(node.keys, node.values, strict=True):
            if isinstance(key, ast.Constant) and isinstance(key.value, str):
                yield key.value, value
    elif isinstance(node, ast.Call) and _is_dict_call(node):
        yield from ((keyword.arg, keyword.value) for keyword in node.keywords if keyword.arg is not None)


def _head(model: Mapping[str, Any], path: Path, said: Said) -> None:
    for name in ("bbox_head", "decode_head", "head"):
        head = typed(model, name, dict, f"{path} model.{name}")
        if head is None:
            continue
        place = f"{path} model.{name}"
        said.say("classes", typed(head, "num_classes", int, f"{place}.num_classes"), f"{place}.num_classes")
        if name == "decode_head":
            said.say("head_width", typed(head, "channels", int, f"{place}.channels"), f"{place}.channels")
            said.say("align_corners", typed(head, "align_corners", bool, f"{place}"), f"{place}.align_corners")
            rates = numbers(head, "dilations", 4, f"{place}.dilations")
            said.say("rates", None if rates is None else rates[1:], f"{place}.dilations")  # the first is the 1x1 branch
    test = typed(model, "test_cfg", dict, f"{path} model.test_cfg") or {}
    place = f"{path} model.test_cfg"
    said.say("score_threshold", typed(test, "score_thr", (int, float), f"{place}.score_thr"), f"{place}.score_thr")
    said.say("max_boxes", typed(test, "max_per_img", int, f"{place}.max_per_img"), f"{place}.max_per_img")
    nms = typed(test, "nms", dict, f"{place}.nms") or {}
    threshold = typed(nms, "iou_threshold", (int, float), f"{place}.nms.iou_threshold")
    said.say("iou_threshold", threshold, f"{place}.nms.iou_threshold")


def _labels(config: Mapping[str, Any], path: Path, said: Said) -> None:
    places: list[tuple[str, Any]] = [(key, config) for key in ("classes", "CLASSES")]
    for way in ("metainfo", "test_dataloader.dataset.metainfo", "data.test", "val_dataloader.dataset.metainfo"):
        value: Any = config
        for key in way.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        if isinstance(value, dict):
            places += [(f"{way}.classes", value), (f"{way}.CLASSES", value)]
    for name, content in places:
        names = content.get(name.rpartition(".")[2])
        if isinstance(names, str):
            names = [names]
        if names is not None and not (isinstance(names, list) and all(isinstance(each, str) for each in names)):
            raise HubError(f"{path} {name}: not a list of labels")
        said.say("labels", names, f"{path} {name}")


def _normalise(config: Mapping[str, Any], model: Mapping[str, Any], path: Path, said: Said) -> None:
    """Mean and std are of values in 0..255 there, in the order after the swap of channels."""
    found = [
        ("img_norm_cfg", config.get("img_norm_cfg"), "to_rgb", True),
        ("model.data_preprocessor", model.get("data_preprocessor"), "bgr_to_rgb", False),
        ("data_preprocessor", config.get("data_preprocessor"), "bgr_to_rgb", False),
        *(("test_pipeline Normalize", step, "to_rgb", True) for step in _steps(config) if _is(step, "Normalize")),
    ]
    for name, content, key, default in found:
        if not isinstance(content, dict):
            continue
        place = f"{path} {name}"
        for ours in ("mean", "std"):
            values = numbers(content, ours, 3, f"{place}.{ours}")
            said.say(ours, None if values is None else [value / 255 for value in values], f"{place}.{ours}")
        if content.get("mean") is not None:
            said.say("channels", "RGB" if content.get(key, default) else "BGR", f"{place}.{key}")


def _resize(config: Mapping[str, Any], path: Path, said: Said) -> None:
    steps = list(_steps(config))
    for step in steps:
        if not _is(step, "Resize"):
            continue
        place = f"{path} test_pipeline Resize"
        scale = next((step[key] for key in ("scale", "img_scale") if step.get(key) is not None), None)
        if scale is None:
            scale = next((each["img_scale"] for each in steps if each.get("img_scale") is not None), None)
        if isinstance(scale, list) and len(scale) == 2 and all(isinstance(each, int) for each in scale):
            said.say("width", scale[0], place)
            said.say("height", scale[1], place)
        said.say("interpolation", "bilinear", place)
        said.say("antialias", False, f"{place}: OpenCV's bilinear filter")
        if step.get("keep_ratio", False):
            said.unclear["resize"] = (
                f"{place}: keep_ratio is not served exactly, because every input has one size; give --resize squash or "
                "crop, and measure what that changes"
            )
        else:
            said.say("resize", "squash", place)


def _steps(config: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The steps of the test pipeline, and those inside of its steps."""
    pending = config.get("test_pipeline")
    pending = list(pending) if isinstance(pending, list) else []
    while pending:
        step = pending.pop(0)
        if isinstance(step, dict):
            yield step
            inner = step.get("transforms")
            pending = (list(inner) if isinstance(inner, list) else []) + pending


def _is(step: Mapping[str, Any], kind: str) -> bool:
    return str(step.get("type", "")).rpartition(".")[2] == kind
