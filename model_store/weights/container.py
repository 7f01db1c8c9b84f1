"""Which tensors of a checkpoint are the weights, whatever framework wrote it.

In: a file. Out: a `Checkpoint`: one set of named tensors, and sentences that say what was chosen, stripped and dropped.
Frameworks keep the weights beside other things, under a key, with a prefix before every name, and sometimes twice: as
they were trained (raw), and averaged over the training (EMA).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from model_store.weights.errors import CheckpointError, listed
from model_store.weights.file import read_content

WeightSet = Literal["raw", "ema"]

# Where frameworks keep the weights: PyTorch's examples, OpenMMLab, Lightning, timm, DeiT, EMO, basicsr, ultralytics.
_RAW = ("state_dict", "model", "model_state_dict", "model_state", "net", "network", "weights", "params", "module")
_AVERAGED = (
    "state_dict_ema",
    "model_ema",
    "ema_state_dict",
    "ema",
    "ema_model",
    "net_E",
    "params_ema",
    "averaged_model",
)
_NOT_WEIGHTS = re.compile(r"optim|sched|scaler|loss|history|callback|hyper_param|rng|meta|message_hub|args|config")
_WRAPPERS = ("_orig_mod",)  # torch.compile puts this before the names of what it compiled

# Tensors that no network of ours has, and that do not change an answer: counters of averaging and of profilers.
# mmcv keeps an averaged copy of each tensor as `ema_` and its name with `_` for each dot.
_IRRELEVANT = re.compile(r"(^|\.)(n_averaged|num_updates|total_ops|total_params|initted|steps?)$|^ema_[a-z0-9_]+$")
_SHOWN = 4


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The weights of a file.

    Attributes:
        state: the tensors by name, without wrappers' prefixes.
        weight_set: the key under which the set was, where the file has several; else empty.
        notes: what was chosen, stripped and dropped, one sentence each.
        labels: class names that the file itself has (OpenMMLab); empty without.

    """

    state: dict[str, Tensor]
    weight_set: str
    notes: tuple[str, ...]
    labels: tuple[str, ...]


def read(path: Path, which: WeightSet | None = None) -> Checkpoint:
    """Read the weights in a file, or in a folder of shards.

    `which`: the raw or the averaged set. None: the averaged one if there are both. Raises `CheckpointError`.
    """
    content = read_content(path)
    try:
        return unwrap(content, which)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def unwrap(content: Any, which: WeightSet | None = None) -> Checkpoint:
    """Find the weights in what a file holds. Raises `CheckpointError`."""
    if not isinstance(content, dict):
        raise CheckpointError(f"holds {type(content).__name__}, not a dict of tensors")
    sets = _sets(content)
    if not sets:
        raise CheckpointError("not a dict of tensors, and it has none inside; save the state_dict() of the model")
    key, averaged = _chosen(sets, which, swapped=_is_swapped(content))
    notes = []
    if len(sets) > 1:
        others = ", ".join(repr(other) for other in sets if other != key)
        kind = "averaged" if averaged else "raw"
        notes.append(f"took the {kind} weights, {key!r}; the file also has {others} (weights = raw or ema chooses)")
    state, dropped = _without_irrelevant(sets[key])
    state, stripped = _without_prefixes(state)
    if stripped:
        notes.append(f"stripped {stripped!r} from the names")
    if dropped:
        notes.append(f"dropped {listed(dropped, _SHOWN)}, which no answer depends on")
    named = {name for name, value in state.items() if isinstance(name, str) and isinstance(value, Tensor)}
    strangers = [str(name) for name in state if name not in named]
    if strangers:
        raise CheckpointError(f"these entries are not named tensors: {listed(strangers, _SHOWN)}")
    return Checkpoint(state, key if len(sets) > 1 else "", tuple(notes), _labels(content))


