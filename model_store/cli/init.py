"""The command `mobilevision models init`: a commented definition file to start from."""

import re
from pathlib import Path
from typing import Annotated

import tomli_w
import typer

from handlers.contract.card import NAME_PATTERN
from model_store import zoo
from model_store.cli import terminal
from model_store.definition.template import template
from model_store.hub.errors import HubError
from model_store.weights.errors import CheckpointError


def init(
    name: Annotated[str, typer.Argument(help="Name of your model, as requests will name it, such as bottles.")],
    base: Annotated[
        str | None, typer.Option(help="The model of `mobilevision models list` that yours was trained from.")
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option(
            "--from", help="A folder of timm, transformers or OpenMMLab: the file says all that the folder says."
        ),
    ] = None,
    directory: Annotated[Path, typer.Option("--dir", help="Folder to write NAME.toml to.")] = Path(),
) -> None:
    """Write NAME.toml: a definition of your own model, with every key explained."""
    if not re.fullmatch(NAME_PATTERN, name):
        raise typer.BadParameter("letters a-z, digits, _ . - only, and a letter or digit first", param_hint="NAME")
    if name in zoo.names():
        raise typer.BadParameter(f"{name} is a model of the zoo; give yours another name", param_hint="NAME")
    if base is None and folder is None:
        raise typer.BadParameter("give --base, or --from with a folder", param_hint="--base")
    text = _of_folder(name, base, folder) if folder is not None else template(name, terminal.entry_of(str(base)))
    path = directory / f"{name}.toml"
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        terminal.report_error(f"{path} exists already; edit it, or choose another name")
        raise typer.Exit(1) from error
    except OSError as error:
        terminal.report_error(f"{path}: {error.strerror or error}")
        raise typer.Exit(1) from error
    typer.echo(f"wrote {path}. Fill it in, then: mobilevision models build {path}")


def _of_folder(name: str, base: str | None, folder: Path) -> str:
    with terminal.torch_needed():
        from model_store.hub import folder as hub  # noqa: PLC0415 - takes a second
    try:
        found = hub.read(folder, name=name, given={} if base is None else {"base": base})
    except (HubError, CheckpointError) as error:
        terminal.report_error(str(error))
        raise typer.Exit(1) from error
    notes = [f"# {note}" for note in found.notes]
    notes += [f"# To be filled in here: {reason}" for reason in found.missing]
    return "\n".join([f"# Read from {folder}.", *notes, "", tomli_w.dumps(found.content)])
