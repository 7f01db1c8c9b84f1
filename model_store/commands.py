"""The commands `mobilevision models ...`: list, show, build, verify.

In: the command line. Out: tables on stdout; progress and errors on stderr. Exit codes: 0 done, 1 something failed or is
over its tolerance, 2 a wrong name, option or file. Modules that need torch are imported where they are used, so that
help and `list` answer at once, also where torch is not installed. The command line that mounts these may hand in, as
the context's object, how its gateway brings a picture to a model's input: `verify` compares that too.
"""

import hashlib
import importlib.metadata
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

import handlers
from model_store import archive, zoo
from model_store.card import FIRST_VERSION, VERSION_PATTERN, Agreement, Card, WeightsState
from model_store.demo import commands as demo_commands
from model_store.errors import CheckpointError
from model_store.pull import commands as pull_commands
from model_store.pull import origin
from model_store.pull.errors import PullError
from model_store.pull.store import CHECKPOINTS, Store

if TYPE_CHECKING:
    from model_store.export import Exported
    from model_store.verify import Report

ARCHIVES = Path("model_store/archives")
PLAIN_WIDTH = 120  # columns of a table that goes to a file or a pipe
# Modules of this package that no archive depends on.
_NOT_BUILT_FROM = {
    "commands.py",
    "verify.py",
    "golden.py",
    "golden_backbones.py",
    "golden_boxes.py",
    "golden_detectors.py",
    "golden_heads.py",
    "golden_pictures.py",
    "golden_segmenters.py",
}
_NOT_BUILT_FROM_FOLDERS = {"archives", "demo", "pull"}  # demo weights count as a checkpoint does
_DRAWS_PICTURES = ("dataset.py", "shapes.py")  # of `demo`: what the agreement in the card is measured on


@dataclass(frozen=True)
class _Checkpoint:
    """The weights to build from; `layout` None means that of the official file."""

    path: Path
    layout: str | None
    source: str
    official: bool


app = typer.Typer(help="List, build and verify the models that can be served.", no_args_is_help=True)
pull_commands.register(app)
demo_commands.register(app)


@app.command("list")
def list_models(
    out: Annotated[Path, typer.Option(help="Folder with the built archives.")] = ARCHIVES,
) -> None:
    """List every model: what it is, what it costs, and whether an archive of it is built, with which weights."""
    table = Table("model", "task", "input", "params", "MACs", "labels", "published", "archive", box=None)
    table.columns[0].no_wrap = True
    for entry in zoo.ENTRIES:
        table.add_row(
            entry.name,
            entry.task.value,
            f"{entry.input.width}x{entry.input.height}",
            f"{entry.parameters / 1e6:.2f} M",
            f"{entry.macs / 1e9:.2f} G",
            entry.labels,
            _scores(dict(entry.published)),
            _archive_state(out, entry.name),
        )
    _stdout().print(table)


@app.command("show")
def show(
    name: Annotated[str, typer.Argument(help="Name of the model, as `list` shows it.")],
    out: Annotated[Path, typer.Option(help="Folder with the built archives.")] = ARCHIVES,
) -> None:
    """Show one model: its facts, and those of its archive if one is built."""
    entry = _entry(name)
    table = Table(show_header=False, box=None)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    preprocess = entry.preprocess
    crop = "" if preprocess.shorter_side_px is None else f", shorter side {preprocess.shorter_side_px} px"
    rows = {
        "model": entry.name,
        "task": entry.task.value,
        "backbone": f"{entry.family} {entry.variant}, output stride {entry.output_stride}",
        "head": entry.head_name,
        "input": f"{entry.input.width}x{entry.input.height} pixels",
        "preprocessing": f"{preprocess.mode}{crop}, {preprocess.interpolation}, "
        f"{'antialiased' if preprocess.antialias else 'not antialiased'}; {entry.normalize.channel_order}",
        "labels": entry.labels,
        "parameters": f"{entry.parameters:,}",
        "MACs": f"{entry.macs:,}",
        "paper": entry.paper,
        "official weights": entry.checkpoint_url or "never published",
        "their licence": entry.licence,
        "their score": _scores(dict(entry.published)),
        "archive": _archive_state(out, entry.name),
    }
    card = _card(out, entry.name)
    if isinstance(card, Card):
        rows |= {
            "archive file": str(out / f"{entry.name}.mar"),
            "archive weights": f"{card.weights.source} (sha256 {card.weights.sha256})",
            "scripted - eager": f"{card.parity.scripted_max_abs_diff:.3g}",
            "reloaded - scripted": f"{card.parity.reloaded_max_abs_diff:.3g}",
            "batch row - alone": f"{card.parity.batch_row_max_abs_diff:.3g}",
        }
        if card.bfloat16 is not None:
            rows["in bfloat16"] = _agreement(card.bfloat16)
    for key, value in rows.items():
        table.add_row(key, escape(value))
    _stdout().print(table)


