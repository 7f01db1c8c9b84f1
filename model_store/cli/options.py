"""The options of `models pull`: which of their combinations are allowed. `build_options` has those of `models build`.

Each command has one frozen object. A combination that is not allowed raises `typer.BadParameter` (exit code 2), which
names the option. The commands rely on these checks and make none of their own.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import typer

from model_store import zoo
from model_store.cli.terminal import entry_of
from model_store.weights import layouts

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class PullOptions:
    """`models pull`.

    | option | allowed |
    |---|---|
    | `--from`, `--url` | at most one of the two |
    | `--published` | with `--from` |
    | `--sha256` | 64 hexadecimal digits |
    """

    name: str
    local: Path | None
    published: bool
    url: str | None
    layout: str | None
    sha256: str
    store: Path
    refresh: bool

    def __post_init__(self) -> None:
        """Check the options. Raises `typer.BadParameter`."""
        entry_of(self.name)
        refuse(self.local is not None and self.url is not None, "--from", "--from and --url exclude each other")
        refuse(self.published and self.local is None, "--published", "belongs to --from")
        digits = not self.sha256 or _SHA256.fullmatch(self.sha256.lower()) is not None
        refuse(not digits, "--sha256", "64 hexadecimal digits")
        check_layout(self.layout)

    @property
    def entry(self) -> zoo.ModelSpec:
        """The model whose checkpoint is pulled."""
        return entry_of(self.name)


def refuse(wrong: bool, option: str, message: str) -> None:
    """Raise `typer.BadParameter` if an option is wrong."""
    if wrong:
        raise typer.BadParameter(message, param_hint=option)


def check_layout(name: str | None) -> None:
    """Raise `typer.BadParameter` if there is no such layout."""
    if name is None:
        return
    try:
        layouts.get(name)
    except layouts.UnknownLayout as error:
        raise typer.BadParameter(str(error), param_hint="--layout") from error
