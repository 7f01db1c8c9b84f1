"""The commands of the server: `serve`, `torchserve`, `models ...`, `keys` and `tune`.

In: the command line. Out: a running server or TorchServe, or the output of a command. `mobilevision.cli.main` adds
these commands to those of the client. A command only reads its options, calls other rooms and prints.
"""

import asyncio
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from handlers.contract.card import InputSize, Preprocess, WeightsState
from handlers.contract.frame import Array
from model_store.cli.commands import models_app
from service.app.server import Address, serve
from service.cli import compare, errors, keys
from service.cli import rollout as rollout_commands
from service.core import catalog as catalogs
from service.core import logs, settings
from service.engines.base import ModelStatus
from service.engines.torchserve.container import become_torchserve
from service.preprocess.image import decode
from service.preprocess.limits import Limits
from service.serving import rollout_spec
from service.tune import commands as tune_commands

app = typer.Typer(
    name="mobilevision",
    help="Serve mobile vision models over gRPC: labels, boxes and masks in the picture's own pixels.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
tune_commands.register(app)

_err = Console(stderr=True, highlight=False)


Config = Annotated[Path | None, typer.Option(help="TOML file with settings (see docs/settings.md).")]


def to_input(picture: bytes, size: InputSize, preprocess: Preprocess) -> Array:
    """Bring a picture to a model's input, uint8 [H, W, 3], as the gateway does it."""
    return read_picture(picture, size, preprocess)[0]


def read_picture(
    picture: bytes, size: InputSize, preprocess: Preprocess
) -> tuple[Array, tuple[float, float, float, float]]:
    """As `to_input`, uint8 [H, W, 3], and where the input lies in the picture: x0, y0, x1, y1 in its pixels."""
    limits = Limits(max_bytes=len(picture), max_pixels=10**8)
    decoded = decode(picture, size=size, preprocess=preprocess, limits=limits)
    place = decoded.geometry
    return decoded.pixels, (place.x0, place.y0, place.x1, place.y1)


_models = models_app(to_input=to_input, read_picture=read_picture)
rollout_commands.register(_models)
compare.register(_models)
app.add_typer(_models, name="models")
app.add_typer(keys.app, name="keys")


@app.command("serve")
def serve_command(
    models: Annotated[
        list[str] | None, typer.Argument(help="Models to serve [every archive in the folder, at most six].")
    ] = None,
    archives: Annotated[Path | None, typer.Option(help="Folder with the archives [model_store/archives].")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on, for gRPC and HTTP [127.0.0.1].")] = None,
    grpc_port: Annotated[int | None, typer.Option(help="gRPC port; 0 takes a free one [50051, or a free one].")] = None,
    http_port: Annotated[
        int | None, typer.Option(help="Port of /metrics, /livez and /readyz [50052, or a free one].")
    ] = None,
    config: Config = None,
    ready_file: Annotated[
        Path | None, typer.Option(help="File that holds the addresses as JSON while the gateway answers calls.")
    ] = None,
) -> None:
    """Serve models: start TorchServe and the gRPC gateway, and run until Ctrl-C. Calls in progress are answered first.

    Example: `mobilevision serve demo_classify demo_detect`

    docs/settings.md lists all settings. Each can also be set as MOBILEVISION_NAME in the environment, or in a TOML
    file.
    """
    with errors.reported():
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
        _serve(chosen, rollout_spec.served(chosen), ready_file)


def _serve(chosen: settings.Settings, catalog: catalogs.Catalog, ready_file: Path | None) -> None:
    """Serve until the process is told to stop; show the progress where standard error is a terminal."""
    terminal = _err.is_terminal
    with _err.status("starting TorchServe") as spinner:

        def show_progress(statuses: Mapping[str, ModelStatus]) -> None:
            ready = sum(status.ready_workers > 0 for status in statuses.values())
            spinner.update(f"loading models: {ready} of {len(statuses)} ready")

        def show_address(address: Address) -> None:
            spinner.stop()
            if terminal:
                _err.print(_banner(catalog, address))

        def show_stopping() -> None:
            if terminal:
                _err.print("answering the calls in progress; Ctrl-C again to stop at once")

        asyncio.run(
            serve(
                chosen,
                catalog,
                on_progress=show_progress,
                on_ready=show_address,
                on_stopping=show_stopping,
                ready_file=ready_file,
            )
        )


@app.command(hidden=True)
def gateway_process(number: int, processes: int) -> None:
    """Run one of several gateway processes. The supervisor starts this command; the settings are in the environment.

    Prints the address as one line of JSON on standard output once the process answers calls.
    """
    with errors.reported():
        chosen = settings.load()
        logs.configure(level=chosen.log_level, log_format=chosen.log_format, process=number)
        catalog = rollout_spec.served(chosen)

        def announce(address: Address) -> None:
            print(json.dumps({"grpc": address.grpc, "http": address.http}), flush=True)

        asyncio.run(serve(chosen, catalog, on_ready=announce, replicas=processes))


@app.command("torchserve")
def torchserve_command(config: Config = None) -> None:
    """Run TorchServe alone, for a gateway in another container of the same pod that has the same settings.

    Example: `mobilevision torchserve --config settings.toml`

    Needs the settings torchserve_inference and torchserve_management (loopback addresses), and torchserve_key_file (a
    file in a folder that both containers share).
    """
    with errors.reported():
        chosen = settings.load(config)
        become_torchserve(chosen, rollout_spec.served(chosen))


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
