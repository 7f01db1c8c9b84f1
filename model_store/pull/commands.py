"""The command `mobilevision models pull`: the command line in, a checkpoint in the store out.

Progress and errors go to stderr. Exit codes: 0 pulled or already there, 1 it could not be pulled, 2 wrong usage.
"""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from model_store import zoo
from model_store.pull import sources
from model_store.pull.errors import PullError
from model_store.pull.store import CHECKPOINTS, Store


def register(app: typer.Typer) -> None:
    """Add the command to an application."""
    app.command("pull")(pull)


def pull(
    name: Annotated[str, typer.Argument(help="Name of the model, as `list` shows it.")],
    local: Annotated[
        Path | None, typer.Option("--from", help="Take this file, or the one in this folder, instead of downloading.")
    ] = None,
    published: Annotated[
        bool, typer.Option("--published", help="The file of --from was downloaded from where it is published.")
    ] = False,
    url: Annotated[str | None, typer.Option("--url", help="Download from this address instead.")] = None,
    layout: Annotated[
        str | None,
        typer.Option(help="Whose tensor names the checkpoint has; also which of the published files to fetch."),
    ] = None,
    sha256: Annotated[
        str, typer.Option("--sha256", help="What the file's sha256 must be (64 hexadecimal digits).")
    ] = "",
    store: Annotated[Path, typer.Option(help="Folder to keep checkpoints in.")] = CHECKPOINTS,
    refresh: Annotated[
        bool, typer.Option("--refresh", help="Download again, and accept that the file changed since the first pull.")
    ] = False,
) -> None:
    """Fetch the official checkpoint of a model; `models build` uses it from then on."""
    try:
        entry = zoo.get(name)
    except zoo.UnknownModel as error:
        raise typer.BadParameter(str(error)) from error
    if local is not None and url is not None:
        raise typer.BadParameter("--from and --url exclude each other", param_hint="--from")
    if published and local is None:
        raise typer.BadParameter("belongs to --from", param_hint="--published")
    sha256 = sha256.lower()
    if sha256 and (len(sha256) != 64 or set(sha256) - set("0123456789abcdef")):
        raise typer.BadParameter("64 hexadecimal digits", param_hint="--sha256")
    err = Console(stderr=True, highlight=False)
    try:
        from model_store import layouts  # noqa: PLC0415 - imports torch, which takes a second
        from model_store.pull import fetch  # noqa: PLC0415
    except ModuleNotFoundError as error:
        if error.name not in {"torch", "safetensors"}:
            raise
        err.print(f"[bold red]error:[/] {error.name} is not installed: pip install 'mobilevision\\[models]'")
        raise typer.Exit(2) from error
    if layout is not None and layout not in layouts.LAYOUTS:
        raise typer.BadParameter(
            f"no layout is called {layout!r}; there are {', '.join(layouts.LAYOUTS)}", param_hint="--layout"
        )
    try:
        with _progress(err) as progress:
            task = progress.add_task(name, total=None)

            def advance(done_bytes: int, total_bytes: int | None) -> None:
                progress.update(task, completed=done_bytes, total=total_bytes)

            if local is not None:
                pulled = fetch.from_file(
                    entry,
                    Store(store),
                    local,
                    layout=layout or entry.layout,
                    published=published,
                    expected_sha256=sha256,
                    on_progress=advance,
                )
            else:
                source = sources.at(url, layout or entry.layout) if url else sources.choose(entry, layout)
                pulled = fetch.from_address(
                    entry, Store(store), source, expected_sha256=sha256, refresh=refresh, on_progress=advance
                )
    except PullError as error:
        err.print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True)
        raise typer.Exit(1) from error
    record = pulled.stored.record
    typer.echo(f"{name}: {pulled.stored.path}, {record.size_bytes / 1e6:.1f} MB, layout {record.layout}")
    typer.echo(f"sha256 {record.sha256}, {'as known' if pulled.known_bytes else 'recorded'}")
    if pulled.downloaded:
        typer.echo(f"{pulled.tensors} tensors, all of them fit; now: mobilevision models build {name}")
    else:
        typer.echo("already there, and unchanged")


def _progress(console: Console) -> Progress:
    """A bar on stderr, where that is a terminal; it leaves nothing behind."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
