"""The commands that need the server: `serve`, `torchserve`, `models`, `keys`, `tune` and `demo`.

Where the server's packages are installed, these are the commands of `service.cli.main`, and the demo. Where a package
is missing, each command ends with exit code 1 and one line that says what to install. The server is imported when one
of its commands is called, so that the other commands and `--help` are quick.
"""

from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from typer.core import TyperCommand

# The first paragraph of the help of each command of the server.
COMMANDS = {
    "serve": (
        "Serve models: start TorchServe and the gRPC gateway, and run until Ctrl-C. "
        "Calls in progress are answered first."
    ),
    "models": "List, build and verify the models that can be served.",
    "keys": "API keys of callers (docs/access.md).",
    "tune": (
        "Find the settings with which this machine serves most pictures per second within a latency goal, "
        "by trying them."
    ),
    "torchserve": (
        "Run TorchServe alone, for a gateway in another container of the same pod that has the same settings."
    ),
}
INSTALL = "pip install 'mobilevision[serve,models]'"
_OURS = ("service", "handlers", "model_store", "mobilevision")


def register(app: typer.Typer) -> None:
    """Add the commands to the `mobilevision` command."""
    for name, text in COMMANDS.items():
        app.command(name, cls=_ServerCommand, help=text)(_placeholder)
    app.command()(demo)


class _ServerCommand(TyperCommand):
    """Stands for a command of the server until it is called."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """Return the context of the server's own command. Raises `typer.Exit` where a package is missing."""
        name = self.name or ""
        commands = typer.main.get_command(_server(name)).commands  # type: ignore[attr-defined]  # it is a group
        return commands[name].make_context(info_name, args, parent=parent, **extra)


def _placeholder() -> None:
    """Never called: `_ServerCommand` calls the server's own command."""


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the annotated pictures and report.json.")] = Path("build/demo"),
    pictures: Annotated[Path, typer.Option(help="Folder with the JPEG pictures to send.")] = Path("docs/pictures"),
    archives: Annotated[Path, typer.Option(help="Folder with the archives; missing ones are built.")] = Path(
        "model_store/archives"
    ),
) -> None:
    """Show everything once: build the demo models, serve them, send pictures, draw the answers, stop.

    Example, in a clone of the project: `mobilevision demo --out build/demo`
    """
    _server("demo")
    from mobilevision.cli.demo import DemoFailed, run_demo  # noqa: PLC0415 - needs the server

    try:
        run_demo(out=out, pictures=pictures, archives=archives, console=Console(highlight=False))
    except DemoFailed as error:
        _fail(str(error))


def _is_defect(error: ImportError) -> bool:
    """Whether a module of this project is missing, not a package that an extra installs.

    An installation may leave out a whole package of the project, but never a part of one.
    """
    package, _, module = (error.name or "").partition(".")
    return not package or (package in _OURS and module != "")


def _server(name: str) -> typer.Typer:
    """Import the server's commands. Where a package is missing, end the command `name` with what to install.

    Raises ImportError where a module of this project is missing.
    """
    try:
        from service.cli.main import app  # noqa: PLC0415 - see the module's docstring
    except ImportError as error:
        if _is_defect(error):
            raise
        _fail(f"`{name}` needs the server: {INSTALL} ({error.msg})")
    return app


def _fail(message: str) -> NoReturn:
    Console(stderr=True, highlight=False).print(f"[bold red]error:[/] {escape(message)}", soft_wrap=True)
    raise typer.Exit(1)
