"""Read a folder of a model hub: its configuration, its weights, and whether both mean the same model.

In: a folder, and what the person says beside it. Out: the keys of a definition, and notes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model_store import labels as label_sets
from model_store import zoo
from model_store.build.recognise import Found, layouts_for, recognise
from model_store.hub import openmmlab, timm, transformers, weights
from model_store.hub.errors import HubError
from model_store.hub.said import Said, read_json
from model_store.labels.own import LabelError, read_file
from model_store.weights import container, layouts

OPTIONS = "the command line"


@dataclass(frozen=True, slots=True)
class HubModel:
    """The keys of a definition, as `definition.read.parse` takes them.

    `notes`: what a person should know. `missing`: what the person has to give, with the reason.
    """

    content: dict[str, Any]
    notes: tuple[str, ...]
    missing: tuple[str, ...]


def read(folder: Path, *, name: str, given: Mapping[str, Any]) -> HubModel:
    """Read a folder for a model that is called `name`.

    `given` has what the person says, by the keys of `said.KEYS`, and `version` and `weights` of a definition. Raises
    `HubError` where two places contradict each other, and `CheckpointError`.
    """
    if not folder.is_dir():
        raise HubError(f"{folder}: no such folder")
    said = Said()
    for key, value in given.items():
        if key not in {"version", "weights", "labels"}:
            said.say(key, value, OPTIONS)
    if given.get("labels") is not None:
        said.say("labels", _names(given["labels"]), OPTIONS)
    _configuration(folder, said)
    checkpoint = said.get("checkpoint")
    path = weights.find(folder, said) if checkpoint is None else Path(checkpoint)
    read = container.read(path, given.get("weights"))
    if read.labels:
        said.say("labels", list(read.labels), f"{path} meta.classes")
    _check(_found(read.state, path, said), path, said)
    said.say("checkpoint", str(path.resolve()) if checkpoint is None else checkpoint, str(folder))
    others = {key: given[key] for key in ("version", "weights") if given.get(key) is not None}
    content = {"name": name, **others, **said.content()}
    if given.get("labels") is not None:
        content["labels"] = given["labels"]  # the file may have colours
    return HubModel(content, tuple(said.notes), said.missing)


def _names(labels: str) -> list[str]:
    """The labels in a file, or of a set of the project."""
    try:
        path = Path(labels)
        return list(
            label_sets.read(labels) if labels in label_sets.SIZES and not path.exists() else read_file(path).names
        )
    except LabelError as error:
        raise HubError(f"labels: {error}") from error


def _configuration(folder: Path, said: Said) -> None:
    config = folder / "config.json"
    if config.is_file():
        content = read_json(config)
        if timm.is_timm(content):
            return timm.read(config, said)
        if transformers.is_transformers(content):
            return transformers.read(config, said)
        raise HubError(f"{config}: has neither architecture (timm) nor model_type (transformers)")
    scripts = sorted(folder.glob("*.py"))
    if len(scripts) == 1:
        return openmmlab.read(scripts[0], said)
    if scripts:
        raise HubError(f"{folder}: several .py files; leave the one configuration of the weights there")
    raise HubError(f"{folder}: no config.json (timm, transformers) and no .py configuration (OpenMMLab)")


def _found(state: Mapping[str, Any], path: Path, said: Said) -> Found:
    """What the tensors are, tried in the layout and as the base that the configuration says, then in all."""
    layout, base = said.get("layout"), said.get("base")
    if base is not None and base not in zoo.names():
        raise HubError(f"{said.place('base')}: no model is called {base!r}; `mobilevision models list` shows all names")
    if layout is not None and layout not in layouts.LAYOUTS:
        raise HubError(f"{said.place('layout')}: no layout is called {layout!r}")
    first = [zoo.get(base)] if base is not None else list(zoo.ENTRIES)
    candidates = layouts_for(first[0]) if base is not None else list(layouts.LAYOUTS.values())
    if layout is not None:
        candidates = [layouts.get(layout)]
    found = recognise(state, first, candidates) or recognise(state, zoo.ENTRIES, layouts.LAYOUTS.values())
    if found is None:
        raise HubError(
            f"{path}: the tensors are those of no model in `mobilevision models list`; save the model as TorchScript, "
            "and serve that with `mobilevision models add`"
        )
    return found


def _check(found: Found, path: Path, said: Said) -> None:
    """Join what the tensors say with the rest. Raises `HubError` where they contradict each other."""
    said.say("base", found.entry.name, str(path))
    said.say("layout", found.layout.name, str(path))
    said.say("classes", found.classes, str(path))
    labels = said.get("labels")
    if isinstance(labels, list) and len(labels) != found.classes:
        raise HubError(
            f"{said.place('labels')} has {len(labels)} labels, {path} has {found.classes} classes; correct one"
        )
    if labels is None and "labels" not in said.unclear and found.classes != found.entry.classes:
        said.unclear["labels"] = f"{path} has {found.classes} classes, and the folder has no labels; give --labels"
