"""From a definition to an entry like those of the zoo: what the definition leaves out comes from its base.

In: a `Definition`, and the layout of its checkpoint. Out: a `Resolved`, with a list of what was assumed. Precedence:
the definition, then the layout (some projects trained with another channel order or resize), then the base.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path

from handlers.contract.card import InputSize, Normalize, Preprocess
from model_store import zoo
from model_store.definition.errors import DefinitionError
from model_store.definition.schema import Definition
from model_store.labels import SIZES, LabelSet
from model_store.labels.own import LabelError, checked, read_file
from model_store.weights.layouts import Layout

# Key, the modes that have it, its value in other modes.
_KEYS_OF_MODES = (
    ("shorter_side_px", ("crop",), None),
    ("crop_share", ("cover",), None),
    ("crop_offset", ("crop", "cover"), "floor"),
)


@dataclass(frozen=True, slots=True)
class Resolved:
    """What a definition means.

    `assumed` maps each key that the definition leaves out, as it is written in the file, to the value that was taken.
    """

    entry: zoo.ModelSpec
    assumed: Mapping[str, str]


def with_layout(entry: zoo.ModelSpec, layout: Layout | None) -> zoo.ModelSpec:
    """Return the entry with what weights of a layout expect."""
    if layout is None:
        return entry
    if layout.channel_order is not None:
        entry = replace(entry, normalize=entry.normalize.model_copy(update={"channel_order": layout.channel_order}))
    if layout.preprocess is not None:
        entry = replace(entry, preprocess=layout.preprocess)
    if layout.backbone_options:
        entry = replace(entry, backbone=replace(entry.backbone, **layout.backbone_options))
    return entry


def base_of(definition: Definition) -> zoo.ModelSpec:
    """Return the entry of the zoo that a definition starts from. Raises `DefinitionError`."""
    if definition.base is None:
        raise DefinitionError(f"{definition.name}: has no base")
    try:
        return zoo.get(definition.base)
    except zoo.UnknownModel as error:
        raise DefinitionError(f"base: {error}") from error


def resolve(definition: Definition, layout: Layout | None) -> Resolved:
    """Fill in what the definition leaves out. Raises `DefinitionError`."""
    base = with_layout(base_of(definition), layout)
    if definition.name in zoo.names():
        raise DefinitionError(f"name: {definition.name} is a model of the zoo; give yours another name")
    entry = replace(
        base,
        name=definition.name,
        labels=labels_of(definition) or base.labels,
        input=_input(definition, base),
        preprocess=_preprocess(definition, base),
        normalize=_normalize(definition, base),
        backbone=_backbone(definition, base),
        head=_head(definition, base),
        licence=definition.licence,
        published=dict(definition.published),
        checkpoint_url="",
        committed=False,
    )
    return Resolved(entry, _assumed(definition, entry))


def labels_of(definition: Definition) -> LabelSet | None:
    """Return the labels that a definition gives, None where it gives none. Raises `DefinitionError`."""
    given = definition.labels
    try:
        if isinstance(given, Path):
            # The name of a set that comes with the project is no file: `labels = "coco80"`.
            return LabelSet(given.name) if given.name in SIZES and not given.exists() else read_file(given)
        return None if given is None else LabelSet(name="", own=checked(given, where="labels"))
    except LabelError as error:
        raise DefinitionError(f"labels: {error}" if isinstance(given, Path) else str(error)) from error


def preprocess_of(definition: Definition, base: Preprocess, *, base_input: InputSize, size: InputSize) -> Preprocess:
    """Return the preprocessing of a definition whose missing keys are those of `base`. Raises `DefinitionError`."""
    table = definition.preprocess
    values = base.model_dump()
    given = table.model_dump(exclude_none=True, exclude={"resize", "channels", "mean", "std"})
    values |= given
    if table.resize is not None:
        values["mode"] = table.resize
    mode = values["mode"]
    for key, modes, absent in _KEYS_OF_MODES:
        if mode not in modes:
            if key in given:
                raise DefinitionError(f'[preprocess] {key}: belongs to resize = "{modes[0]}"')
            values[key] = absent
    if mode == "crop" and "shorter_side_px" not in given:
        values["shorter_side_px"] = _scaled_side(base, base_input, size)
    if mode == "cover" and values["crop_share"] is None:
        values["crop_share"] = 1.0
    if values["interpolation"] == "bicubic" and "antialias" not in given:
        values["antialias"] = True
    try:
        return Preprocess.model_validate(values)
    except ValueError as error:
        raise DefinitionError(f"[preprocess]: {_first_message(error)}") from error


def _scaled_side(base: Preprocess, base_input: InputSize, size: InputSize) -> int:
    """Return the shorter side before the crop: the base's, scaled to the input at hand. Never below the input."""
    if base.shorter_side_px is None:
        return min(size.width, size.height)
    scale = min(size.width, size.height) / min(base_input.width, base_input.height)
    return max(round(base.shorter_side_px * scale), min(size.width, size.height))