@app.command("build")
def build(
    names: Annotated[list[str] | None, typer.Argument(help="Names of the models, as `list` shows them.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Build every model.")] = False,
    out: Annotated[Path, typer.Option(help="Folder to write the archives to.")] = ARCHIVES,
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="File with the weights of the one model named [the pulled one; random where none was]."),
    ] = None,
    layout: Annotated[
        str | None, typer.Option(help="Whose tensor names the checkpoint has [those of the official file].")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the random weights.")] = 0,
    version: Annotated[
        str, typer.Option(help="Of the archives; another than the one served, to be tried beside it (`canary`).")
    ] = FIRST_VERSION,
    store: Annotated[Path, typer.Option(help="Folder with the checkpoints that `pull` fetched.")] = CHECKPOINTS,
    random: Annotated[
        bool, typer.Option("--random", help="Random weights, also where a checkpoint was pulled.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Build what is up to date; replace trained weights by random ones.")
    ] = False,
) -> None:
    """Build archives. What is up to date is left alone, and so are trained weights where no checkpoint is given."""
    if bool(names) == every:
        raise typer.BadParameter("name the models to build, or give --all")
    entries = zoo.ENTRIES if every else tuple(_entry(name) for name in dict.fromkeys(names or []))
    if checkpoint is not None and len(entries) != 1:
        raise typer.BadParameter("a checkpoint belongs to one model: name that one", param_hint="--checkpoint")
    if checkpoint is not None and not checkpoint.is_file():
        raise typer.BadParameter(f"{checkpoint}: no such file", param_hint="--checkpoint")
    if layout is not None and checkpoint is None:
        raise typer.BadParameter("means nothing without --checkpoint", param_hint="--layout")
    if random and checkpoint is not None:
        raise typer.BadParameter("excludes --checkpoint", param_hint="--random")
    if re.fullmatch(VERSION_PATTERN, version) is None:
        raise typer.BadParameter("one to three numbers with dots between, such as 1.1", param_hint="--version")
    failed = False
    with _progress() as progress:
        task = progress.add_task("", total=len(entries))
        for entry in entries:
            progress.update(task, description=entry.name)
            try:
                chosen = None if random else _chosen(store, entry, checkpoint, layout)
                inputs = _inputs_digest(chosen, seed)
                done = "" if force else _reason_to_keep(out, entry.name, inputs, chosen, version)
                done = done or _build_one(entry.name, out, inputs, chosen, seed, version)
                typer.echo(f"{entry.name}: {done}")
            except _BuildFailed as error:
                failed = True
                _stderr().print(f"[bold red]error:[/] {entry.name}: {escape(str(error))}", soft_wrap=True)
            progress.advance(task)
    if failed:
        raise typer.Exit(1)


