"""Remotes that fail, and what a folder holds, for the tests of the delivery of archives."""

from collections.abc import AsyncGenerator
from pathlib import Path
from typing import IO, Any

import archive_files

from model_store.delivery.errors import RangeRefused, Unreachable
from model_store.delivery.folder import Folder
from model_store.delivery.manifest import MANIFEST
from model_store.delivery.remote import Remote

DELIVERED = {
    "bottles.mar",
    "bottles.card.json",
    "bottles@1.1.mar",
    "bottles@1.1.card.json",
    "cups.mar",
    "cups.card.json",
    "rollout.json",
}


def archives_to_deliver(folder: Path) -> Path:
    """Make a folder with two models, one of them in two versions, and a roll-out file."""
    folder.mkdir()
    archive_files.write(folder, archive_files.card_of("cups"))
    archive_files.write(folder, archive_files.card_of("bottles", "1.0"))
    archive_files.write(folder, archive_files.card_of("bottles", "1.1"), stem="bottles@1.1")
    (folder / "rollout.json").write_text('{"bottles": {"stable": "1.0", "candidate": "1.1", "shadow": 0.05}}')
    (folder / "README").write_text("not delivered")
    return folder


class Spy(Remote):
    """Writes down what is asked for, and breaks off as told."""

    def __init__(self, objects: Any) -> None:
        super().__init__(objects, "memory://models")
        self.asked: list[tuple[str, int]] = []  # path and offset of each download but those of the manifest
        self.put_paths: list[str] = []
        self.break_after: list[int] = []  # bytes after which the next downloads break off, one each
        self.has_ranges = True
        self.full = False  # nothing can be written any more

    async def stream(
        self, path: str, offset: int = 0, *, expected_bytes: int | None = None
    ) -> AsyncGenerator[bytes, None]:
        if path == MANIFEST:
            async for chunk in super().stream(path, offset):
                yield chunk
            return
        self.asked.append((path, offset))
        if offset and not self.has_ranges:
            raise RangeRefused("whole files only")
        left = self.break_after.pop(0) if self.break_after else None
        async for chunk in super().stream(path, offset, expected_bytes=expected_bytes):
            if left is None:
                yield chunk
            else:
                yield chunk[:left]
                raise Unreachable("it broke off")

    async def put(self, path: str, content: bytes | IO[bytes], *, cached: bool = True) -> None:
        if self.full:
            raise Unreachable("the store is full")
        self.put_paths.append(path)
        await super().put(path, content, cached=cached)


class Pauses:
    """Counts the seconds that a download or a sync would have waited."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)


def delivered(folder: Folder) -> dict[str, bytes]:
    """The files in the folder that a server may read."""
    return {path.name: path.read_bytes() for path in shown(folder.path) if path.name != MANIFEST}


def shown(folder: Path) -> list[Path]:
    """The files in the folder but the hidden ones."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def parts(folder: Folder) -> list[Path]:
    """The unfinished files."""
    return sorted(folder.path.glob(".sync-*.part"))
