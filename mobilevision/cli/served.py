"""The command `served`: what a running server serves now, as a table or as one line of JSON per model.

The commands `models ...` describe archives on this machine. This one asks a server: whether each model is ready, and
what its workers compute with, in and on.
"""

import json
import sys
from typing import Annotated

import typer
from google.protobuf.json_format import MessageToDict
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mobilevision.cli.calls import Server, Timeout, advice
from mobilevision.client import DEFAULT_TARGET, DEFAULT_TIMEOUT_SECONDS, CallFailed
from mobilevision.connection import ApiKey, Ca, PlaintextKey, Tls, connect
from service.pb.mobilevision.v1 import vision_pb2

COLUMNS = ("model", "version", "task", "weights", "engine", "dtype", "device", "ready")


def served(
    model: Annotated[str, typer.Argument(metavar="[MODEL]", help="Show this model only; --json has its labels.")] = "",
    server: Server = DEFAULT_TARGET,
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON per model.")] = False,
    timeout: Timeout = DEFAULT_TIMEOUT_SECONDS,
    api_key: ApiKey = None,
    tls: Tls = False,
    ca: Ca = None,
    plaintext_key: PlaintextKey = False,
) -> None:
    """Show the models that a running server serves, and the engine, number type and device that compute them.

    Example: `mobilevision served --server localhost:50051`
    """
    client = connect(server, timeout_seconds=timeout, api_key=api_key, tls=tls, ca=ca, plaintext_key=plaintext_key)
    with client:
        try:
            models = [client.get_model(model).reply.model] if model else client.list_models().reply.models
        except CallFailed as error:
            errors = Console(stderr=True, highlight=False, soft_wrap=True)
            errors.print(f"[bold red]error:[/] {escape(advice(error, client.target))}")
            raise typer.Exit(1) from error
    if as_json:
        for found in models:
            line = MessageToDict(found, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
            sys.stdout.write(json.dumps(line, ensure_ascii=False) + "\n")
        return
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="dim")
    for column in COLUMNS:
        table.add_column(column, overflow="fold", no_wrap=column in {"model", "engine", "dtype"})
    for found in models:
        table.add_row(*(escape(value) for value in _row(found)))
    Console(highlight=False).print(table)


def register(app: typer.Typer) -> None:
    """Add the command to the `mobilevision` command."""
    app.command()(served)


def _row(model: vision_pb2.Model) -> tuple[str, ...]:
    return (
        model.name,
        model.version,
        vision_pb2.Task.Name(model.task).removeprefix("TASK_").lower(),
        vision_pb2.WeightsState.Name(model.weights).removeprefix("WEIGHTS_STATE_").lower(),
        model.engine or "-",
        model.dtype or "-",
        model.device or "-",
        "yes" if model.ready else "no",
    )
