"""A folder with archives, an object store in memory, and a folder to sync into."""

from pathlib import Path

import archive_files
import pytest
from obstore.store import MemoryStore

from model_store.delivery.folder import Folder
from model_store.delivery.remote import Remote


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Two models, one of them in two versions, and a roll-out file."""
    folder = tmp_path / "source"
    folder.mkdir()
    archive_files.write(folder, archive_files.card_of("cups"))
    archive_files.write(folder, archive_files.card_of("bottles", "1.0"))
    archive_files.write(folder, archive_files.card_of("bottles", "1.1"), stem="bottles@1.1")
    (folder / "rollout.json").write_text('{"bottles": {"stable": "1.0", "candidate": "1.1", "shadow": 0.05}}')
    (folder / "README").write_text("not delivered")
    return folder


@pytest.fixture
def objects() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def remote(objects: MemoryStore) -> Remote:
    return Remote(objects, "memory://models")


@pytest.fixture
def target(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "target")