def _sets(content: Mapping[Any, Any]) -> dict[str, dict[Any, Any]]:
    """The sets of weights, by the path of their keys; the path is empty where the file is itself one set."""
    named = {key: value for key, value in content.items() if isinstance(key, str)}
    inner = {key: value for key in (*_RAW, *_AVERAGED) if isinstance(value := named.get(key), dict) and value}
    found: dict[str, dict[Any, Any]] = {}
    for key, value in inner.items():
        if _is_state(value):
            found[key] = value
        else:  # a container in a container
            found |= {f"{key}.{deeper}": state for deeper, state in _sets(value).items() if deeper}
    if found:
        return found
    if _is_state(content):
        return _split(dict(content))
    others = {
        key: value
        for key, value in named.items()
        if isinstance(value, dict) and not _NOT_WEIGHTS.search(key.lower()) and _is_state(value)
    }
    return {str(key): value for key, value in others.items()}


def _split(state: dict[Any, Any]) -> dict[str, dict[Any, Any]]:
    """Two sets where a module with its average was saved as one: names that begin with `model.` and `model_ema.`."""
    groups: dict[str, dict[Any, Any]] = {}
    for name, value in state.items():
        groups.setdefault(str(name).partition(".")[0], {})[name] = value
    raw, averaged = [key for key in groups if key in _RAW], [key for key in groups if key in _AVERAGED]
    if len(groups) == 2 and len(raw) == 1 and len(averaged) == 1:
        return groups
    return {"": state}


def _is_state(value: Mapping[Any, Any]) -> bool:
    """Whether most entries are tensors under names."""
    tensors = sum(isinstance(inner, Tensor) for inner in value.values())
    return tensors > 0 and 2 * tensors >= len(value)


def _is_swapped(content: Mapping[Any, Any]) -> bool:
    """Whether the averaged weights are under `state_dict`, the raw ones under `ema_state_dict`: mmengine saves so."""
    meta = content.get("meta")
    return isinstance(meta, dict) and "mmengine_version" in meta


def _chosen(sets: Mapping[str, Any], which: WeightSet | None, *, swapped: bool) -> tuple[str, bool]:
    """The key of the set to take, and whether it is an averaged one."""
    averaged = [key for key in sets if any(part in _AVERAGED for part in key.split("."))]
    raw = [key for key in sets if key not in averaged]
    if swapped and averaged and raw:
        averaged, raw = raw, averaged
    wanted = averaged if which == "ema" else raw if which == "raw" else averaged or raw
    if not wanted:
        raise CheckpointError(f"has no {which} weights; it has {listed([key or 'one set' for key in sets], _SHOWN)}")
    if len(wanted) > 1:
        raise CheckpointError(f"has several sets of weights: {listed(wanted, _SHOWN)}; save the one to serve alone")
    return wanted[0], wanted[0] in averaged


def _without_irrelevant(state: Mapping[Any, Any]) -> tuple[dict[Any, Any], list[str]]:
    dropped = [name for name in state if isinstance(name, str) and _IRRELEVANT.search(name)]
    return {name: value for name, value in state.items() if name not in dropped}, dropped


def _without_prefixes(state: dict[Any, Any]) -> tuple[dict[Any, Any], str]:
    """Remove what all names begin with, level by level. Needs two names at least: one alone has no common prefix."""
    if not all(isinstance(name, str) for name in state):
        return state, ""
    stripped = ""
    names = {name: _unwrapped(name) for name in state}
    wrapped = any(name != short for name, short in names.items())
    while len(names) > 1:
        heads = {short.partition(".")[0] for short in names.values()}
        if len(heads) > 1 or not all("." in short for short in names.values()):
            break
        head = heads.pop()
        stripped += f"{head}."
        names = {name: short.partition(".")[2] for name, short in names.items()}
    told = stripped + ("_orig_mod." if wrapped else "")
    return {names[name]: value for name, value in state.items()}, told


def _unwrapped(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _labels(content: Mapping[Any, Any]) -> tuple[str, ...]:
    """The class names that OpenMMLab keeps: `meta` -> `dataset_meta` -> `classes`, or `meta` -> `CLASSES` before."""
    meta = content.get("meta")
    places = [meta, meta.get("dataset_meta")] if isinstance(meta, dict) else []
    for place in places:
        for key in ("classes", "CLASSES"):
            names = place.get(key) if isinstance(place, dict) else None
            if isinstance(names, list | tuple) and names and all(isinstance(name, str) for name in names):
                return tuple(names)
    return ()
