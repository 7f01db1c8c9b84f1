"""The command `mobilevision models demo-data`: progress on stderr, result on stdout; exit code 1 if it cannot write."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

HELD_OUT_SEED = 7001


def register(app: typer.Typer) -> None:
    """Add the command to an application."""
    app.command("demo-data")(data)


def data(
    out: Annotated[Path, typer.Option(help="Folder to write to; made if needed.")],
    count: Annotated[
        int, typer.Option(min=1, max=100_000, help="Pictures of several shapes, and as many of one.")
    ] = 500,
    seed: Annotated[int, typer.Option(min=0, help="Of the data set; its held-out split is written.")] = HELD_OUT_SEED,
) -> None:
    """Write the held-out demo pictures as files: JPEGs, COCO boxes, VOC masks, ImageNet folders."""
    from model_store.demo import files  # noqa: PLC0415 - takes a moment

    try:
        with _progress() as progress:
            drawing = progress.add_task("pictures", total=2 * count)
            files.write(out, pictures=count, seed=seed, advance=lambda: progress.advance(drawing))
    except OSError as error:
        _stderr().print(f"[bold red]error:[/] cannot write to {out}: {escape(str(error))}")
        raise typer.Exit(1) from error
    typer.echo(f"{out}: {count} pictures of several shapes, {count} of one, seed {seed}")


def _stderr() -> Console:
    return Console(stderr=True, highlight=False)


def _progress() -> Progress:
    console = _stderr()
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
