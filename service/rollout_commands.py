"""The commands `mobilevision models canary | promote | rollback | compare`.

In: the command line. Out: an edited roll-out file, or a table on stdout; errors on stderr. Exit codes: 0 done, 1 it was
not, or the versions agree too little, 2 a wrong option. Never calls a gateway but for its metrics page: gateways watch
the file.
"""

import os
import shutil
import tempfile
import urllib.error
import urllib.request
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from model_store import archive
from model_store.card import Card
from service import rollout
from service.catalog import ARCHIVE_SUFFIX, CARD_SUFFIX, CatalogError, find, stem_of
from service.catalog import read as read_catalog
from service.rollout import Entry, RolloutError
from service.settings import DEFAULT_HTTP_PORT
from service.verdict import NotServed, Verdict, judge

ARCHIVES = Path("model_store/archives")
TIMEOUT_SECONDS = 5.0
PLAIN_WIDTH = 120  # columns of a table that goes to a file or a pipe

Name = Annotated[str, typer.Argument(help="Name of the model, as `list` shows it.")]
Archives = Annotated[Path, typer.Option(help="Folder with the archives that are served.")]
File = Annotated[
    Path | None,
    typer.Option("--file", help="Roll-out file that the gateways watch [rollout.json beside the archives]."),
]


def register(app: typer.Typer) -> None:
    """Add the commands to `mobilevision models`."""
    app.command("canary")(canary)
    app.command("promote")(promote)
    app.command("rollback")(rollback)
    app.command("compare")(compare)


def canary(
    name: Name,
    file_of_candidate: Annotated[
        Path | None, typer.Option("--archive", help="The candidate's .mar file; copied beside the others.")
    ] = None,
    version: Annotated[str | None, typer.Option(help="Version of a candidate that lies there already.")] = None,
    weight: Annotated[
        float | None, typer.Option(min=0, max=1, help="Share of the requests that the candidate answers.")
    ] = None,
    shadow: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Share of the others that it runs as well, to be compared; nobody waits."),
    ] = None,
    archives: Archives = ARCHIVES,
    file: File = None,
) -> None:
    """Try another version of a model beside the stable one, while it is served.

    Begin with `--archive new.mar --shadow 0.05`: nobody gets the candidate's answers, and `compare` says how far they
    agree. Then `--weight 0.1`, and more; what is not given stays. What the candidate fails, the stable version answers.
    End with `promote` or `rollback`. Gateways follow within a second or two.
    """
    if file_of_candidate is not None and version is not None:
        raise typer.BadParameter("excludes --archive, which has its own", param_hint="--version")

    def change(entries: dict[str, Entry]) -> None:
        entry = entries.get(name) or Entry(stable=_plain_version(archives, name))
        stable = find(archives, name, entry.stable)
        if file_of_candidate is not None:
            candidate: str | None = _bring(archives, file_of_candidate, stable).version
        else:
            candidate = version or entry.candidate
        if candidate is None:
            raise RolloutError(f"{name} has no candidate yet: name one with --archive or --version")
        rollout.require_comparable(stable, find(archives, name, candidate))
        same = candidate == entry.candidate
        entries[name] = Entry(
            stable=entry.stable,
            candidate=candidate,
            weight=weight if weight is not None else entry.weight if same else 0.0,
            shadow=shadow if shadow is not None else entry.shadow if same else 0.0,
            previous=entry.previous,
        )

    entry = _edited(archives, file, name, change)
    typer.echo(
        f"{name}: version {entry.candidate} answers {entry.weight:.0%} of the requests and runs {entry.shadow:.0%} of "
        f"the others as well; version {entry.stable} is stable"
    )


def promote(name: Name, archives: Archives = ARCHIVES, file: File = None) -> None:
    """Make the candidate the stable version.

    It first gets all workers; both answer until they are ready. Then the old version answers what it has begun, and is
    unloaded. Its archive stays, for `rollback`.
    """

    def change(entries: dict[str, Entry]) -> None:
        entry = entries.get(name)
        if entry is None or entry.candidate is None:
            raise RolloutError(f"{name} has no candidate to promote; begin with: mobilevision models canary {name}")
        entries[name] = Entry(stable=entry.candidate, previous=entry.stable)

    entry = _edited(archives, file, name, change)
    typer.echo(f"{name}: version {entry.stable} is to be stable; `rollback` returns to {entry.previous}")


def rollback(name: Name, archives: Archives = ARCHIVES, file: File = None) -> None:
    """Take the candidate back; where there is none, return to the version that was stable before the last `promote`.

    What the candidate has begun it answers, or the stable version does.
    """

    def change(entries: dict[str, Entry]) -> None:
        entry = entries.get(name)
        if entry is not None and entry.candidate is not None:
            entries[name] = Entry(stable=entry.stable, previous=entry.previous)
        elif entry is not None and entry.previous is not None:
            find(archives, name, entry.previous)
            entries[name] = Entry(stable=entry.previous)
        else:
            raise RolloutError(f"{name} has neither a candidate nor an earlier version to return to")

    entry = _edited(archives, file, name, change)
    typer.echo(f"{name}: version {entry.stable} is to be the only one")


