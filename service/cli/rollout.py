"""The commands `mobilevision models canary | promote | rollback`.

In: the command line. Out: an edited roll-out file, and one line on standard output. Exit codes: 0 done, 1 refused, 2
wrong usage. The commands never call a gateway: gateways watch the file. `promote` can ask a Prometheus first.
"""

from pathlib import Path
from typing import Annotated

import typer

from service.cli import candidate_archive, errors, fleet
from service.core.catalog import find
from service.core.catalog import read as read_catalog
from service.serving import rollout_spec
from service.serving.rollout_spec import Entry, RolloutError

ARCHIVES = Path("model_store/archives")

Name = Annotated[str, typer.Argument(help="Name of the model, as `mobilevision models list` shows it.")]
Archives = Annotated[Path, typer.Option(help="Folder with the archives that are served.")]
File = Annotated[
    Path | None,
    typer.Option(
        "--file",
        help=f"Roll-out file that the gateways watch [{rollout_spec.FILE_NAME} in the folder with the archives].",
    ),
]


def register(app: typer.Typer) -> None:
    """Add the commands to `mobilevision models`."""
    app.command("canary")(canary)
    app.command("promote")(promote)
    app.command("rollback")(rollback)


def canary(
    name: Name,
    archive: Annotated[
        Path | None, typer.Option("--archive", help="Archive (.mar) of the candidate; copied to the other archives.")
    ] = None,
    version: Annotated[
        str | None, typer.Option(help="Version of a candidate whose archive is in the folder already.")
    ] = None,
    weight: Annotated[
        float | None, typer.Option(min=0, max=1, help="Share of the requests that the candidate answers.")
    ] = None,
    shadow: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Share of the other requests that the candidate runs too, for comparison. No caller waits.",
        ),
    ] = None,
    archives: Archives = ARCHIVES,
    file: File = None,
) -> None:
    """Try another version of a model beside the stable one, while both are served.

    Start with `mobilevision models canary NAME --archive new.mar --shadow 0.05`: no caller gets the candidate's
    answers, and `compare` shows how often the two versions agree. Then raise the share: `mobilevision models canary
    NAME --weight 0.1`. Options that are left out keep their value. Where the candidate fails, the stable version
    answers. End with `promote` or `rollback`. Gateways follow within two seconds.
    """
    if archive is not None and version is not None:
        raise typer.BadParameter("--archive has a version of its own; give one of the two", param_hint="--version")

    def change(entries: dict[str, Entry]) -> None:
        entry = entries.get(name) or Entry(stable=_only_version(archives, name))
        stable = find(archives, name, entry.stable)
        if archive is not None:
            candidate: str | None = candidate_archive.publish(archive, archives, stable).version
        else:
            candidate = version or entry.candidate
        if candidate is None:
            raise RolloutError(f"{name} has no candidate yet: name one with --archive or --version")
        rollout_spec.require_comparable(stable, find(archives, name, candidate))
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
        f"the others too; version {entry.stable} is stable"
    )


def promote(
    name: Name,
    archives: Archives = ARCHIVES,
    file: File = None,
    prometheus: fleet.Address = None,
    namespace: fleet.Namespace = None,
    window: fleet.Window = "1h",
    limit: fleet.Limit = None,
) -> None:
    """Make the candidate the stable version.

    Example: `mobilevision models promote mobilevit_s_classify`

    The candidate first gets as many workers as the stable version; both versions answer until these workers are ready.
    Then the old version answers the requests it has, and is unloaded. Its archive stays, for `rollback`.

    With --prometheus it is a gate: nothing is changed unless the candidate is on all pods, agrees with the stable
    version, fails little and is not much slower. `compare --prometheus` shows these checks.
    """
    gateways = None if prometheus is None else fleet.Fleet(prometheus, namespace=namespace, window=window)
    limits = fleet.limits_of(limit)

    def change(entries: dict[str, Entry]) -> None:
        entry = entries.get(name)
        if entry is None or entry.candidate is None:
            raise RolloutError(f"{name} has no candidate to promote; start with: mobilevision models canary {name}")
        if gateways is not None:
            gateways.require(name, stable=entry.stable, candidate=entry.candidate, limits=limits)
        entries[name] = Entry(stable=entry.candidate, previous=entry.stable)

    entry = _edited(archives, file, name, change)
    typer.echo(f"{name}: version {entry.stable} becomes stable; `rollback` returns to version {entry.previous}")


def rollback(name: Name, archives: Archives = ARCHIVES, file: File = None) -> None:
    """Remove the candidate. Without a candidate, return to the version that was stable before the last `promote`.

    Example: `mobilevision models rollback mobilevit_s_classify`

    Requests that the candidate has are answered, by the candidate or by the stable version.
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
    typer.echo(f"{name}: version {entry.stable} becomes the only one")


def _edited(archives: Path, file: Path | None, name: str, change: rollout_spec.Change) -> Entry:
    """Edit the roll-out file, and return its new entry for the model."""
    path = file or archives / rollout_spec.FILE_NAME
    with errors.reported():
        rollout_spec.edit(path, change)
        return rollout_spec.read(path)[name]


def _only_version(archives: Path, name: str) -> str:
    """The version that is served where the roll-out file has no entry for the model. Raises `CatalogError`."""
    return read_catalog(archives, models=[name]).cards[0].version
