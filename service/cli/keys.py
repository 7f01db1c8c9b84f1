"""The command `mobilevision keys new`: a new API key for a caller.

In: the name of the caller. Out: the key, once, and the lines for the server that hold only its digest. Nothing is
written to a file. Never sees a server.
"""

import json
from typing import Annotated

import typer

from service.access import api_keys, callers_file

app = typer.Typer(name="keys", help="API keys of callers (docs/access.md).", no_args_is_help=True)


@app.callback()
def keys() -> None:
    """API keys of callers (docs/access.md)."""


@app.command("new")
def new(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Name of the caller: letters, digits, '.', '_' and '-', at most 64.")
    ],
) -> None:
    """Make an API key. It is printed once; the server needs only its digest.

    Example: `mobilevision keys new camera-7`
    """
    key = api_keys.new_key()
    try:
        entry = callers_file.entry(name, key)
    except ValueError:
        raise typer.BadParameter("use letters, digits, '.', '_' and '-', at most 64, first a letter or digit") from None
    setting = json.dumps([f"{name}:{api_keys.digest(key).hex()}"])
    typer.echo(f"# The key of {name}. It is shown only now; give it to the caller.")
    typer.echo(key)
    typer.echo("\n# Add this to the server's callers_file:")
    typer.echo(entry)
    typer.echo("# Or set this, without a file:")
    typer.echo(f"MOBILEVISION_ACCESS_KEYS='{setting}'")
