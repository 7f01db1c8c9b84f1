"""Private directories that a later process recognises as left over: each is locked by the process that made it.

In: a base directory and a prefix. Out: a new directory and its lock. The kernel releases the lock when the process
ends, however it ends. Never touches a directory of another user.
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
from pathlib import Path


def make(base: Path, prefix: str) -> tuple[Path, int]:
    """Make a directory (mode 0700) and lock it. Returns it with the open descriptor that holds the lock.

    Raises `OSError`. The caller removes the directory, then closes the descriptor.
    """
    while True:
        path = Path(tempfile.mkdtemp(prefix=prefix, dir=base))
        with contextlib.suppress(FileNotFoundError):
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if path.exists():
                return path, descriptor
            os.close(descriptor)
        # Another process removed the directory before it was locked here, as a left-over one. Try again.


def remove_stale(base: Path, prefix: str) -> None:
    """Remove the directories of this user whose lock no process holds."""
    for path in base.glob(f"{prefix}*"):
        with contextlib.suppress(OSError):  # it belongs to another user, is in use, or another process removes it now
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                if os.fstat(descriptor).st_uid == os.geteuid():
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(path)
            finally:
                os.close(descriptor)
