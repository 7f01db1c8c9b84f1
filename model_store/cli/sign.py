"""The commands `mobilevision models sign` and `verify-signature`: who made an archive.

In: archives and a key. Out: signed archives, or the answer whether a key signed them. Both need the extra `signing`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from handlers.contract import archive_file
from handlers.contract.archive_file import ArchiveRefused
from model_store.build import archive
from model_store.cli import terminal

Archives = Annotated[list[Path], typer.Argument(help="Archives (.mar).")]


def sign(
    archives: Archives,
    key: Annotated[Path, typer.Option(help="Private Ed25519 key, PKCS8 in PEM, without a passphrase.")],
) -> None:
    """Sign archives, in place of any earlier signature. A server with require_signature then loads them.

    Make a private key: `openssl genpkey -algorithm ed25519 -out KEY.pem`

    Its public key: `openssl pkey -in KEY.pem -pubout -out PUBLIC.pem`
    """
    with _cryptography_needed():
        from handlers.contract import signature  # noqa: PLC0415 - the package of an extra
    with _reported(signature.KeyRefused):
        private = signature.private_key(key)
    failed = False
    for path in archives:
        try:
            content = archive_file.check(path)
            archive.replace(path, archive_file.signed(path, signature.sign(content.digests, private)))
            typer.echo(f"{path}: signed version {content.version} of {content.name}")
        except ArchiveRefused as error:
            failed = True
            terminal.report_error(str(error))
        except OSError as error:
            failed = True
            terminal.report_error(f"{path} cannot be written: {error.strerror or error}")
    if failed:
        raise typer.Exit(1)


def verify_signature(
    archives: Archives,
    key: Annotated[Path, typer.Option(help="Public Ed25519 keys in PEM, as in the setting require_signature.")],
) -> None:
    """Check every byte of archives, and that one of the keys signed them, as the server does with require_signature."""
    with _cryptography_needed():
        from handlers.contract import signature  # noqa: PLC0415 - the package of an extra
    with _reported(signature.KeyRefused):
        keys = signature.public_keys(key)
    failed = False
    for path in archives:
        try:
            content = archive_file.check(path)
            number = 1 + signature.verify(content.digests, content.signature, keys)
            typer.echo(f"{path}: version {content.version} of {content.name}, signed by key {number} of {key}")
        except ArchiveRefused as error:
            failed = True
            terminal.report_error(str(error))
        except signature.SignatureRefused as error:
            failed = True
            terminal.report_error(f"{path}: {error}")
    if failed:
        raise typer.Exit(1)


@contextmanager
def _cryptography_needed() -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        terminal.report_error("signatures need the package cryptography: pip install 'mobilevision[signing]'")
        raise typer.Exit(2) from error


@contextmanager
def _reported(kind: type[Exception]) -> Iterator[None]:
    try:
        yield
    except kind as error:
        terminal.report_error(str(error))
        raise typer.Exit(2) from error
