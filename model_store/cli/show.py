"""The commands `mobilevision models list` and `show`: tables on stdout. Neither needs torch.

Where an archive is built, its card says what it is: it may have been built from a checkpoint of another project, with
another input or preprocessing than the entry of the zoo.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from handlers.contract.card import Card, InputSize, Normalize, Preprocess
from model_store import zoo
from model_store.cli import archives, terminal


def list_models(
    out: Annotated[Path, typer.Option(help="Folder with the built archives.")] = terminal.ARCHIVES,
) -> None:
    """List every model: its task, its costs, and whether an archive of it is built, with which weights."""
    table = Table("model", "task", "input", "params", "MACs", "labels", "published", "archive", box=None)
    table.columns[0].no_wrap = True
    for card in archives.outside_the_zoo(out):
        _add(table, card.name, card, f"{len(card.labels)} own", archives.scores(card.weights.published), out)
    for entry in zoo.ENTRIES:
        built = archives.card_of(out, entry.name)
        facts = built if isinstance(built, Card) else entry
        _add(table, entry.name, facts, entry.labels.name, archives.scores(dict(entry.published)), out)
    terminal.stdout().print(table)


def _add(table: Table, name: str, facts: Card | zoo.ModelSpec, labels: str, scores: str, out: Path) -> None:
    table.add_row(
        name,
        facts.task.value,
        f"{facts.input.width}x{facts.input.height}",
        f"{facts.parameters / 1e6:.2f} M",
        f"{facts.macs / 1e9:.2f} G",
        labels,
        scores,
        archives.state(out, name),
    )


def show(
    name: Annotated[str, typer.Argument(help="Name of the model, as `list` shows it.")],
    out: Annotated[Path, typer.Option(help="Folder with the built archives.")] = terminal.ARCHIVES,
) -> None:
    """Show one model: the facts of its archive if one is built, else those of the zoo."""
    card = archives.card_of(out, name)
    if isinstance(card, Card):
        rows = _archive(card) | {"archive file": str(out / f"{name}.mar")}
    else:
        rows = _entry(terminal.entry_of(name)) | {"archive": archives.state(out, name)}
    table = Table(show_header=False, box=None)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in rows.items():
        table.add_row(key, escape(value))
    terminal.stdout().print(table)


def _entry(entry: zoo.ModelSpec) -> dict[str, str]:
    return {
        "model": entry.name,
        "task": entry.task.value,
        "backbone": f"{entry.family} {entry.variant}, output stride {entry.backbone.output_stride}",
        "head": entry.head.name,
        **_input(entry.input, entry.preprocess, entry.normalize),
        "labels": entry.labels.name,
        "parameters": f"{entry.parameters:,}",
        "MACs": f"{entry.macs:,}",
        "paper": entry.paper,
        "official weights": entry.checkpoint_url or "never published",
        "their licence": entry.licence,
        "their score": archives.scores(dict(entry.published)),
    }


def _input(size: InputSize, preprocess: Preprocess, normalize: Normalize) -> dict[str, str]:
    crop = "" if preprocess.shorter_side_px is None else f", shorter side {preprocess.shorter_side_px} px"
    if preprocess.crop_share is not None:
        crop = f", crop share {preprocess.crop_share}"
    antialias = "antialiased" if preprocess.antialias else "not antialiased"
    exact = ", JPEGs decoded at reduced size" if preprocess.reduced_decoding else ""
    return {
        "input": f"{size.width}x{size.height} pixels",
        "preprocessing": f"{preprocess.mode}{crop}, {preprocess.interpolation}, {antialias}{exact}, "
        f"alpha {preprocess.alpha}; "
        f"{normalize.channel_order}, mean {_numbers(normalize.mean)}, std {_numbers(normalize.std)}",
    }


def _archive(card: Card) -> dict[str, str]:
    recipe = card.recipe
    rows = {
        "model": card.name,
        "version": card.version,
        "task": card.task.value,
        "base": recipe.base or "none: a TorchScript module from elsewhere",
        "backbone": _options(f"{card.family} {card.variant}", recipe.backbone),
        "head": _options(card.head, recipe.head),
        **_input(card.input, card.preprocess, card.normalize),
        "labels": f"{len(card.labels)}: {', '.join(card.labels[:4])}{', ...' if len(card.labels) > 4 else ''}",
        "parameters": f"{card.parameters:,}",
        "MACs": f"{card.macs:,}",
        "paper": card.paper,
        "weights": f"{card.weights.state.value}: {card.weights.source} (sha256 {card.weights.sha256})",
        "layout of the checkpoint": recipe.layout,
        "set of weights": recipe.weight_set,
        "licence": card.weights.licence,
        "published score": archives.scores(card.weights.published),
        "TorchScript file": recipe.source_sha256 and f"sha256 {recipe.source_sha256}",
        "definition": recipe.definition_sha256 and f"sha256 {recipe.definition_sha256}\n{recipe.definition.rstrip()}",
        "scripted - eager": f"{card.parity.scripted_max_abs_diff:.3g}",
        "reloaded - scripted": f"{card.parity.reloaded_max_abs_diff:.3g}",
        "batch row - alone": f"{card.parity.batch_row_max_abs_diff:.3g}",
    }
    if card.bfloat16 is not None:
        rows["in bfloat16"] = archives.agreement(card.bfloat16)
    return {key: value for key, value in rows.items() if value}


def _options(name: str, options: Mapping[str, object]) -> str:
    told = ", ".join(f"{key} {value}" for key, value in options.items() if key != "variant")
    return f"{name}, {told}" if told else name


def _numbers(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:g}" for value in values)
