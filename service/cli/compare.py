"""The command `mobilevision models compare`: the metrics of gateways in, a table of the versions out.

The metrics are the pages of some gateways, or those of all gateways in a Prometheus. The table goes to standard output,
errors go to standard error. Exit codes: 0 shown (and the candidate is good enough, where that is asked), 1 no metrics
or not good enough, 2 wrong usage. The command only reads metrics: it never changes a roll-out.
"""

import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from service.cli import errors, fleet
from service.cli.canary_analysis import CanaryAnalysis, analyze_canary
from service.cli.rollout import Name
from service.core.settings.listeners import DEFAULT_HTTP_PORT

TIMEOUT_SECONDS = 5.0
PLAIN_WIDTH = 120  # columns of a table in a file or a pipe


def register(app: typer.Typer) -> None:
    """Add the command to `mobilevision models`."""
    app.command("compare")(compare)


def compare(
    name: Name,
    http: Annotated[
        list[str] | None,
        typer.Option(help=f"HTTP address of a gateway; repeat it for several [localhost:{DEFAULT_HTTP_PORT}]."),
    ] = None,
    at_least: Annotated[
        float | None, typer.Option(min=0, max=1, help="Exit with 1 where the versions agree less than this.")
    ] = None,
    pictures: Annotated[
        int, typer.Option(min=1, help="With --at-least: exit with 1 where fewer pictures were compared.")
    ] = 100,
    prometheus: fleet.Address = None,
    namespace: fleet.Namespace = None,
    window: fleet.Window = "1h",
    limit: fleet.Limit = None,
    gate: Annotated[
        bool, typer.Option("--gate", help="With --prometheus: exit with 1 where a check of the gate fails.")
    ] = False,
) -> None:
    """Compare a candidate with the stable version: agreement, share of the requests, times and failures.

    Example, in a script: `mobilevision models compare NAME --at-least 0.95 && mobilevision models promote NAME`

    These counts start when a gateway starts, and are those of the gateways named with --http. Over all pods of a
    cluster, and any window: `mobilevision models compare NAME --prometheus http://HOST:9090 --namespace NS --gate`
    """
    if prometheus is not None:
        _compare_fleet(name, fleet.Fleet(prometheus, namespace=namespace, window=window), fleet.limits_of(limit), gate)
        return
    with errors.reported():
        pages = [_page(address) for address in http or [f"localhost:{DEFAULT_HTTP_PORT}"]]
        analysis = analyze_canary(name, pages)
    console = _console()
    console.print(_table(analysis))
    is_good, text = _conclusion(analysis, at_least, pictures)
    console.print(escape(text), soft_wrap=True)
    if at_least is not None and not is_good:
        raise typer.Exit(1)


def _compare_fleet(name: str, gateways: fleet.Fleet, limits: Mapping[str, float], gate: bool) -> None:
    """Show the versions over all pods, and the checks of the gate."""
    with errors.reported():
        analysis = gateways.analysis(name)
        stable, *candidates = (state.version for state in analysis.versions)
        verdicts = gateways.verdicts(name, stable=stable, candidate=candidates[0], limits=limits) if candidates else ()
    console = _console()
    console.print(_table(analysis))
    for verdict in verdicts:
        console.print(escape(str(verdict)), soft_wrap=True)
    if not verdicts:
        console.print(f"version {stable} is the only one: there is nothing to compare", soft_wrap=True)
    if gate and not (verdicts and all(verdict.passes for verdict in verdicts)):
        raise typer.Exit(1)


def _console() -> Console:
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=PLAIN_WIDTH)


def _conclusion(analysis: CanaryAnalysis, at_least: float | None, pictures: int) -> tuple[bool, str]:
    """Whether the versions agree enough, and a sentence about it."""
    if len(analysis.versions) == 1:
        return False, f"version {analysis.versions[0].version} is the only one: there is nothing to compare"
    stable, candidate = (state.version for state in analysis.versions[:2])
    shadow = (
        f"{analysis.compared} pictures compared, {analysis.failed} failed, {analysis.dropped} dropped to leave room"
    )
    if analysis.agreement is None:
        return False, f"no pictures were compared yet ({shadow}): give the candidate a --shadow"
    agreement = f"version {candidate} agrees with {stable} to {analysis.agreement:.2%} ({analysis.metric}; {shadow})"
    if at_least is None:
        return True, agreement
    if analysis.compared < pictures:
        return False, f"{agreement}: too few pictures, {pictures} are wanted"
    is_good = analysis.agreement >= at_least
    return is_good, f"{agreement}: {'enough' if is_good else 'too little'}, at least {at_least:.2%} is wanted"


def _table(analysis: CanaryAnalysis) -> Table:
    headings = ("version", "role", "share", "answered", "failed", "passed on", "median", "95 %", "in the model")
    table = Table(*headings, box=None)
    for state in analysis.versions:
        counts = (f"{count:.0f}" for count in (state.answered, state.failed, state.passed_on))
        times = (state.median_seconds, state.p95_seconds, state.inference_seconds)
        shown = ("" if seconds is None else f"{seconds * 1e3:.1f} ms" for seconds in times)
        table.add_row(state.version, state.role, f"{state.share:.0%}", *counts, *shown)
    return table


def _page(address: str) -> str:
    try:
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=TIMEOUT_SECONDS) as reply:
            return str(reply.read().decode())
    except (urllib.error.URLError, OSError, ValueError) as error:
        raise errors.MetricsUnreachable(
            f"no metrics from {address}: {error}; name the gateway's HTTP port with --http HOST:PORT"
        ) from error
