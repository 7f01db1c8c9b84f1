"""A caller: its name, the models it may use, and its limits.

In and out: frozen values. A name says how the caller was identified: `NAME` by an API key, `certificate:NAME` by a
client certificate, `token:SUBJECT` by a token. So the owner of a token cannot take the name of a key.
"""

from dataclasses import dataclass, field

ANONYMOUS_NAME = "anonymous"
# Names that appear in logs or as label values with a meaning of their own.
RESERVED_NAMES = frozenset({"other", "unauthenticated"})
CERTIFICATE = "certificate:"
TOKEN = "token:"  # noqa: S105 - a prefix of names
LONGEST_NAME = 128  # characters, with the prefix


@dataclass(frozen=True, slots=True)
class CallerLimits:
    """What one caller may use in one gateway process. 0: no limit.

    `burst` calls may come at once under `requests_per_second`; 0 means those of one second, at least one.
    """

    requests_per_second: float = 0.0
    burst: int = 0
    inflight_requests: int = 0
    inflight_bytes: int = 0

    @property
    def unlimited(self) -> bool:
        """Whether there is nothing to count."""
        return not (self.requests_per_second or self.inflight_requests or self.inflight_bytes)

    @property
    def burst_calls(self) -> float:
        """The number of calls that may come at once, at least 1."""
        return float(self.burst) if self.burst else max(1.0, self.requests_per_second)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls. `models` are the names of the models it may use, None: all.

    `listed`: the operator named it, or it is the caller of all anonymous calls.
    """

    name: str
    limits: CallerLimits = field(default_factory=CallerLimits)
    models: frozenset[str] | None = None
    listed: bool = False

    @property
    def anonymous(self) -> bool:
        """Whether the call had no credentials."""
        return self.name == ANONYMOUS_NAME


def is_safe_name(name: str) -> bool:
    """Return whether a name can appear in logs and metrics: 1 to `LONGEST_NAME` printable ASCII characters."""
    return 0 < len(name) <= LONGEST_NAME and name.isascii() and name.isprintable()
