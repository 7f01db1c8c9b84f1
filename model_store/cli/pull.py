"""The command `mobilevision models pull`: the command line in, a checkpoint in the store out.

Progress and errors go to stderr. Exit codes: 0 pulled or already there, 1 it could not be pulled, 2 wrong usage.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from model_store.cli import terminal
from model_store.cli.options import PullOptions
from model_store.pull import sources
from model_store.pull.errors import PullError
from model_store.pull.store import CHECKPOINTS, Store

if TYPE_CHECKING:
    from model_store.pull.download import Progress
    from model_store.pull.fetch import Pulled


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
        typer.Option(help="The project whose tensor names the checkpoint has; also which published file to fetch."),
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
    options = PullOptions(
        name=name,
        local=local,
        published=published,
        url=url,
        layout=layout,
        sha256=sha256.lower(),
        store=store,
        refresh=refresh,
    )
    try:
        with terminal.progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
        ) as progress:
            task = progress.add_task(name, total=None)
            pulled = _pull(options, lambda done, total: progress.update(task, completed=done, total=total))
    except PullError as error:
        terminal.report_error(str(error))
        raise typer.Exit(1) from error
    record = pulled.stored.record
    typer.echo(f"{name}: {pulled.stored.path}, {record.size_bytes / 1e6:.1f} MB, layout {record.layout}")
    typer.echo(f"sha256 {record.sha256}, {'as known' if pulled.known_bytes else 'recorded'}")
    if pulled.downloaded:
        typer.echo(f"{pulled.tensors} tensors, all of them fit; now: mobilevision models build {name}")
    else:
        typer.echo("already there, and unchanged")


def _pull(options: PullOptions, on_progress: "Progress") -> "Pulled":
    with terminal.torch_needed():
        from model_store.pull import fetch  # noqa: PLC0415 - takes a second

    entry, store = options.entry, Store(options.store)
    if options.local is not None:
        return fetch.from_file(
            entry,
            store,
            options.local,
            layout=options.layout or entry.layout,
            published=options.published,
            expected_sha256=options.sha256,
            on_progress=on_progress,
        )
    if options.url:
        source = sources.at(options.url, options.layout or entry.layout)
    else:
        source = sources.choose(entry, options.layout)
    return fetch.from_address(
        entry,
        store,
        source,
        expected_sha256=options.sha256,
        refresh=options.refresh,
        on_progress=on_progress,
    )
