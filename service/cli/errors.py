"""How a command of the server fails: one line on standard error that says what to do, and exit code 1."""

from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.markup import escape

from service.app.supervisor import SupervisorFailed
from service.cli.canary_analysis import NotServed
from service.core.catalog import CatalogError
from service.core.ports import PortTaken
from service.core.settings import SettingsError
from service.engines.torchserve.config import TorchServeFailed
from service.observability.tracing import TracingUnavailable


class MetricsUnreachable(Exception):
    """A gateway's metrics page, or Prometheus, cannot be read. The message says which and what to do."""


class GateClosed(Exception):
    """A candidate does not pass the gate over the fleet. The message has each check that fails."""


# Errors that a user can solve. Their messages say how. Any other exception is a defect, and its traceback is shown.
EXPECTED: tuple[type[Exception], ...] = (
    CatalogError,
    GateClosed,
    MetricsUnreachable,
    NotServed,
    PortTaken,
    SettingsError,
    SupervisorFailed,
    TorchServeFailed,
    TracingUnavailable,
)


@contextmanager
def reported() -> Iterator[None]:
    """Print an expected error of the `with` block as one line. Raises `typer.Exit(1)` after that."""
    try:
        yield
    except EXPECTED as error:
        console = Console(stderr=True, highlight=False)
        console.print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True)
        raise typer.Exit(1) from error
