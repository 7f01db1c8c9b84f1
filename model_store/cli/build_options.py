"""The options of `models build`: which combinations are allowed, and which models they mean."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import tomli_w
import typer

from handlers.contract.card import FIRST_VERSION, VERSION_PATTERN
from model_store import zoo
from model_store.cli.options import check_layout, refuse
from model_store.cli.targets import DefinedTarget, HubTarget, Target, ZooTarget
from model_store.cli.terminal import entry_of
from model_store.definition import read
from model_store.definition.errors import DefinitionError
from model_store.pull.choose import Checkpoint, choose
from model_store.pull.store import Store

if TYPE_CHECKING:
    pass

Made = TypeVar("Made")
_SIZE = re.compile(r"(\d{1,5})x(\d{1,5})")


@dataclass(frozen=True, kw_only=True)
class OwnModelOptions:
    """What `--base` or `--from` and their companions say: a definition without a file."""

    base: str | None
    folder: Path | None
    name: str | None
    labels: str | None
    input_size: str | None
    mean: str | None
    std: str | None
    channels: str | None
    resize: str | None
    weights: str | None

    @property
    def given(self) -> list[str]:
        """The options that were given, as they are written."""
        written = {"input_size": "input", "folder": "from"}
        return [
            f"--{written.get(each.name, each.name)}" for each in fields(self) if getattr(self, each.name) is not None
        ]

    def flat(self, *, checkpoint: Path | None, layout: str | None, version: str | None) -> dict[str, Any]:
        """The keys of the definition without its tables. Raises `typer.BadParameter`."""
        content = self.content(checkpoint=checkpoint, layout=layout, version=version)
        return {**content.pop("preprocess", {}), **content.pop("input", {}), **content}

    def content(self, *, checkpoint: Path | None, layout: str | None, version: str | None) -> dict[str, Any]:
        """The keys of the definition. Raises `typer.BadParameter`."""
        preprocess = {
            "resize": self.resize,
            "channels": self.channels,
            "mean": three_of(self.mean, "--mean"),
            "std": three_of(self.std, "--std"),
        }
        content: dict[str, Any] = {
            "name": self.name,
            "base": self.base,
            "version": version,
            "labels": self.labels,
            "checkpoint": None if checkpoint is None else str(checkpoint),
            "layout": layout,
            "weights": self.weights,
            "input": None if self.input_size is None else size_of(self.input_size),
            "preprocess": {key: value for key, value in preprocess.items() if value is not None},
        }
        return {key: value for key, value in content.items() if value not in (None, {})}


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """`models build`.

    | option | allowed |
    |---|---|
    | names, `--all`, `--base` or `--from` | one of the three |
    | `--name` | with `--base` or `--from`, and needed there; so are all others of `OwnModelOptions` |
    | `--checkpoint` | with one name of the zoo, or with `--base` or `--from`; the file exists |
    | `--layout` | with `--checkpoint` or `--from` |
    | `--random` | without `--checkpoint` |
    | `--expect` | as `--checkpoint`; both files exist |
    """

    own: OwnModelOptions
    names: tuple[str, ...]
    every: bool
    out: Path
    checkpoint: Path | None
    layout: str | None
    seed: int
    version: str | None
    store: Path
    random: bool
    force: bool
    verbose: bool
    expect: tuple[Path, Path] | None = None

    def __post_init__(self) -> None:
        """Check the options. Raises `typer.BadParameter`."""
        own = self.own.base is not None or self.own.folder is not None
        if (bool(self.names), self.every, own).count(True) != 1:
            raise typer.BadParameter("name the models to build, or definition files, or give --base, --from or --all")
        if own:
            refuse(self.own.name is None, "--name", "give your model a name, such as --name bottles")
        elif self.own.given:
            raise typer.BadParameter("belongs to --base or --from", param_hint=self.own.given[0])
        files = [name for name in self.names if _is_file(name)]
        alone = own or (len(self.names) == 1 and not files)
        refuse(not alone and self.checkpoint is not None, "--checkpoint", "belongs to one model: name that one")
        if self.checkpoint is not None and not self.checkpoint.is_file():
            raise typer.BadParameter(f"{self.checkpoint}: no such file", param_hint="--checkpoint")
        refuse(not alone and self.expect is not None, "--expect", "belongs to one model; a file has a table [expect]")
        for path in self.expect or ():
            refuse(not path.is_file(), "--expect", f"{path}: no such file")
        bare = self.checkpoint is None and self.own.folder is None
        refuse(self.layout is not None and bare, "--layout", "needs --checkpoint")
        check_layout(self.layout)
        refuse(self.random and not bare, "--random", "excludes --checkpoint and --from")
        valid = self.version is None or re.fullmatch(VERSION_PATTERN, self.version) is not None
        refuse(not valid, "--version", "one to three numbers with dots between, such as 1.1")
        refuse(bool(files) and self.version is not None, "--version", "the definition file has its own version")
        _ = self.targets

    @cached_property
    def targets(self) -> tuple[Target, ...]:
        """The models to build, each once. Raises `typer.BadParameter` for a wrong name or definition."""
        return tuple(self._targets())

    def _targets(self) -> Iterator[Target]:
        if self.own.folder is not None:
            flat = self.own.flat(checkpoint=self.checkpoint, layout=self.layout, version=self.version)
            yield HubTarget(self.own.folder, flat.pop("name"), flat, self.seed, self.expect)
            return
        if self.own.base is not None:
            content = self.own.content(checkpoint=self.checkpoint, layout=self.layout, version=self.version)
            definition = or_bad_parameter(partial(read.parse, content, where="options", folder=Path()))
            yield DefinedTarget(definition, tomli_w.dumps(content), self.seed, self.expect)
            return
        names = zoo.names() if self.every else tuple(dict.fromkeys(self.names))
        for name in names:
            if _is_file(name):
                definition, text = or_bad_parameter(partial(read.read, Path(name)))
                table = definition.expect
                expect = None if table is None else (table.answer, table.picture)
                yield DefinedTarget(definition, text, self.seed, expect)
            else:
                entry = entry_of(name)
                yield ZooTarget(
                    entry, self.version or FIRST_VERSION, partial(self._checkpoint, entry), self.seed, self.expect
                )

    def _checkpoint(self, entry: zoo.ModelSpec) -> Checkpoint | None:
        return None if self.random else choose(entry, Store(self.store), self.checkpoint, self.layout)


def or_bad_parameter(make: Callable[[], Made]) -> Made:
    """Call `make`. Raises `typer.BadParameter` in place of `DefinitionError`."""
    try:
        return make()
    except DefinitionError as error:
        raise typer.BadParameter(str(error)) from error


def _is_file(name: str) -> bool:
    return name.endswith(".toml")


def size_of(text: str) -> dict[str, int]:
    """Read `--input`: WIDTHxHEIGHT. Raises `typer.BadParameter`."""
    match = _SIZE.fullmatch(text.lower())
    if match is None:
        raise typer.BadParameter("WIDTHxHEIGHT in pixels, such as 256x192", param_hint="--input")
    return {"width": int(match[1]), "height": int(match[2])}


def three_of(text: str | None, option: str) -> list[float] | None:
    """Read three numbers, None for None. Raises `typer.BadParameter`."""
    if text is None:
        return None
    try:
        numbers = [float(part) for part in text.replace(",", " ").split()]
    except ValueError:
        numbers = []
    if len(numbers) != 3:
        raise typer.BadParameter("three numbers with commas between, such as 0.485,0.456,0.406", param_hint=option)
    return numbers
