"""The memory of this process: how much it holds, and giving freed memory back to the system.

glibc keeps freed memory for later. After a burst of large pictures it held 1.4 GiB in an idle process, and the kernel
counts that against the limit of the container. Linux with glibc; elsewhere nothing is measured and nothing given back.
"""

import ctypes
import sys
from collections.abc import Callable
from pathlib import Path
from resource import getpagesize

_STATM = Path("/proc/self/statm")


def anonymous_bytes() -> int:
    """Memory of this process that is in no file and not shared, in bytes. 0 where the system does not tell."""
    try:
        fields = _STATM.read_bytes().split()
    except OSError:
        return 0
    return (int(fields[1]) - int(fields[2])) * getpagesize()  # resident, shared


def give_back() -> None:
    """Give freed memory back to the system. Takes milliseconds; may run in a thread, which holds no lock of Python."""
    if _trim is not None:
        _trim(0)


def _malloc_trim() -> Callable[[int], int] | None:
    if sys.platform != "linux":
        return None
    trim: Callable[[int], int] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc only, not musl
    return trim


_trim = _malloc_trim()
