"""Digests of files."""

import hashlib
from pathlib import Path


def sha256(path: Path) -> str:
    """Sha256 (hex) of a file's bytes. Raises `OSError`."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
