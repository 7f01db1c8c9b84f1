"""Write a file whole or not at all: under a temporary name in the same folder, then by renaming.

In: bytes and a path. Out: the file, which all users may read. A reader sees the old content or the new one.
"""

import os
import tempfile
from pathlib import Path


def write(path: Path, content: bytes) -> None:
    """Replace the file at `path` by one with this content. Raises `OSError`; the file is then as before."""
    written = temporary(path.parent, content)
    try:
        written.replace(path)
    finally:
        written.unlink(missing_ok=True)


def temporary(folder: Path, content: bytes) -> Path:
    """Write `content` to a new file in `folder`, through to the disk. The caller renames or removes it.

    Raises `OSError`.
    """
    handle, name = tempfile.mkstemp(dir=folder, prefix=".writing-")
    path = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        path.chmod(0o644)  # mkstemp's 0600 would keep a reader of another user out
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return path