def compare(
    name: Name,
    http: Annotated[
        list[str] | None,
        typer.Option(help=f"HTTP address of a gateway; repeat for several [localhost:{DEFAULT_HTTP_PORT}]."),
    ] = None,
    at_least: Annotated[
        float | None, typer.Option(min=0, max=1, help="Fail where the versions agree less than this.")
    ] = None,
    pictures: Annotated[int, typer.Option(min=1, help="Fail where fewer were compared.")] = 100,
) -> None:
    """Show how a candidate does beside the stable version: agreement, share, times and failures.

    Counts are since the gateways started. With `--at-least 0.95` the exit code is 1 unless enough pictures were
    compared and agree so far, so that a script can go on with `promote`.
    """
    try:
        verdict = judge(name, [_page(address) for address in http or [f"localhost:{DEFAULT_HTTP_PORT}"]])
    except NotServed as error:
        _fail(str(error))
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=PLAIN_WIDTH)
    console.print(_table(verdict))
    good, text = _verdict(verdict, at_least, pictures)
    console.print(escape(text), soft_wrap=True)
    if at_least is not None and not good:
        raise typer.Exit(1)


def _verdict(verdict: Verdict, at_least: float | None, pictures: int) -> tuple[bool, str]:
    if len(verdict.versions) == 1:
        return False, f"version {verdict.versions[0].version} is the only one: there is nothing to compare"
    stable, candidate = (state.version for state in verdict.versions[:2])
    shadow = f"{verdict.compared} pictures compared, {verdict.failed} failed, {verdict.dropped} dropped to leave room"
    if verdict.agreement is None:
        return False, f"nothing was compared yet ({shadow}): give the candidate a --shadow"
    said = f"version {candidate} agrees with {stable} to {verdict.agreement:.2%} ({verdict.metric}; {shadow})"
    if at_least is None:
        return True, said
    if verdict.compared < pictures:
        return False, f"{said}: too few pictures to tell, {pictures} are wanted"
    good = verdict.agreement >= at_least
    return good, f"{said}: {'enough' if good else 'too little'}, at least {at_least:.2%} is wanted"


def _table(verdict: Verdict) -> Table:
    headings = ("version", "role", "share", "answered", "failed", "passed on", "median", "95 %", "in the model")
    table = Table(*headings, box=None)
    for state in verdict.versions:
        counts = (f"{count:.0f}" for count in (state.answered, state.failed, state.passed_on))
        times = (state.median_seconds, state.p95_seconds, state.inference_seconds)
        shown = ("" if seconds is None else f"{seconds * 1e3:.1f} ms" for seconds in times)
        table.add_row(state.version, state.role, f"{state.share:.0%}", *counts, *shown)
    return table


def _edited(archives: Path, file: Path | None, name: str, change: rollout.Change) -> Entry:
    path = file or archives / rollout.FILE_NAME
    try:
        rollout.edit(path, change)
        return rollout.read(path)[name]
    except CatalogError as error:
        _fail(str(error))


def _plain_version(archives: Path, name: str) -> str:
    """The version served where the roll-out file does not speak of the model. Raises `CatalogError`."""
    return read_catalog(archives, models=[name]).cards[0].version


def _bring(archives: Path, file: Path, stable: Card) -> Card:
    """Copy an archive, and its card beside it, to where versions lie. Raises `RolloutError`."""
    try:
        card = archive.read_card(file)
    except archive.ArchiveError as error:
        raise RolloutError(str(error)) from error
    if card.name != stable.name:
        raise RolloutError(f"{file} is of {card.name}, not of {stable.name}")
    if card.version == stable.version:
        raise RolloutError(
            f"{file} is of version {card.version}, as the stable one; build it as another: mobilevision models build "
            f"{card.name} --version VERSION --out FOLDER"
        )
    rollout.require_comparable(stable, card)
    target = archives / f"{stem_of(card.name, card.version)}{ARCHIVE_SUFFIX}"
    if target.exists() and target.read_bytes() != file.read_bytes():
        raise RolloutError(f"{target} is there, and is another archive: a version keeps its content")
    try:
        _publish(card.to_json().encode(), archives / f"{stem_of(card.name, card.version)}{CARD_SUFFIX}")
        if not target.exists():
            _publish(file, target)
    except OSError as error:
        raise RolloutError(f"{target} cannot be written: {error.strerror or error}") from error
    return card


def _publish(content: bytes | Path, target: Path) -> None:
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=".writing-")
    path = Path(temporary)
    try:
        with os.fdopen(handle, "wb") as stream:
            if isinstance(content, bytes):
                stream.write(content)
            else:
                with content.open("rb") as source:
                    shutil.copyfileobj(source, stream)
            stream.flush()
            os.fsync(stream.fileno())
        path.chmod(0o644)
        path.replace(target)
    finally:
        path.unlink(missing_ok=True)


def _page(address: str) -> str:
    try:
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=TIMEOUT_SECONDS) as reply:
            return str(reply.read().decode())
    except (urllib.error.URLError, OSError, ValueError) as error:
        _fail(f"no metrics from {address}: {error}; name the gateway's HTTP port with --http HOST:PORT")


def _fail(message: str) -> NoReturn:
    Console(stderr=True, highlight=False).print(f"[bold red]error:[/] {escape(message)}", soft_wrap=True)
    raise typer.Exit(1)
