"""Decides who calls, and whether the call is admitted. One `AccessControl` for all fronts of a gateway process.

In: headers and verified certificate names of a call, from any front. Out: a `Caller`, or `Unauthenticated`; then
admission for as long as the call lasts, or `RateLimited`. Knows no protocol. No error, log line or representation here
has a key or a token.

Whether anonymous calls are answered depends on the address that the server listens on, not on the address that a call
comes from: behind a proxy on the same machine every call comes from the loopback.
"""

import ipaddress
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

from service.access import callers_file
from service.access.caller_limits import CallerLimiter
from service.access.callers import ANONYMOUS_NAME, CERTIFICATE, Caller, CallerLimits, is_safe_name
from service.access.callers_file import Callers
from service.access.followed_file import FileInvalid, FollowedFile
from service.access.tokens_extra import Tokens, token_verifier
from service.core.errors import Unauthenticated
from service.core.settings import Settings, SettingsError

AUTHORIZATION_KEY = "authorization"  # `Bearer KEY` or `Bearer TOKEN`
API_KEY_KEY = "x-api-key"
_BEARER = "bearer "

Metadata = Iterable[tuple[str, str | bytes]]


class AccessControl:
    """Who may call. `callers` returns the callers that the operator named. `tokens` verifies tokens, None: no tokens.

    `has_keys`: callers may have API keys. `checks_certificates`: clients have certificates that the front verified.
    `defaults` are the limits of callers that the operator did not name.
    """

    def __init__(
        self,
        *,
        callers: Callable[[], Callers] = Callers,
        tokens: Tokens | None = None,
        has_keys: bool = False,
        checks_certificates: bool = False,
        allows_anonymous: bool = True,
        defaults: CallerLimits | None = None,
        clock: Callable[[], float],
    ) -> None:
        self._callers = callers
        self._tokens = tokens
        self._reads_credentials = has_keys or tokens is not None
        self.checks_certificates = checks_certificates
        self.allows_anonymous = allows_anonymous
        self._defaults = defaults or CallerLimits()
        self._limiter = CallerLimiter(clock)

    @classmethod
    def from_settings(cls, settings: Settings, clock: Callable[[], float]) -> "AccessControl":
        """Read the files that the settings name. Raises `SettingsError` of one line where nobody could call."""
        defaults = CallerLimits(
            requests_per_second=settings.caller_requests_per_second,
            burst=settings.caller_burst,
            inflight_requests=settings.caller_inflight_requests,
            inflight_bytes=settings.caller_inflight_megabytes * 2**20,
        )
        try:
            callers = _callers(settings, defaults, clock)
            tokens = token_verifier(settings, clock)
        except FileInvalid as error:
            raise SettingsError(str(error)) from error
        control = cls(
            callers=callers,
            tokens=tokens,
            has_keys=settings.callers_file is not None or bool(settings.access_keys),
            checks_certificates=settings.tls_client_ca is not None,
            allows_anonymous=_allows_anonymous(settings),
            defaults=defaults,
            clock=clock,
        )
        if not (control.allows_anonymous or control.checks_certificates or control._reads_credentials):
            raise SettingsError(
                f"nobody could call: anonymous = {settings.anonymous} refuses calls without credentials at "
                f"{settings.grpc_host}, and there are no callers; set callers_file (`mobilevision keys new NAME`), or "
                "anonymous = allow"
            )
        return control

    def identify(self, metadata: Metadata, certificate_names: Iterable[str] = ()) -> Caller:
        """Return who calls. Headers come before the certificate: a proxy may have one certificate for many callers.

        `certificate_names` are those of a verified client certificate, best first. Raises `Unauthenticated`. Wrong
        credentials never make a call anonymous. Where the server has neither keys nor tokens, headers are ignored.
        """
        callers = self._callers()
        credentials = _credentials(metadata) if self._reads_credentials else None
        if credentials is not None:
            return self._identified(credentials, callers)
        for name in certificate_names:
            if not is_safe_name(CERTIFICATE + name):
                raise Unauthenticated("the name in the client certificate is too long or not printable ASCII")
            return self._named(CERTIFICATE + name, callers)
        if not self.allows_anonymous:
            raise Unauthenticated(
                f"the call has no credentials; send an API key as metadata `{AUTHORIZATION_KEY}: Bearer KEY` or "
                f"`{API_KEY_KEY}: KEY`"
            )
        return self._named(ANONYMOUS_NAME, callers)

    def admitted(self, caller: Caller, request_bytes: int) -> AbstractContextManager[None]:
        """Return a context in which the call counts as in work. Entering it raises `RateLimited`."""
        return self._limiter.admitted(caller, request_bytes)

    def _identified(self, credentials: str, callers: Callers) -> Caller:
        if self._tokens is not None and credentials.count(".") == 2:
            return self._named(self._tokens.caller_name(credentials), callers)
        found = callers.owner(credentials)
        if found is None:
            raise Unauthenticated("the server does not know this API key")
        return found

    def _named(self, name: str, callers: Callers) -> Caller:
        return callers.by_name.get(name) or Caller(name, self._defaults, listed=name == ANONYMOUS_NAME)


def _credentials(metadata: Metadata) -> str | None:
    """Return the API key or token of a call, None where it has none. Raises `Unauthenticated` for several."""
    found = set()
    for key, value in metadata:
        if key == API_KEY_KEY and isinstance(value, str):
            found.add(value.strip())
        elif key == AUTHORIZATION_KEY and isinstance(value, str):
            if value[: len(_BEARER)].lower() != _BEARER:
                raise Unauthenticated(f"the metadata `{AUTHORIZATION_KEY}` is not `Bearer KEY`")
            found.add(value[len(_BEARER) :].strip())
    if len(found) > 1:
        raise Unauthenticated("the call has several different API keys or tokens")
    return found.pop() if found else None


def _callers(settings: Settings, defaults: CallerLimits, clock: Callable[[], float]) -> Callable[[], Callers]:
    path: Path | None = settings.callers_file
    if path is None:
        fixed = callers_file.from_setting(settings.access_keys, defaults=defaults)
        return lambda: fixed
    load = partial(
        callers_file.read,
        json_format=path.suffix == ".json",
        defaults=defaults,
        access_keys=settings.access_keys,
    )
    return FollowedFile(path, load=load, clock=clock).value


def _allows_anonymous(settings: Settings) -> bool:
    return settings.anonymous == "allow" or (settings.anonymous == "loopback" and _is_loopback(settings.grpc_host))


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:  # a name that may stand for any address
        return False
