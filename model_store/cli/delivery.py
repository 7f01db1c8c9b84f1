"""The commands `mobilevision models publish` and `sync`: archives by way of an object store.

In: a folder and a URL. Out: what was transferred and removed, on stdout; progress and errors on stderr. On a terminal
progress is a bar, elsewhere a line every ten seconds. Both need the extra `store`.
"""

import asyncio
import contextlib
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from model_store.cli import terminal
from model_store.delivery.errors import BadAddress, DeliveryError

if TYPE_CHECKING:
    from model_store.delivery.progress import Progress
    from model_store.delivery.remote import Remote
    from model_store.delivery.sync import Synced

LINE_SECONDS = 10.0
INTERRUPTED = 130  # exit code after Ctrl-C

Address = Annotated[
    str,
    typer.Argument(
        metavar="URL", help="s3://BUCKET/FOLDER, gs://BUCKET/FOLDER, az://CONTAINER/FOLDER, https://... or file:///..."
    ),
]


def publish(
    folder: Annotated[Path, typer.Argument(help="Folder with archives and cards, as a server reads it.")],
    url: Address,
) -> None:
    """Publish a folder with archives in an object store, from which `sync` brings it to servers.

    Example: `mobilevision models publish model_store/archives s3://my-bucket/models`

    A folder that a server would refuse is not published. Content that is there already is not sent again. Credentials
    come from the environment of each cloud (docs/delivery.md).
    """
    with _reported("run the same command again: what is there already is not sent again"):
        remote = _at(url, make=True)
        from model_store.delivery import publish as publishing  # noqa: PLC0415 - the package of an extra

        with _progress("sending") as progress:
            done = asyncio.run(publishing.publish(folder, remote, progress=progress))
    for file in done.sent:
        typer.echo(f"{file.name}: {file.size_bytes / 1e6:.1f} MB sent")
    for name in done.replaced:
        typer.echo(
            f"note: {name} had other content before; running servers keep what they loaded. To replace a version "
            "without losing a call, see docs/rollout.md"
        )
    typer.echo(f"{url}: {len(done.manifest.files)} files, {len(done.sent)} sent")


def sync(
    url: Address,
    to: Annotated[Path, typer.Option(help="Folder to bring up to date; made if needed.")] = terminal.ARCHIVES,
    watch: Annotated[
        float | None, typer.Option(min=1, help="Seconds between looks for something new; without it, one look.")
    ] = None,
) -> None:
    """Bring a folder up to date with a published one: fetch what is missing, remove what is gone.

    Example: `mobilevision models sync s3://my-bucket/models --to /models`

    Every file is verified by its sha256 before it gets its name. After an interruption the same command continues.
    Files that no sync wrote are never removed.
    """
    with _reported("what was received is kept; run the same command to go on"):
        remote = _at(url)
        asyncio.run(_sync(remote, to, watch))


async def _sync(remote: "Remote", to: Path, watch: float | None) -> None:
    from model_store.delivery import sync as syncing  # noqa: PLC0415 - the package of an extra
    from model_store.delivery.folder import Folder  # noqa: PLC0415

    known: bytes | None = None
    while True:
        try:
            with _progress("fetching") as progress:
                done = await syncing.sync(remote, Folder(to), known=known, progress=progress)
        except DeliveryError as error:
            if watch is None:
                raise
            terminal.report_error(str(error))
        else:
            if done is not None:
                known = done.manifest
                _tell(done, remote.shown, to)
        if watch is None:
            return
        await asyncio.sleep(watch * random.uniform(0.9, 1.1))  # noqa: S311 - spreads the load of many pods


def _tell(done: "Synced", url: str, to: Path) -> None:
    for file in done.fetched:
        typer.echo(f"{file.name}: {file.size_bytes / 1e6:.1f} MB fetched")
    for name in done.removed:
        typer.echo(f"{name}: removed")
    typer.echo(
        f"{to}: {done.files} files as in {url}, {len(done.fetched)} of them fetched, {len(done.removed)} others removed"
    )


def _at(url: str, *, make: bool = False) -> "Remote":
    try:
        from model_store.delivery import remote  # noqa: PLC0415 - the package of an extra
    except ModuleNotFoundError as error:
        if error.name != "obstore":
            raise
        terminal.report_error("object stores need the package obstore: pip install 'mobilevision[store]'")
        raise typer.Exit(2) from error
    return remote.at(url, make=make)


@contextlib.contextmanager
def _reported(interrupted: str) -> Iterator[None]:
    try:
        yield
    except DeliveryError as error:
        terminal.report_error(str(error))
        raise typer.Exit(2 if isinstance(error, BadAddress) else 1) from error
    except KeyboardInterrupt as error:
        terminal.report_error(f"stopped; {interrupted}")
        raise typer.Exit(INTERRUPTED) from error


@contextlib.contextmanager
def _progress(verb: str) -> Iterator["Progress"]:
    """Yield what shows the progress: a bar on a terminal, else lines on stderr."""
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with terminal.progress(TextColumn("{task.description}"), *columns) as bar:
        if bar.disable:
            yield Lines(verb)
            return
        task = bar.add_task(verb, total=None)

        class Bar:
            """Shows a bar."""

            def begin(self, files: int, total_bytes: int) -> None:
                bar.update(task, total=total_bytes, description=f"{verb} {files} files")

            def advance(self, name: str, count: int) -> None:
                bar.update(task, advance=count, description=name)

        yield Bar()


class Lines:
    """Progress in lines: the plan, then at most one line every `LINE_SECONDS`."""

    def __init__(self, verb: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._verb = verb
        self._clock = clock
        self._said_at = clock()
        self._done_bytes = 0
        self._total_bytes = 0

    def begin(self, files: int, total_bytes: int) -> None:
        """Print the plan."""
        self._total_bytes = total_bytes
        if files:
            typer.echo(f"{self._verb} {files} files, {total_bytes / 1e6:.1f} MB", err=True)

    def advance(self, name: str, count: int) -> None:
        """Print how far it is, if the last line is old."""
        self._done_bytes += count
        now = self._clock()
        if now - self._said_at >= LINE_SECONDS:
            self._said_at = now
            typer.echo(f"{name}: {self._done_bytes / 1e6:.1f} of {self._total_bytes / 1e6:.1f} MB", err=True)
