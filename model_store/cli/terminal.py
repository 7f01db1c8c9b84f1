"""What all commands share: the consoles, the progress bar, looking a model up, and imports that need torch.

Tables go to stdout, progress and errors to stderr.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeElapsedColumn

from model_store import zoo

ARCHIVES = Path("model_store/archives")
_PLAIN_WIDTH = 120  # columns of a table that goes to a file or a pipe


def stdout() -> Console:
    """The console for results."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=_PLAIN_WIDTH)


def stderr() -> Console:
    """The console for errors."""
    return Console(stderr=True, highlight=False)


def report_error(message: str) -> None:
    """Print an error to stderr, in one line."""
    stderr().print(f"[bold red]error:[/] {escape(message)}", soft_wrap=True)


def progress(*columns: ProgressColumn) -> Progress:
    """A progress bar on stderr, where that is a terminal. The bar vanishes at its end; printed lines stay."""
    console = stderr()
    shown = columns or (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    return Progress(*shown, console=console, transient=True, disable=not console.is_terminal)


def entry_of(name: str) -> zoo.ModelSpec:
    """The entry of the zoo called `name`. Raises `typer.BadParameter` with the nearest names."""
    try:
        return zoo.get(name)
    except zoo.UnknownModel as error:
        raise typer.BadParameter(str(error)) from error


@contextmanager
def torch_needed() -> Iterator[None]:
    """Around an import of torch: where it is not installed, print how to install it and exit with 2."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name not in {"torch", "safetensors"}:
            raise
        report_error(f"{error.name} is not installed: pip install 'mobilevision[models]'")
        raise typer.Exit(2) from error