def _input(definition: Definition, base: zoo.ModelSpec) -> InputSize:
    table = definition.input
    return base.input if table is None else InputSize(height=table.height, width=table.width)


def _preprocess(definition: Definition, base: zoo.ModelSpec) -> Preprocess:
    return preprocess_of(definition, base.preprocess, base_input=base.input, size=_input(definition, base))


def _normalize(definition: Definition, base: zoo.ModelSpec) -> Normalize:
    table = definition.preprocess
    given = {"channel_order": table.channels, "mean": table.mean, "std": table.std}
    return base.normalize.model_copy(update={key: value for key, value in given.items() if value is not None})


def _backbone(definition: Definition, base: zoo.ModelSpec) -> zoo.BackboneSpec:
    stride = definition.head.output_stride
    return base.backbone if stride is None else replace(base.backbone, output_stride=stride)


def _head(definition: Definition, base: zoo.ModelSpec) -> zoo.HeadSpec:
    given = definition.head.model_dump(exclude_none=True, exclude={"output_stride"})
    known = {field.name for field in fields(base.head)}
    for key in given:
        if key not in known:
            options = ", ".join(sorted(known & set(type(definition.head).model_fields))) or "none but output_stride"
            raise DefinitionError(
                f"[head] {key}: the head {base.head.name} of {base.name} has no such option; it has {options}"
            )
    return replace(base.head, **given)


def _assumed(definition: Definition, entry: zoo.ModelSpec) -> Mapping[str, str]:
    table = definition.preprocess
    values = {
        "labels": None if definition.labels is not None else entry.labels.name,
        "[input]": None
        if definition.input is not None
        else f"width = {entry.input.width}, height = {entry.input.height}",
        "[preprocess] resize": None if table.resize else entry.preprocess.mode,
        "[preprocess] shorter_side_px": None if table.shorter_side_px else _side_in_words(entry),
        "[preprocess] crop_share": None if table.crop_share else entry.preprocess.crop_share,
        "[preprocess] interpolation": None if table.interpolation else entry.preprocess.interpolation,
        "[preprocess] antialias": None if table.antialias is not None else str(entry.preprocess.antialias).lower(),
        "[preprocess] channels": None if table.channels else entry.normalize.channel_order,
        "[preprocess] mean": None if table.mean else list(entry.normalize.mean),
        "[preprocess] std": None if table.std else list(entry.normalize.std),
    }
    return {key: str(value) for key, value in values.items() if value is not None}


def _side_in_words(entry: zoo.ModelSpec) -> str | None:
    side = entry.preprocess.shorter_side_px
    if side is None:
        return None
    longer = max(entry.input.width, entry.input.height)
    bars = f' (some pictures get black bars, because the input has a side of {longer}; resize = "cover" has none)'
    return f"{side}{bars if side < longer else ''}"


def _first_message(error: ValueError) -> str:
    lines = [line.strip() for line in str(error).splitlines()]
    message = next((line for line in lines if line.startswith("Value error, ")), lines[-1])
    return message.removeprefix("Value error, ").partition(" [type=")[0]