@app.command("verify")
def verify_golden(
    context: typer.Context,
    golden: Annotated[list[Path] | None, typer.Option(help="Golden file, or folder of them. May be repeated.")] = None,
    paths: Annotated[list[Path] | None, typer.Argument(help="More golden files or folders.")] = None,
) -> None:
    """Compare what is built here with stored outputs of the official code, and print every difference."""
    files = [file for path in [*(golden or []), *(paths or [])] for file in _golden_files(path)]
    if not files:
        raise typer.BadParameter("give a golden file or a folder of them", param_hint="--golden")
    with _torch_needed():
        from model_store.verify import verify  # noqa: PLC0415 - takes a second
    with _progress() as progress:
        task = progress.add_task(files[0].name, total=len(files))

        def advance(_report: "Report") -> None:
            progress.advance(task)
            following = int(progress.tasks[0].completed)
            progress.update(task, description=files[following].name if following < len(files) else "")

        reports = verify(files, advance, to_input=context.obj)
    table = Table("file", "check", "worst", "tolerance", "", box=None)
    table.columns[0].no_wrap = True
    for report in reports:
        for check in report.checks:
            result = "pass" if check.ok else "[bold red]FAIL[/]"
            row = (report.subject, check.name, f"{check.difference:.3g}", f"{check.tolerance:.3g}")
            table.add_row(*(escape(cell) for cell in row), result)
        if report.error:
            table.add_row(escape(report.subject), escape(report.error), "", "", "[bold red]UNUSABLE[/]")
    _stdout().print(table)
    over = sum(len(report.failures) for report in reports)
    unusable = sum(not report.checks for report in reports)
    total = sum(len(report.checks) for report in reports)
    _stdout().print(f"{total} checks in {len(files)} files: {over} over tolerance; {unusable} files unusable")
    if over:
        raise typer.Exit(1)
    if unusable:
        raise typer.Exit(2)


class _BuildFailed(Exception):
    """A model cannot be built; the message says what to do."""


def _build_one(name: str, out: Path, inputs: str, checkpoint: _Checkpoint | None, seed: int, version: str) -> str:
    """Build an archive and say what was written."""
    exported = _export(name, checkpoint, seed)
    try:
        path = archive.write(out, exported.card.model_copy(update={"version": version}), exported.module_bytes)
        # Last, so that an interrupted build is not taken for a finished one.
        _inputs_file(out, name).write_text(inputs + "\n")
    except archive.ArchiveError as error:
        raise _BuildFailed(str(error)) from error
    except OSError as error:
        raise _BuildFailed(f"cannot write to {out}: {error}") from error
    return f"built {path}, {path.stat().st_size / 1e6:.1f} MB, {_weights(exported.card)}"


def _chosen(folder: Path, entry: zoo.Entry, file: Path | None, layout: str | None) -> _Checkpoint | None:
    """The checkpoint that was named, or else the one at hand."""
    store = Store(folder)
    try:
        if file is None:
            return _at_hand(store, entry)
        found = origin.of_file(entry, store, file, layout=layout or entry.layout)
        return _Checkpoint(path=file, layout=layout, source=found.source, official=found.official)
    except PullError as error:
        raise _BuildFailed(str(error)) from error


def _at_hand(store: Store, entry: zoo.Entry) -> _Checkpoint | None:
    """The checkpoint that comes with the project or was pulled for this model. Raises `PullError`."""
    if entry.committed_checkpoint is not None:
        return _Checkpoint(path=entry.committed_checkpoint, layout=None, source="", official=False)
    stored = store.get(entry.name)
    if stored is None:
        return None
    found = origin.of_stored(entry, store, stored)
    return _Checkpoint(path=stored.path, layout=stored.record.layout, source=found.source, official=found.official)


def _export(name: str, checkpoint: _Checkpoint | None, seed: int) -> "Exported":
    with _torch_needed():
        from model_store import export, layouts  # noqa: PLC0415 - takes a second

    try:
        if checkpoint is None:
            return export.export(name, checkpoint=None, seed=seed)
        return export.export(
            name,
            checkpoint=checkpoint.path,
            layout=checkpoint.layout,
            source=checkpoint.source,
            official=checkpoint.official,
        )
    except layouts.UnknownLayout as error:
        raise typer.BadParameter(str(error), param_hint="--layout") from error
    except (CheckpointError, export.ExportError) as error:
        raise _BuildFailed(str(error)) from error


