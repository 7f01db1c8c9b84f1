"""What `models build` can build: an entry of the zoo, or a model that has a definition. One class each."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import tomli_w

from handlers.contract.card import FIRST_VERSION
from model_store import zoo
from model_store.cli import terminal
from model_store.definition.read import parse
from model_store.definition.schema import Definition
from model_store.files.digest import sha256
from model_store.hub.errors import HubError
from model_store.pull.choose import Checkpoint

if TYPE_CHECKING:
    from model_store.build.export import Exported


@dataclass(frozen=True)
class Built:
    """A built model.

    `assumed`: what a definition left out, and the value that was taken. `notes`: what was found in the checkpoint or
    the module.
    """

    exported: "Exported"
    assumed: Mapping[str, str]
    notes: tuple[str, ...] = ()


class Target(Protocol):
    """One model to build."""

    @property
    def name(self) -> str:
        """The name of the archive."""
        ...

    @property
    def version(self) -> str:
        """The version of the archive."""
        ...

    @property
    def has_weights(self) -> bool:
        """Whether there are weights to build from. Otherwise they are random."""
        ...

    @property
    def expect(self) -> tuple[Path, Path] | None:
        """One's own answer to one picture, and the picture, to compare with before anything is written."""
        ...

    def asked(self) -> list[object]:
        """All that the archive depends on beside the sources, as JSON values. Raises `OSError`."""
        ...

    def export(self) -> Built:
        """Make the card and the module. Raises `CheckpointError`, `DefinitionError`, `ExportError`."""
        ...


@dataclass(frozen=True)
class ZooTarget:
    """An entry of the zoo, built from a checkpoint or from random weights. `choose` finds the checkpoint, if any."""

    entry: zoo.ModelSpec
    version: str
    choose: Callable[[], Checkpoint | None]
    seed: int
    expect: tuple[Path, Path] | None = None

    @cached_property
    def checkpoint(self) -> Checkpoint | None:
        """The checkpoint to build from. Raises `PullError`."""
        return self.choose()

    @property
    def name(self) -> str:
        """The name of the entry."""
        return self.entry.name

    @property
    def has_weights(self) -> bool:
        """Whether a checkpoint was chosen."""
        return self.checkpoint is not None

    def asked(self) -> list[object]:
        """The weights and the version."""
        expected = [sha256(path) for path in self.expect or ()]
        if self.checkpoint is None:
            return [self.seed, *expected]
        digest = sha256(self.checkpoint.path)
        return [
            *expected,
            digest,
            self.checkpoint.layout,
            self.checkpoint.source,
            self.checkpoint.official,
        ]  # all in the card

    def export(self) -> Built:
        """See `Target.export`."""
        with terminal.torch_needed():
            from model_store.build import export  # noqa: PLC0415 - takes a second

        chosen = self.checkpoint
        if chosen is None:
            exported = export.export(self.name, checkpoint=None, seed=self.seed)
        else:
            exported = export.export(
                self.name,
                checkpoint=chosen.path,
                layout=chosen.layout,
                source=chosen.source,
                official=chosen.official,
            )
        card = exported.card.model_copy(update={"version": self.version})
        return Built(export.Exported(card, exported.module_bytes), {})


@dataclass(frozen=True)
class DefinedTarget:
    """A model of one's own. `text` is that of its definition file."""

    definition: Definition
    text: str
    seed: int
    expect: tuple[Path, Path] | None = None

    @property
    def name(self) -> str:
        """The name in the definition."""
        return self.definition.name

    @property
    def version(self) -> str:
        """The version in the definition."""
        return self.definition.version

    @property
    def has_weights(self) -> bool:
        """Whether the definition names weights."""
        return self.definition.checkpoint is not None or self.definition.torchscript is not None

    def asked(self) -> list[object]:
        """The text of the definition, and the files that it names."""
        files = (
            self.definition.checkpoint,
            self.definition.torchscript,
            self.definition.labels,
            *(self.expect or ()),
        )
        digests = [sha256(part) for path in files if isinstance(path, Path) for part in _parts(path)]
        return [self.text, *digests, self.seed]

    def export(self) -> Built:
        """See `Target.export`."""
        with terminal.torch_needed():
            from model_store.build import export, foreign  # noqa: PLC0415 - takes a second

        if self.definition.torchscript is not None:
            made = foreign.export_module(self.definition, self.text)
            return Built(export.Exported(made.card, made.module_bytes), made.assumed, made.report)
        defined = export.export_definition(self.definition, self.text, seed=self.seed)
        return Built(defined.exported, defined.assumed, defined.notes)


@dataclass(frozen=True)
class HubTarget:
    """A model in a folder of a model hub. `given`: what the options say beside it, by the keys of a definition."""

    folder: Path
    name: str
    given: Mapping[str, Any]
    seed: int
    expect: tuple[Path, Path] | None = None

    @cached_property
    def read(self) -> tuple[DefinedTarget, tuple[str, ...]]:
        """The definition that the folder means, and notes. Raises `HubError`, `CheckpointError`, `DefinitionError`."""
        with terminal.torch_needed():
            from model_store.hub import folder  # noqa: PLC0415 - takes a second

        found = folder.read(self.folder, name=self.name, given=self.given)
        if found.missing:
            raise HubError("; ".join(found.missing))
        definition = parse(found.content, where=str(self.folder), folder=Path())
        return DefinedTarget(definition, tomli_w.dumps(found.content), self.seed, self.expect), found.notes

    @property
    def version(self) -> str:
        """The version that the options say."""
        return str(self.given.get("version", FIRST_VERSION))

    @property
    def has_weights(self) -> bool:
        """Always: a folder without weights is refused."""
        return True

    def asked(self) -> list[object]:
        """What the definition depends on. Raises what `read` raises."""
        return self.read[0].asked()

    def export(self) -> Built:
        """See `Target.export`."""
        target, notes = self.read
        built = target.export()
        return Built(built.exported, built.assumed, (*notes, *built.notes))


def _parts(path: Path) -> list[Path]:
    """A file; of a folder or an index of shards, all files in the folder."""
    folder = path if path.is_dir() else path.parent if path.name.endswith(".index.json") else None
    found = [path] if folder is None else sorted(folder.iterdir()) if folder.is_dir() else []
    return [part for part in found if part.is_file()]
