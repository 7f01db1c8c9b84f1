"""Limits the memory of a process, as the limit of a container does.

With a memory cgroup that this user may write to (version 2 or 1), the kernel ends a process that goes over the limit.
Elsewhere RLIMIT_DATA makes allocations fail. It counts address space and not pages, so it is set higher, by the stacks
of threads: 64 of 8 MiB.
"""

import contextlib
import os
import resource
from collections.abc import Iterator
from pathlib import Path

_GROUPS = (
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"),
    (Path("/sys/fs/cgroup"), "memory.max"),
    (Path("/sys/fs/cgroup/unified"), "memory.max"),
)
_STACK_BYTES = 64 * 8 * 2**20


@contextlib.contextmanager
def memory_limit(limit_bytes: int) -> Iterator[tuple[str, str]]:
    """Make a limit. Yields a word for it and the argument for `limit_this_process`. Removes it at the end."""
    group = _make_group(limit_bytes)
    try:
        yield ("memory cgroup", str(group)) if group is not None else ("RLIMIT_DATA", str(limit_bytes))
    finally:
        if group is not None:
            with contextlib.suppress(OSError):  # a process has not ended yet; the next boot removes it
                group.rmdir()


def _make_group(limit_bytes: int) -> Path | None:
    for parent, file in _GROUPS:
        group = parent / f"hold-{os.getpid()}"
        if not (parent / "cgroup.procs").exists():
            continue
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            (group / file).write_text(str(limit_bytes))  # version 2 without its memory controller has no such file
        except OSError:
            group.rmdir()
            continue
        return group
    return None


def limit_this_process(limit: str) -> None:
    """Put this process under a limit of `memory_limit`. Raises OSError."""
    if limit.isdecimal():
        most = int(limit) + _STACK_BYTES
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    else:
        (Path(limit) / "cgroup.procs").write_text(str(os.getpid()))