@contextmanager
def _torch_needed() -> Iterator[None]:
    """Around an import of torch: say how to install it where it is not."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name not in {"torch", "safetensors"}:
            raise
        _stderr().print(f"[bold red]error:[/] {error.name} is not installed: pip install 'mobilevision\\[models]'")
        raise typer.Exit(2) from error


def _reason_to_keep(out: Path, name: str, inputs: str, checkpoint: _Checkpoint | None, version: str) -> str:
    """Why the archive that is there should stay; empty if it should be built."""
    card = _card(out, name)
    if not isinstance(card, Card) or card.version != version:
        return ""
    try:
        inside = archive.read_card(out / f"{name}.mar")
        recorded = _inputs_file(out, name).read_text().strip()
    except (archive.ArchiveError, OSError):
        inside, recorded = None, ""
    if inside == card and recorded == inputs:
        return f"up to date, {_weights(card)}"
    if checkpoint is None and card.weights.state is not WeightsState.RANDOM:
        return f"kept, {_weights(card)}; give --checkpoint to build it anew, or --force for random weights"
    return ""


def _inputs_digest(checkpoint: _Checkpoint | None, seed: int) -> str:
    """Sha256 over everything an archive is made from: our sources, torch's version, and the weights asked for."""
    total = hashlib.sha256()
    package = Path(__file__).parent
    sources = [
        path
        for path in package.rglob("*.py")
        if path.name not in _NOT_BUILT_FROM and not _NOT_BUILT_FROM_FOLDERS & set(path.relative_to(package).parts)
    ]
    sources += [package / "demo" / name for name in _DRAWS_PICTURES]
    sources += [*(package / "labels").glob("*.txt"), *Path(handlers.__path__[0]).glob("*.py")]
    for path in sorted(sources):
        total.update(f"{path.name}\n{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    try:
        torch_version = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        torch_version = ""
    if checkpoint is None:
        asked: list[object] = [seed]
    else:
        digest = hashlib.sha256(checkpoint.path.read_bytes()).hexdigest()
        asked = [digest, checkpoint.layout, checkpoint.source, checkpoint.official]  # the card names the source
    total.update(json.dumps([torch_version, *asked]).encode())
    return total.hexdigest()


def _inputs_file(out: Path, name: str) -> Path:
    return out / f"{name}.inputs.sha256"


def _card(out: Path, name: str) -> Card | str | None:
    """The card beside an archive; a word about it if it cannot be read, None if there is no archive."""
    path = out / f"{name}.card.json"
    if not path.is_file() or not (out / f"{name}.mar").is_file():
        return None
    try:
        return Card.read(path)
    except (ValidationError, OSError):
        return "unreadable card"


def _archive_state(out: Path, name: str) -> str:
    card = _card(out, name)
    if isinstance(card, Card):
        return _weights(card)
    return card or "not built"


def _weights(card: Card) -> str:
    return f"weights: {card.weights.state.value}"


def _agreement(found: Agreement) -> str:
    what = {"top1": "best classes", "boxes": "boxes, weighted by score,", "class_map": "pixels"}[found.metric]
    return (
        f"{100 * found.agreement:.2f} % of {what} as in float32, scores within {found.score_max_abs_diff:.2g}, "
        f"on {found.pictures} drawn pictures"
    )


def _scores(published: dict[str, float]) -> str:
    return ", ".join(f"{metric} {value:g}" for metric, value in published.items()) or "none"


def _entry(name: str) -> zoo.Entry:
    try:
        return zoo.get(name)
    except zoo.UnknownModel as error:
        raise typer.BadParameter(str(error)) from error


def _golden_files(path: Path) -> list[Path]:
    if path.is_dir():
        files = sorted(path.rglob("*.json"))
        if not files:
            raise typer.BadParameter(f"{path} holds no .json file", param_hint="--golden")
        return files
    if not path.is_file():
        raise typer.BadParameter(f"{path}: no such file or folder", param_hint="--golden")
    return [path]


def _stdout() -> Console:
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=PLAIN_WIDTH)


def _stderr() -> Console:
    return Console(stderr=True, highlight=False)


def _progress() -> Progress:
    """A bar on stderr, where that is a terminal; it leaves nothing behind, and what is printed meanwhile stays."""
    console = _stderr()
    return Progress(
        SpinnerColumn(),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
