"""The `mobilevision` command. Parses, calls, prints; no logic of its own."""

import asyncio
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from handlers.frame import Array
from model_store.card import InputSize, Preprocess, WeightsState
from model_store.commands import app as models_app
from service import catalog as catalogs
from service import decode, logs, rollout, rollout_commands, settings
from service.backend import ModelStatus
from service.client import commands as client_commands
from service.container import become_torchserve
from service.demo import DemoFailed, run_demo
from service.eval import commands as eval_commands
from service.fleet import FleetFailed
from service.launch import EmbeddedError
from service.ports import PortTaken
from service.server import Address, serve
from service.tracing import TracingUnavailable
from service.tune import commands as tune_commands

app = typer.Typer(
    name="mobilevision",
    help="Serve mobile vision models over gRPC: labels, boxes and masks in the picture's own pixels.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
app.add_typer(models_app, name="models")
rollout_commands.register(models_app)
client_commands.register(app)
eval_commands.register(app)
tune_commands.register(app)

_err = Console(stderr=True, highlight=False)


def _fail(message: str) -> NoReturn:
    _err.print(f"[bold red]error:[/] {escape(message)}")
    raise typer.Exit(1)


@app.callback()
def _hand_in(context: typer.Context) -> None:
    # `models verify` compares the gateway's reading of pictures as well, and may not import it.
    context.obj = to_input


def to_input(picture: bytes, size: InputSize, preprocess: Preprocess) -> Array:
    """Bring a picture to a model's input, uint8 [H, W, 3], as the gateway does it."""
    limits = decode.Limits(max_bytes=len(picture), max_pixels=10**8)
    return decode.decode(picture, size=size, preprocess=preprocess, limits=limits).pixels


@app.command("serve")
def serve_command(
    models: Annotated[
        list[str] | None, typer.Argument(help="Models to serve. None: every archive in the folder (up to six).")
    ] = None,
    archives: Annotated[Path | None, typer.Option(help="Folder with the archives [model_store/archives].")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on, gRPC and HTTP [127.0.0.1].")] = None,
    grpc_port: Annotated[int | None, typer.Option(help="gRPC port [50051, or a free one].")] = None,
    http_port: Annotated[
        int | None, typer.Option(help="Port of /metrics, /livez, /readyz [50052, or a free one].")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file with settings (see docs/settings.md).")] = None,
    ready_file: Annotated[
        Path | None, typer.Option(help="File that holds the addresses as JSON while the gateway answers.")
    ] = None,
) -> None:
    """Serve models: start TorchServe and the gRPC gateway, run until Ctrl-C, then drain.

    Every setting can also be given as MOBILEVISION_NAME in the environment or in a TOML file; docs/settings.md has all.
    """
    try:
        chosen = settings.load(
            config,
            models=tuple(models) if models else None,
            archives=archives,
            grpc_host=host,
            http_host=host,
            grpc_port=grpc_port,
            http_port=http_port,
        )
        logs.configure(level=chosen.log_level, log_format=chosen.log_format)
        catalog = rollout.served(chosen)
        terminal = _err.is_terminal
        with _err.status("starting TorchServe") as spinner:

            def show(statuses: Mapping[str, ModelStatus]) -> None:
                ready = sum(status.ready_workers > 0 for status in statuses.values())
                spinner.update(f"loading models: {ready} of {len(statuses)} ready")

            def announce(address: Address) -> None:
                spinner.stop()
                if terminal:
                    _err.print(_banner(catalog, address))

            asyncio.run(
                serve(
                    chosen,
                    catalog,
                    on_progress=show,
                    on_ready=announce,
                    on_stopping=lambda: _err.print("draining; Ctrl-C again to stop at once") if terminal else None,
                    ready_file=ready_file,
                )
            )
    except (
        settings.SettingsError,
        catalogs.CatalogError,
        PortTaken,
        TracingUnavailable,
        EmbeddedError,
        FleetFailed,
    ) as error:
        _fail(str(error))


@app.command(hidden=True)
def gateway_process(number: int, processes: int) -> None:
    """Be one of several gateway processes: settings from the environment, the address as JSON on standard output."""
    try:
        chosen = settings.load()
        logs.configure(level=chosen.log_level, log_format=chosen.log_format, process=number)
        catalog = rollout.served(chosen)

        def announce(address: Address) -> None:
            print(json.dumps({"grpc": address.grpc, "http": address.http}), flush=True)

        asyncio.run(serve(chosen, catalog, on_ready=announce, peers=processes))
    except (settings.SettingsError, catalogs.CatalogError, PortTaken, TracingUnavailable) as error:
        _fail(str(error))


@app.command("torchserve")
def torchserve_command(
    config: Annotated[Path | None, typer.Option(help="TOML file with settings (see docs/settings.md).")] = None,
) -> None:
    """Run TorchServe alone, for a gateway in a container beside this one that has the same settings.

    Needs torchserve_inference and torchserve_management (on loopback), and torchserve_key_file in a shared folder.
    """
    try:
        chosen = settings.load(config)
        catalog = rollout.served(chosen)
        become_torchserve(chosen, catalog)
    except (settings.SettingsError, catalogs.CatalogError, EmbeddedError) as error:
        _fail(str(error))


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the annotated pictures and report.json.")] = Path("build/demo"),
    pictures: Annotated[Path, typer.Option(help="Folder with JPEG pictures to send.")] = Path("docs/pictures"),
    archives: Annotated[Path, typer.Option(help="Folder with the archives; missing ones are built.")] = Path(
        "model_store/archives"
    ),
) -> None:
    """Build what is missing, serve it, send real pictures through the three calls, show the results, stop."""
    try:
        run_demo(out=out, pictures=pictures, archives=archives, console=Console(highlight=False))
    except DemoFailed as error:
        _fail(str(error))


def _banner(catalog: catalogs.Catalog, address: Address) -> Table:
    table = Table(
        title=f"ready after {address.startup_seconds:.1f} s · gRPC {address.grpc} · metrics http://{address.http}/metrics"
    )
    for column in ("model", "task", "input", "weights"):
        table.add_column(column)
    for card in catalog.cards:
        random = card.weights.state is WeightsState.RANDOM
        table.add_row(
            card.name + (" (default)" if catalog.is_default(card) else ""),
            card.task,
            f"{card.input.width}x{card.input.height}",
            f"[red]{card.weights.state}: answers mean nothing[/]" if random else str(card.weights.state),
        )
    return table


def main() -> None:
    """Entry point of the console script."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
