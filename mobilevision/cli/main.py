"""The `mobilevision` command: calls to a server, evaluation, and the server's own commands where it is installed."""

import sys

import typer

from mobilevision.cli import calls, replay, served, server_commands
from mobilevision.eval import commands as eval_commands

app = typer.Typer(
    name="mobilevision",
    help="Serve mobile vision models over gRPC: labels, boxes and masks in the picture's own pixels.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
calls.register(app)
served.register(app)
eval_commands.register(app)
replay.register(app)
server_commands.register(app)


def main() -> None:
    """Entry point of the console script."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
