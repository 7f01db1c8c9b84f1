"""Imports `service.access.tokens` only where tokens are used: PyJWT is an optional extra.

In: the settings. Out: a verifier of tokens, or None where the settings name no keys for tokens.
"""

from collections.abc import Callable
from typing import Protocol

from service.core.settings import Settings, SettingsError


class Tokens(Protocol):
    """Verifies tokens."""

    def caller_name(self, token: str) -> str:
        """Return the name of the caller. Raises `Unauthenticated`."""
        ...


def token_verifier(settings: Settings, clock: Callable[[], float]) -> Tokens | None:
    """Return a verifier, or None. Raises `SettingsError` without PyJWT, `FileInvalid` for the file of keys."""
    if settings.jwt_keys is None or settings.jwt_issuer is None or settings.jwt_audience is None:
        return None
    try:
        from service.access.tokens import TokenVerifier  # noqa: PLC0415 - an optional extra
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"jwt_keys is set, but {error.name} is not installed: pip install 'mobilevision[jwt]'"
        ) from error
    return TokenVerifier(settings.jwt_keys, issuer=settings.jwt_issuer, audience=settings.jwt_audience, clock=clock)
