"""The callers that the operator names, from a TOML or JSON file or from the setting `access_keys`.

    [[callers]]
    name = "camera-7"
    sha256 = ["..."]                 # digests of its keys; two while a key is replaced
    models = ["demo_classify"]       # optional: all models
    requests_per_second = 20         # optional, as the other limits: those of the settings
    burst = 40
    inflight_requests = 8
    inflight_megabytes = 64

JSON has the same names: `{"callers": [{"name": ...}]}`. A caller without `sha256` states what a caller known by its
certificate (`certificate:NAME`) or token (`token:SUBJECT`) may use, or what anonymous calls may use (`anonymous`).

In: the bytes of the file. Out: `Callers`, or `FileInvalid`. Errors name entries by number and never quote them.
"""

import hmac
import json
import re
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from service.access import api_keys
from service.access.callers import ANONYMOUS_NAME, CERTIFICATE, RESERVED_NAMES, TOKEN, Caller, CallerLimits
from service.access.followed_file import FileInvalid

MOST_CALLERS = 1000
MOST_KEYS = 8  # of one caller
INDEXED_BYTES = 2  # of a digest: with 1000 keys, comparing all would take 0.2 ms of each call

_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_PREFIXED_NAME = re.compile(rf"({CERTIFICATE}|{TOKEN})[\x20-\x7e]{{1,100}}")
_Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
_Model = Annotated[str, Field(min_length=1, max_length=256)]


