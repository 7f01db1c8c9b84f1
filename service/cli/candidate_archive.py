"""Copy the archive of a candidate to the archives that are served.

In: an archive and the card of the stable version. Out: the archive and its card in the folder, under the name of the
candidate's version. A file that exists is never overwritten with other content.
"""

import os
import shutil
import tempfile
from pathlib import Path

from handlers.contract.card import Card
from model_store.build import archive
from service.core.catalog import ARCHIVE_SUFFIX, CARD_SUFFIX, stem_of
from service.serving import rollout_spec
from service.serving.rollout_spec import RolloutError


def publish(file: Path, archives: Path, stable: Card) -> Card:
    """Copy the archive `file` and its card into the folder `archives`. Returns the card of the candidate.

    Raises `RolloutError` where the file is no archive, where it cannot be a candidate beside the `stable` version, or
    where the folder cannot be written.
    """
    try:
        card = archive.read_card(file)
    except archive.ArchiveError as error:
        raise RolloutError(str(error)) from error
    if card.name != stable.name:
        raise RolloutError(f"{file} is an archive of {card.name}, not of {stable.name}")
    if card.version == stable.version:
        raise RolloutError(
            f"{file} has version {card.version}, as the stable one; build it as another: mobilevision models build "
            f"{card.name} --version VERSION --out FOLDER"
        )
    rollout_spec.require_comparable(stable, card)
    stem = stem_of(card.name, card.version)
    target = archives / f"{stem}{ARCHIVE_SUFFIX}"
    if target.exists() and target.read_bytes() != file.read_bytes():
        raise RolloutError(
            f"{target} exists and is another archive: a version keeps its content; build this one as another version"
        )
    try:
        _write(card.to_json().encode(), archives / f"{stem}{CARD_SUFFIX}")
        if not target.exists():
            _write(file, target)
    except OSError as error:
        raise RolloutError(f"{target} cannot be written: {error.strerror or error}") from error
    return card


def _write(content: bytes | Path, target: Path) -> None:
    """Write a file atomically: `content` is its bytes, or the file to copy. Raises OSError."""
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=".writing-")
    path = Path(temporary)
    try:
        with os.fdopen(handle, "wb") as stream:
            if isinstance(content, bytes):
                stream.write(content)
            else:
                with content.open("rb") as source:
                    shutil.copyfileobj(source, stream)
            stream.flush()
            os.fsync(stream.fileno())
        path.chmod(0o644)
        path.replace(target)
    finally:
        path.unlink(missing_ok=True)
