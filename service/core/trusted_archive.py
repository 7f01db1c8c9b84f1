"""Whether an archive may be served: whole, of the model that its card names, and signed if the operator requires it.

In: the path of an archive, the card that is served, and the file of public keys. Out: nothing, or `ArchiveUntrusted`.
Reads the whole file, and the keys each time. Never copies or unpacks; `handlers.contract.archive_file` reads the zip.
"""

from pathlib import Path

from handlers.contract import archive_file
from handlers.contract.card import Card
from service.core.catalog import CatalogError


class ArchiveUntrusted(CatalogError):
    """An archive is not served. The message is one line: the file, the entry, and what to do."""


def check(archive: Path, card: Card | None, keys: Path | None, *, shown: Path | None = None) -> None:
    """Check every byte of `archive`. `card`: what the gateway serves it by, None where there is none.

    `keys`: public keys in PEM, one of which must have signed it; None: no signature is needed. `shown` is the path that
    messages name. Raises `ArchiveUntrusted`.
    """
    shown = shown or archive
    try:
        content = archive_file.check(archive, shown=shown)
        inside = Card.model_validate_json(content.card)
    except archive_file.ArchiveRefused as error:
        raise ArchiveUntrusted(str(error)) from error
    except ValueError as error:
        first = str(error).splitlines()[0]
        raise ArchiveUntrusted(
            f"{shown}: entry '{archive_file.CARD_ENTRY}' is no model card ({first}); "
            "build the archive again: mobilevision models build"
        ) from error
    if card is not None and inside != card:
        raise ArchiveUntrusted(
            f"{shown}: entry '{archive_file.CARD_ENTRY}' is not the card beside the archive; "
            f"build both again: mobilevision models build {card.name}"
        )
    if keys is not None:
        _check_signature(content, keys, shown)


def _check_signature(content: archive_file.ArchiveContent, keys: Path, shown: Path) -> None:
    try:
        from handlers.contract import signature  # noqa: PLC0415 - needs an extra, and only where signatures are required
    except ModuleNotFoundError as error:
        raise ArchiveUntrusted(
            "require_signature needs the package cryptography: pip install 'mobilevision[signing]'"
        ) from error
    try:
        signature.verify(content.digests, content.signature, signature.public_keys(keys))
    except signature.KeyRefused as error:
        raise ArchiveUntrusted(f"require_signature: {error}") from error
    except signature.SignatureRefused as error:
        raise ArchiveUntrusted(f"{shown}: {error}") from error
