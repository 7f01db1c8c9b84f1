"""The manifest of a published folder: which files it has, and their exact content.

    URL/manifest.json    {"schema_version": 1, "files": [{"name", "size_bytes", "sha256", "version"}, ...]}
    URL/files/SHA256     the content of a file

Content is kept by digest, so a new publication never changes a file that an older manifest names. In: JSON from a
store, which may be hostile. Out: a `Manifest` whose names are those of files that a server reads, or `BadManifest`.
"""

import re
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from handlers.contract import archive_file
from model_store.delivery.errors import BadManifest

MANIFEST = "manifest.json"
SCHEMA_VERSION: Final = 1
MOST_BYTES = 2**20  # of a manifest
MOST_FILES = 1000

ARCHIVE = ".mar"
CARD = ".card.json"
ROLLOUT = "rollout.json"

# The names of models and versions as in `Card`, with bounds. No separator, no dot in front, lower case only: a name
# cannot lead out of the folder, and two names never mean one file.
_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,99}(@[0-9]{1,9}(\.[0-9]{1,9}){0,2})?(\.mar|\.card\.json)", re.ASCII)


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class File(_Frozen):
    """One file of a published folder. `version` is that of an archive's model, empty for other files."""

    name: str
    size_bytes: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    version: str = Field(default="", pattern=r"^([0-9]{1,9}(\.[0-9]{1,9}){0,2})?$")

    @model_validator(mode="after")
    def _bounded(self) -> "File":
        if not is_delivered(self.name):
            raise ValueError(f"{self.name[:200]!r} is no name of a file that is delivered")
        if self.size_bytes > most_bytes(self.name):
            raise ValueError(f"{self.name} has {self.size_bytes} bytes, at most {most_bytes(self.name)} are allowed")
        return self

    @property
    def path(self) -> str:
        """Where the content is, relative to the address of the published folder."""
        return f"files/{self.sha256}"


class Manifest(_Frozen):
    """The files of a published folder, in the order in which they may be put into place.

    A card follows its archive, because a server looks for the archive of each card. The roll-out file is the last one,
    because it names versions whose files must be there.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    files: tuple[File, ...] = Field(min_length=1, max_length=MOST_FILES)

    @model_validator(mode="after")
    def _complete(self) -> "Manifest":
        names: set[str] = set()
        for file in self.files:
            if file.name in names:
                raise ValueError(f"{file.name} is named twice")
            names.add(file.name)
        for name in sorted(names):
            other = partner(name)
            if other is not None and other not in names:
                raise ValueError(f"{name} has no {other} beside it")
        return self

    @property
    def in_order(self) -> tuple[File, ...]:
        """The files in the order in which they are put into place."""
        return tuple(sorted(self.files, key=lambda file: place(file.name)))

    def to_json(self) -> bytes:
        """Serialise with a fixed order and layout, so that equal folders give equal bytes."""
        ordered = self.model_copy(update={"files": self.in_order})
        return (ordered.model_dump_json(indent=2) + "\n").encode()


def is_delivered(name: str) -> bool:
    """Return whether a file of this name belongs to a published folder."""
    return name == ROLLOUT or _NAME.fullmatch(name) is not None


def partner(name: str) -> str | None:
    """Return the file that must be beside this one: the card of an archive, the archive of a card."""
    for suffix, other in ((ARCHIVE, CARD), (CARD, ARCHIVE)):
        if name.endswith(suffix):
            return name.removesuffix(suffix) + other
    return None


def place(name: str) -> tuple[bool, str, bool]:
    """Return the sort key by which files are put into place, and by which they are removed in reverse."""
    return name == ROLLOUT, name.removesuffix(ARCHIVE).removesuffix(CARD), name.endswith(CARD)


def most_bytes(name: str) -> int:
    """Return the bound on the size of a file of this name."""
    return archive_file.MOST_BYTES if name.endswith(ARCHIVE) else archive_file.MOST_SMALL_BYTES


def read(content: bytes, shown: str) -> Manifest:
    """Read a manifest. `shown`: where it comes from, for messages. Raises `BadManifest`."""
    if len(content) > MOST_BYTES:
        raise BadManifest(f"{shown}: over {MOST_BYTES} bytes, so it is no manifest; publish the folder again")
    try:
        return Manifest.model_validate_json(content)
    except ValidationError as error:
        raise BadManifest(
            f"{shown}: {reason(error)}; publish the folder again with this version: mobilevision models publish"
        ) from error


def reason(error: ValidationError) -> str:
    """Return the first thing that is wrong, in one line."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    return f"{where}: {message}" if where else message
