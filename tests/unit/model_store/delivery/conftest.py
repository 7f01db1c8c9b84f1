"""A folder with archives, an object store in memory, and a folder to sync into."""

from pathlib import Path

import pytest
from delivered import archives_to_deliver
from obstore.store import MemoryStore

from model_store.delivery.folder import Folder
from model_store.delivery.remote import Remote


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return archives_to_deliver(tmp_path / "source")


@pytest.fixture
def objects() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def remote(objects: MemoryStore) -> Remote:
    return Remote(objects, "memory://models")


@pytest.fixture
def target(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "target")
