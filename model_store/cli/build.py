"""The command `mobilevision models build`: models of the zoo or definitions of one's own in, archives out.

A model that cannot be built is reported in one line, and the others are built all the same; the exit code is then 1.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from handlers.contract.card import Card, WeightsState
from model_store.build import archive, inputs
from model_store.build.errors import ExportError
from model_store.cli import archives, terminal
from model_store.cli.build_options import BuildOptions, OwnModelOptions
from model_store.cli.targets import Target
from model_store.definition.errors import DefinitionError
from model_store.hub.errors import HubError
from model_store.pull.errors import PullError
from model_store.pull.store import CHECKPOINTS
from model_store.weights.errors import CheckpointError

if TYPE_CHECKING:
    from model_store.build.expect import ReadPicture
    from model_store.build.export import Exported

_REFUSALS = (PullError, CheckpointError, DefinitionError, HubError, ExportError, archive.ArchiveError, OSError)


def build(
    context: typer.Context,
    names: Annotated[
        list[str] | None,
        typer.Argument(help="Names of the models, as `list` shows them, and definition files (NAME.toml)."),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Build every model.")] = False,
    out: Annotated[Path, typer.Option(help="Folder to write the archives to.")] = terminal.ARCHIVES,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            help="File with the weights, for one model [the pulled checkpoint; random weights where none was pulled]."
        ),
    ] = None,
    layout: Annotated[
        str | None, typer.Option(help="The project whose tensor names the checkpoint has [that of the official file].")
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="Your own model, without a definition file: the model that it was trained from.")
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option(
            "--from", help="Your own model: a folder of timm, transformers or OpenMMLab with configuration and weights."
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="With --base or --from: the name of your model.")] = None,
    labels: Annotated[
        str | None, typer.Option(help="With --base: file with one label per line in class order, or a JSON file.")
    ] = None,
    input_size: Annotated[
        str | None, typer.Option("--input", help="With --base: WIDTHxHEIGHT of the input in pixels, such as 256x192.")
    ] = None,
    mean: Annotated[
        str | None, typer.Option(help="With --base: three numbers for values in 0..1, such as 0.485,0.456,0.406.")
    ] = None,
    std: Annotated[str | None, typer.Option(help="With --base: three numbers, as --mean.")] = None,
    channels: Annotated[str | None, typer.Option(help="With --base: RGB or BGR.")] = None,
    resize: Annotated[str | None, typer.Option(help="With --base: squash, crop or cover.")] = None,
    weights: Annotated[str | None, typer.Option(help="With --base: raw or ema, where the checkpoint has both.")] = None,
    expect: Annotated[
        tuple[Path, Path] | None,
        typer.Option(
            metavar="ANSWER PICTURE",
            help="Your own answer to one picture, and the picture: nothing is written unless the model answers so "
            "(docs/checkpoints.md).",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of random weights.")] = 0,
    version: Annotated[
        str | None,
        typer.Option(help="Version of the archives. To try one beside the served one, give another (`canary`) [1.0]."),
    ] = None,
    store: Annotated[Path, typer.Option(help="Folder with the checkpoints that `pull` fetched.")] = CHECKPOINTS,
    random: Annotated[
        bool, typer.Option("--random", help="Use random weights, even where a checkpoint was pulled.")
    ] = False,
    force: Annotated[
        bool,
        typer.Option("--force", help="Build archives that are up to date too, and replace trained weights by random."),
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Where a model fails to export, print the traceback too.")
    ] = False,
) -> None:
    """Build archives. Archives that are up to date stay, and so do trained weights where no checkpoint is given."""
    own = OwnModelOptions(
        base=base,
        folder=folder,
        name=name,
        labels=labels,
        input_size=input_size,
        mean=mean,
        std=std,
        channels=channels,
        resize=resize,
        weights=weights,
    )
    options = BuildOptions(
        own=own,
        names=tuple(names or ()),
        every=every,
        out=out,
        checkpoint=checkpoint,
        layout=layout,
        seed=seed,
        version=version,
        store=store,
        random=random,
        force=force,
        verbose=verbose,
        expect=expect,
    )
    build_targets(options.targets, out=out, force=force, verbose=verbose, read_picture=context.obj)


def build_targets(
    targets: Sequence[Target],
    *,
    out: Path,
    force: bool,
    verbose: bool,
    read_picture: "ReadPicture | None" = None,
) -> None:
    """Build archives and print one result each. `read_picture` is needed by targets that expect an answer.

    Raises `typer.Exit` with 1 at the end if one failed.
    """
    failed = False
    with terminal.progress() as progress:
        task = progress.add_task("", total=len(targets))
        for target in targets:
            progress.update(task, description=target.name)
            try:
                typer.echo(f"{target.name}: {_build_one(target, out=out, force=force, read_picture=read_picture)}")
            except _REFUSALS as error:
                failed = True
                _report(target.name, error, verbose=verbose)
            progress.advance(task)
    if failed:
        raise typer.Exit(1)


def _report(name: str, error: Exception, *, verbose: bool) -> None:
    detail = error.detail if isinstance(error, ExportError) else ""
    hint = "; --verbose shows the traceback" if detail and not verbose else ""
    terminal.report_error(f"{name}: {error}{hint}")
    if isinstance(error, ExportError):
        for line in error.report:
            typer.echo(f"  {line}", err=True)
    if detail and verbose:
        typer.echo(detail, err=True)


def _build_one(target: Target, *, out: Path, force: bool, read_picture: "ReadPicture | None") -> str:
    """Build one archive unless it can stay; the outcome in one phrase."""
    digest = inputs.digest(target.asked())
    kept = "" if force else _reason_to_keep(target, out, digest)
    if kept:
        return kept
    built = target.export()
    exported = built.exported
    agreed = _as_expected(target, exported, read_picture)
    try:
        path = archive.write(out, exported.card, exported.module_bytes)
        inputs.record(out, target.name, digest)  # last, so an interrupted build does not count as finished
    except OSError as error:
        raise archive.ArchiveError(f"cannot write to {out}: {error}") from error
    phrase = f"built {path}, {path.stat().st_size / 1e6:.1f} MB, {archives.weights(exported.card)}"
    lines = [phrase, *(f"  {note}" for note in (*agreed, *built.notes))]
    if built.assumed:
        origin = exported.card.recipe.base
        lines += [
            f"  assumed, from {origin}:" if origin else "  assumed:",
            *(f"    {k}: {v}" for k, v in built.assumed.items()),
        ]
    return "\n".join(lines)


def _as_expected(target: Target, exported: "Exported", read_picture: "ReadPicture | None") -> tuple[str, ...]:
    """Compare with the answer that the target names, if it names one; the result. Raises `ExportError`."""
    if target.expect is None:
        return ()
    if read_picture is None:
        raise ExportError("--expect: the gateway reads pictures, so build with `mobilevision models build`")
    from model_store.build import expect  # noqa: PLC0415 - needs torch

    answer, picture = target.expect
    expectation = expect.Expectation(answer, picture)
    return (expect.check(exported.card, exported.module_bytes, expectation, read_picture),)


def _reason_to_keep(target: Target, out: Path, digest: str) -> str:
    """Why the archive that exists should stay; empty if it should be built."""
    card = archives.card_of(out, target.name)
    if not isinstance(card, Card) or card.version != target.version:
        return ""
    try:
        inside = archive.read_card(out / f"{target.name}.mar")
    except archive.ArchiveError:
        inside = None
    if inside == card and inputs.recorded(out, target.name) == digest:
        return f"up to date, {archives.weights(card)}"
    if not target.has_weights and card.weights.state is not WeightsState.RANDOM:
        return f"kept, {archives.weights(card)}; give --checkpoint to build it anew, or --force for random weights"
    return ""
