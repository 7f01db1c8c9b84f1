"""The command `replay`: a request id in, a report of what differs out.

Exit code 0: the answer has the same bits, or the same error came. 1: it differs, or the server did not answer. 2: the
call is not recorded, or was recorded without its picture.
"""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from mobilevision.cli.calls import Server, Timeout, advice
from mobilevision.client import DEFAULT_TARGET, DEFAULT_TIMEOUT_SECONDS, CallFailed, VisionClient
from mobilevision.replay import MOST_DIFFERENCES, Comparison, Difference, NotReplayable, find
from mobilevision.replay import replay as replay_call

NOT_REPLAYABLE_STATUS = 2


def replay(
    request_id: Annotated[str, typer.Argument(metavar="ID", help="Request id of the recorded call.")],
    recording: Annotated[Path, typer.Option("--recording", metavar="DIR", help="Folder of recorded calls.")],
    server: Server = DEFAULT_TARGET,
    timeout: Timeout = DEFAULT_TIMEOUT_SECONDS,
) -> None:
    """Send a recorded call again, and say what differs: model, engine, device, and the fields of the reply.

    Example: `mobilevision replay 4f1c --recording /var/lib/mobilevision/calls`
    """
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        with VisionClient(server, timeout_seconds=timeout) as client:
            comparison = replay_call(find(recording, request_id), client)
    except CallFailed as error:
        errors.print(f"[bold red]error:[/] {escape(advice(error, server))}")
        raise typer.Exit(1) from error
    except (NotReplayable, OSError) as error:
        errors.print(f"[bold red]error:[/] {escape(str(error))}")
        raise typer.Exit(NOT_REPLAYABLE_STATUS) from error
    _show(comparison)
    if comparison.outcome:
        raise typer.Exit(1)


def register(app: typer.Typer) -> None:
    """Add the command to the `mobilevision` command."""
    app.command()(replay)


def _show(comparison: Comparison) -> None:
    console = Console(highlight=False, soft_wrap=True)
    console.print("the outcome differs" if comparison.outcome else "the outcome is the same, bit for bit")
    for title, differences in (("what ran it", comparison.execution), ("the outcome", comparison.outcome)):
        if differences:
            console.print(f"differences in {title}:")
        for difference in differences[:MOST_DIFFERENCES]:
            console.print(f"  {escape(_line(difference))}")
        if len(differences) > MOST_DIFFERENCES:
            console.print(f"  and {len(differences) - MOST_DIFFERENCES} more")
    if comparison.largest_score_difference:
        console.print(f"largest difference of a score: {comparison.largest_score_difference:.3g}")


def _line(difference: Difference) -> str:
    return f"{difference.name}: recorded {difference.recorded or '-'}, now {difference.replayed or '-'}"
