"""Export: from an entry and weights to the card and the TorchScript module of an archive.

The module takes uint8 [N, H, W, 3] RGB, already at the card's size, and returns a tuple of tensors of fixed shape per
picture (see `model_store.networks.tasks`). Normalisation, network and post-processing are inside. N is free, and rows
do not influence each other. Weights are float32 and may be moved to another dtype later (`module.to(dtype)`): the input
is normalised in float32 and cast to the dtype of the weights, and post-processing runs in float32. Equal entries and
weights give equal bytes, on any machine with the same torch.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from handlers.contract.card import Card, Output, Recipe, Weights, WeightsState
from model_store import zoo
from model_store.build import assemble, fits, fitting, parity
from model_store.build.compiler import compile_entry
from model_store.definition.resolve import base_of, resolve, with_layout
from model_store.definition.schema import Definition
from model_store.demo import checkpoints
from model_store.networks.heads.registry import head_of
from model_store.weights import container, layouts
from model_store.weights import load as weights

_DTYPES: dict[torch.dtype, Any] = {torch.float32: "float32", torch.int32: "int32", torch.uint8: "uint8"}


@dataclass(frozen=True)
class Exported:
    """What an archive is made of: its card and the bytes of its TorchScript module."""

    card: Card
    module_bytes: bytes


def describe_outputs(entry: zoo.ModelSpec, module: nn.Module, pixels: Tensor) -> tuple[Output, ...]:
    """Names, dtypes and shapes (without N) of what the served module of an entry returns for uint8 [N, H, W, 3]."""
    with torch.inference_mode():
        answers = module(pixels)
    return tuple(
        Output(name=name, dtype=_DTYPES[answer.dtype], shape=tuple(answer.shape[1:]))
        for name, answer in zip(head_of(entry).contract.outputs, answers, strict=True)
    )


@dataclass(frozen=True, slots=True)
class Origin:
    """Where the weights come from, in the words of the card."""

    state: WeightsState
    source: str
    published: Mapping[str, float] = field(default_factory=dict)


def export_network(entry: zoo.ModelSpec, network: assemble.Network, origin: Origin, recipe: Recipe) -> Exported:
    """Make the module and the card of a network whose weights are in place. Raises `ExportError`."""
    own = {name: value.detach().cpu() for name, value in network.state_dict().items()}
    compiled = compile_entry(entry, own)
    card = Card(
        name=entry.name,
        task=entry.task,
        family=entry.family,
        variant=entry.variant,
        head=entry.head.name,
        paper=entry.paper,
        input=entry.input,
        preprocess=entry.preprocess,
        normalize=entry.normalize,
        labels=entry.labels.names,
        label_colours=entry.labels.colours,
        outputs=describe_outputs(entry, assemble.served(entry, network), parity.sample_pixels(entry, 1)),
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        macs=assemble.count_macs(network, entry.input.height, entry.input.width),
        weights=Weights(
            state=origin.state,
            source=origin.source,
            sha256=weights.digest(own),
            licence=entry.licence if origin.state in {WeightsState.OFFICIAL, WeightsState.CUSTOM} else "",
            published=dict(origin.published),
        ),
        recipe=recipe.model_copy(update={"backbone": _options(entry.backbone), "head": _options(entry.head)}),
        parity=compiled.parity,
        bfloat16=compiled.bfloat16,
        module_sha256=hashlib.sha256(compiled.module_bytes).hexdigest(),
    )
    return Exported(card=card, module_bytes=compiled.module_bytes)


def export(
    name: str,
    *,
    checkpoint: Path | None,
    seed: int = 0,
    layout: str | None = None,
    source: str | None = None,
    official: bool = False,
) -> Exported:
    """Export the entry of the zoo called `name` with the weights of a checkpoint, or with random weights.

    Args:
        name: of an entry of the zoo.
        checkpoint: file with the weights; None for random weights.
        seed: of the random weights.
        layout: key layout of the checkpoint; None for that of the official checkpoint. Where the layout belongs to
            another channel order, preprocessing or option of the backbone, the card and the module follow the layout.
        source: origin of the checkpoint in the words of the card; None for the name of the file.
        official: whether the checkpoint is the one that the authors published.

    Raises `zoo.UnknownModel`, `layouts.UnknownLayout`, `CheckpointError`, `ExportError`.

    """
    entry = zoo.get(name)
    recipe = Recipe(base=name)
    if checkpoint is None:
        return _export_random(entry, seed, recipe)
    if checkpoint == entry.committed_checkpoint:
        record = checkpoints.records()[name]
        scores = {metric: round(100 * score, 2) for metric, score in record.scores.items()}
        network = _network(entry)
        weights.load(network, checkpoints.read(name), layouts.get(entry.layout))
        recipe = recipe.model_copy(update={"layout": entry.layout})
        return export_network(entry, network, Origin(WeightsState.DEMO, checkpoints.SOURCE, scores), recipe)
    read = container.read(checkpoint)
    chosen = layouts.get(layout) if layout else fitting.layout_of(read.state, entry)
    entry = with_layout(entry, chosen)
    network = _network(entry)
    fitting.load(network, read.state, chosen, entry)
    # The published score belongs to the official file under its own layout; another layout is another checkpoint.
    published = entry.published if official and chosen.name == entry.layout else {}
    state = WeightsState.OFFICIAL if official else WeightsState.CUSTOM
    licensed = entry if official else replace(entry, licence="")  # the licence is that of the official weights
    recipe = recipe.model_copy(update={"layout": chosen.name, "weight_set": read.weight_set})
    return export_network(licensed, network, Origin(state, source or checkpoint.name, published), recipe)


@dataclass(frozen=True)
class Defined:
    """An exported definition. `assumed` is what it left out, `notes` what was found in the checkpoint."""

    exported: Exported
    assumed: Mapping[str, str]
    notes: tuple[str, ...] = ()


def export_definition(definition: Definition, text: str, *, seed: int = 0) -> Defined:
    """Export a definition with a base. `text` is that of its file.

    Raises `DefinitionError`, `layouts.UnknownLayout`, `CheckpointError`, `ExportError`.
    """
    recipe = Recipe(
        base=definition.base or "",
        definition=text,
        definition_sha256=hashlib.sha256(text.encode()).hexdigest(),
    )
    checkpoint = definition.checkpoint
    if checkpoint is None:
        resolved = resolve(definition, None)
        return Defined(_versioned(_export_random(resolved.entry, seed, recipe), definition), resolved.assumed)
    read = container.read(checkpoint, definition.weights)
    found = fitting.recognised(read.state, _shaped(base_of(definition), definition), definition.layout)
    if definition.labels is None and len(read.labels) == found.classes:
        definition = definition.model_copy(update={"labels": read.labels})
    resolved = resolve(definition, found.layout)
    fitting.check_labels(resolved.entry, found, checkpoint)
    network = _network(resolved.entry)
    weights.load(network, read.state, found.layout)
    origin = Origin(WeightsState.CUSTOM, checkpoint.name, resolved.entry.published)
    recipe = recipe.model_copy(update={"layout": found.layout.name, "weight_set": read.weight_set})
    exported = export_network(resolved.entry, network, origin, recipe)
    notes = (f"the checkpoint is {found}", *fitting.notes(found, definition.layout), *read.notes)
    return Defined(_versioned(exported, definition), resolved.assumed, notes)


def _shaped(base: zoo.ModelSpec, definition: Definition) -> zoo.ModelSpec:
    """The base with the head and the backbone of a definition, on which the shapes of a checkpoint depend."""
    entry = resolve(definition, None).entry
    fits.check(entry)
    return replace(base, head=entry.head, backbone=entry.backbone)


def _network(entry: zoo.ModelSpec) -> assemble.Network:
    """The network of an entry, with fresh weights. Raises `ExportError` where it could not be served."""
    fits.check(entry)
    return assemble.build(entry)


def _export_random(entry: zoo.ModelSpec, seed: int, recipe: Recipe) -> Exported:
    network = _network(entry)
    weights.random_(network, seed)
    return export_network(entry, network, Origin(WeightsState.RANDOM, f"random, seed {seed}"), recipe)


def _versioned(exported: Exported, definition: Definition) -> Exported:
    return replace(exported, card=exported.card.model_copy(update={"version": definition.version}))


def _options(spec: zoo.BackboneSpec | zoo.HeadSpec) -> dict[str, Any]:
    """The options of a backbone or head that have a value, by name."""
    return {each.name: value for each in fields(spec) if (value := getattr(spec, each.name)) is not None}
