"""The roll-out file: which version of a model answers, and which version is tried beside it.

In: `rollout.json`, beside the archives unless a setting names another file. Out: an `Entry` for each model that the
file names, or `RolloutError`. Other models are served from `NAME.mar`. The file states what is wanted, not what to do:
the gateways watch it and move there (`service.serving.reconciler`). So the same file works for several gateways, after
a restart, and as a ConfigMap. `mobilevision models canary`, `promote` and `rollback` write it, or an operator by hand.

    {"mobilevit_s_classify": {"stable": "1.0", "candidate": "1.1", "weight": 0.1, "shadow": 0.05}}
"""

import fcntl
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, RootModel, ValidationError, model_validator

from handlers.contract.card import VERSION_PATTERN, Card
from service.core import catalog as catalogs
from service.core.catalog import Catalog, CatalogError
from service.core.settings import Settings

FILE_NAME = "rollout.json"


class RolloutError(CatalogError):
    """The roll-out file, or what it asks for, is impossible; the message says what to change."""


class Entry(BaseModel):
    """What is wanted of one model.

    `weight`: share of the requests that the candidate answers, 0 to 1. `shadow`: share of the other requests that the
    candidate runs too, only for comparison, 0 to 1. `previous`: the version that `rollback` returns to if there is no
    candidate.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    stable: str = Field(pattern=VERSION_PATTERN)
    candidate: str | None = Field(default=None, pattern=VERSION_PATTERN)
    weight: float = Field(default=0.0, ge=0, le=1)
    shadow: float = Field(default=0.0, ge=0, le=1)
    previous: str | None = Field(default=None, pattern=VERSION_PATTERN)

    @model_validator(mode="after")
    def _is_whole(self) -> "Entry":
        if self.candidate == self.stable:
            raise ValueError("candidate and stable are the same version")
        if self.candidate is None and (self.weight or self.shadow):
            raise ValueError("weight and shadow belong to a candidate")
        return self


Rollout = Mapping[str, Entry]
Change = Callable[[dict[str, Entry]], None]


class _File(RootModel[dict[str, Entry]]):
    pass


def path_of(settings: Settings) -> Path:
    """Where the file is, or would be."""
    return settings.rollout_file or settings.archives / FILE_NAME


def parse(content: bytes, path: Path) -> Rollout:
    """The entries by model. `path` is for the message of the `RolloutError` that it raises."""
    try:
        return _File.model_validate_json(content).root
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, e['loc'])) or 'the file'}: {e['msg']}" for e in error.errors()]
        raise RolloutError(f"the roll-out file {path} is not right: {'; '.join(lines)}") from error


def read(path: Path) -> Rollout:
    """The entries by model; none if there is no file. Raises `RolloutError`."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise RolloutError(f"the roll-out file {path} cannot be read: {error.strerror or error}") from error
    return parse(content, path)


def edit(path: Path, change: Change) -> None:
    """Change the file. It is replaced as a whole; an edit waits until another one ends. Raises `RolloutError`."""
    try:
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise RolloutError(f"{path.parent} cannot be opened: {error.strerror or error}") from error
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        entries = dict(read(path))
        change(entries)
        content = {name: entry.model_dump(exclude_defaults=True) for name, entry in sorted(entries.items())}
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".writing-")
        with os.fdopen(handle, "w") as file:
            file.write(json.dumps(content, indent=2) + "\n")
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except OSError as error:
        raise RolloutError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        os.close(folder)


def served(settings: Settings) -> Catalog:
    """The models to serve, each with its stable version. Raises `CatalogError`."""
    stable = {name: entry.stable for name, entry in read(path_of(settings)).items()}
    return catalogs.read(
        settings.archives, models=settings.models, default_models=settings.default_models, versions=stable
    )


def require_comparable(stable: Card, candidate: Card) -> None:
    """Raise `RolloutError` unless both versions have the same task and labels, so that both can answer any call."""
    if candidate.task is not stable.task:
        raise RolloutError(
            f"version {candidate.version} of {stable.name} answers {candidate.task}, version {stable.version} "
            f"{stable.task}: give it another name"
        )
    if candidate.labels != stable.labels:
        raise RolloutError(
            f"version {candidate.version} of {stable.name} has other labels than version {stable.version}: callers "
            "would misread its answers, so give it another name"
        )