class _Entry(BaseModel):
    """One `[[callers]]` of the file."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str
    sha256: list[_Digest] = Field(default=[], max_length=MOST_KEYS)
    models: list[_Model] | None = Field(default=None, max_length=1000)
    requests_per_second: float | None = Field(default=None, ge=0, le=1e6, allow_inf_nan=False)
    burst: int | None = Field(default=None, ge=0, le=10**6)
    inflight_requests: int | None = Field(default=None, ge=0, le=100_000)
    inflight_megabytes: int | None = Field(default=None, ge=0, le=2**20)

    @model_validator(mode="after")
    def _name_fits_its_keys(self) -> "_Entry":
        plain = _PLAIN_NAME.fullmatch(self.name) is not None and self.name not in RESERVED_NAMES
        if self.name == ANONYMOUS_NAME or _PREFIXED_NAME.fullmatch(self.name):
            if self.sha256:
                raise ValueError("only a plain name has keys: letters, digits, '.', '_' and '-', at most 64")
        elif not plain:
            raise ValueError(
                f"the name is not one of: a plain name (letters, digits, '.', '_', '-', at most 64), "
                f"{CERTIFICATE}NAME, {TOKEN}SUBJECT, {ANONYMOUS_NAME}; reserved: {', '.join(sorted(RESERVED_NAMES))}"
            )
        elif not self.sha256:
            raise ValueError("sha256 is missing; `mobilevision keys new NAME` makes a key and prints its entry")
        return self


class _File(BaseModel):
    """The whole file."""

    model_config = ConfigDict(extra="forbid", strict=True)

    callers: list[_Entry] = Field(max_length=MOST_CALLERS)


class Callers:
    """The named callers, from pairs of a caller and the digests of its keys, 32 bytes each."""

    def __init__(self, callers: Iterable[tuple[Caller, tuple[bytes, ...]]] = ()) -> None:
        pairs = list(callers)
        self.by_name: Mapping[str, Caller] = {caller.name: caller for caller, _ in pairs}
        self._by_start: dict[bytes, list[tuple[bytes, Caller]]] = {}
        for caller, digests in pairs:
            for digest in digests:
                self._by_start.setdefault(digest[:INDEXED_BYTES], []).append((digest, caller))

    def owner(self, key: str) -> Caller | None:
        """Return the caller of a key, None if nobody has it. Digests are compared as a whole, in constant time.

        Only those that begin like the digest of `key` are compared. How many these are says nothing about a key: its
        digest cannot be steered, and 16 of its 256 bits do not help to find it.
        """
        if len(key) > api_keys.MOST_CHARACTERS or not key.isascii():
            return None
        sent, owner = api_keys.digest(key), None
        for digest, caller in self._by_start.get(sent[:INDEXED_BYTES], ()):
            if hmac.compare_digest(digest, sent):
                owner = caller
        return owner


def read(raw: bytes, *, json_format: bool, defaults: CallerLimits, access_keys: Iterable[str] = ()) -> Callers:
    """Parse the file, and add the callers of `access_keys` (NAME:SHA256). Raises `FileInvalid`.

    `defaults` are the limits that an entry does not state.
    """
    try:
        entries = _File.model_validate(_parsed(raw, json_format=json_format)).callers
    except ValidationError as error:
        raise FileInvalid(f"the callers file is not valid: {_described(error)}") from None
    return _joined([*entries, *_from_setting(access_keys)], defaults)


def from_setting(access_keys: Iterable[str], *, defaults: CallerLimits) -> Callers:
    """Return the callers of the setting `access_keys`. Raises `FileInvalid` for a key that two callers share."""
    return _joined(_from_setting(access_keys), defaults)


def entry(name: str, key: str) -> str:
    """Return the lines of the file for a new caller. Raises ValueError for a name that the file cannot have."""
    digest = api_keys.digest(key).hex()
    _Entry(name=name, sha256=[digest])
    return f'[[callers]]\nname = "{name}"\nsha256 = ["{digest}"]\n'


def _parsed(raw: bytes, *, json_format: bool) -> Any:
    try:
        return json.loads(raw) if json_format else tomllib.loads(raw.decode())
    except (ValueError, RecursionError) as error:  # of both parsers; their texts may quote the file
        where = "".join(re.findall(r"\(?(?:at )?line \d+,? column \d+", str(error))[:1]).lstrip("(")
        kind = "JSON" if json_format else "TOML"
        raise FileInvalid(f"the callers file is not {kind}{where and f' ({where})'}") from None


def _from_setting(access_keys: Iterable[str]) -> list[_Entry]:
    digests: dict[str, list[str]] = {}
    for each in access_keys:
        name, _, digest = each.partition(":")
        digests.setdefault(name, []).append(digest)
    try:
        return [_Entry(name=name, sha256=found) for name, found in digests.items()]
    except ValidationError as error:
        raise FileInvalid(f"access_keys is not valid: {_described(error)}") from None


def _joined(entries: list[_Entry], defaults: CallerLimits) -> Callers:
    names, digests = [each.name for each in entries], [each for entry in entries for each in entry.sha256]
    for kind, found in (("name", names), ("sha256", digests)):
        twice = sorted(each for each, count in Counter(found).items() if count > 1)
        if twice:
            shown = f": {twice[0]}" if kind == "name" else ""
            raise FileInvalid(f"the callers file or access_keys has the same {kind} twice{shown}")
    return Callers(
        (_caller(each, defaults), tuple(bytes.fromhex(digest) for digest in each.sha256)) for each in entries
    )


def _caller(stated: _Entry, defaults: CallerLimits) -> Caller:
    def limit(value: int | None, default: int) -> int:
        return default if value is None else value

    rate, megabytes = stated.requests_per_second, stated.inflight_megabytes
    limits = CallerLimits(
        requests_per_second=defaults.requests_per_second if rate is None else rate,
        # The burst of the settings belongs to the rate of the settings.
        burst=limit(stated.burst, defaults.burst if rate is None else 0),
        inflight_requests=limit(stated.inflight_requests, defaults.inflight_requests),
        inflight_bytes=defaults.inflight_bytes if megabytes is None else megabytes * 2**20,
    )
    models = None if stated.models is None else frozenset(stated.models)
    return Caller(name=stated.name, limits=limits, models=models, listed=True)


def _described(error: ValidationError) -> str:
    """Return where and why, without the values: an operator may have put a key in a wrong place."""
    first = error.errors(include_input=False, include_url=False)[0]
    place = ".".join(str(part + 1 if isinstance(part, int) else part) for part in first["loc"])
    more = error.error_count() - 1
    return f"{place or 'file'}: {first['msg']}{f' (and {more} more)' if more else ''}"
