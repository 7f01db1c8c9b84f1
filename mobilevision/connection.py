"""How a command connects to a server: options of the command line in, a `VisionClient` out.

The API key can also come from MOBILEVISION_API_KEY, which keeps it out of the history of the shell and of the list of
processes. Never prints a key.
"""

from pathlib import Path
from typing import Annotated

import grpc
import typer

from mobilevision.client import VisionClient

API_KEY_VARIABLE = "MOBILEVISION_API_KEY"

ApiKey = Annotated[
    str | None,
    typer.Option(
        "--api-key",
        metavar="KEY",
        envvar=API_KEY_VARIABLE,
        show_envvar=False,
        help=f"API key or token of the caller [{API_KEY_VARIABLE}].",
    ),
]
Tls = Annotated[bool, typer.Option("--tls", help="Use TLS, with the certificate authorities that gRPC knows.")]
Ca = Annotated[
    Path | None,
    typer.Option("--ca", metavar="FILE", help="Use TLS, with the certificate authorities in this PEM file."),
]
PlaintextKey = Annotated[
    bool, typer.Option("--plaintext-key", help="Send the key without TLS to another machine, where others may read it.")
]


def connect(
    server: str, *, timeout_seconds: float, api_key: str | None, tls: bool, ca: Path | None, plaintext_key: bool
) -> VisionClient:
    """Return a client. Raises `typer.BadParameter` where the key would travel in plain text, or `ca` is unreadable."""
    credentials = None
    if tls or ca is not None:
        try:
            credentials = grpc.ssl_channel_credentials(None if ca is None else ca.read_bytes())
        except OSError as error:
            raise typer.BadParameter(f"--ca {ca} cannot be read: {error.strerror}") from error
    try:
        return VisionClient(
            server,
            timeout_seconds=timeout_seconds,
            credentials=credentials,
            api_key=api_key or None,
            allow_plaintext_key=plaintext_key,
        )
    except ValueError as error:
        raise typer.BadParameter(f"{error}; use --tls or --ca FILE, or --plaintext-key") from error
