"""How this process gets memory from the system and gives it back: set once, before a module is loaded.

A module takes and returns tens of megabytes with every run. glibc adapts its thresholds to what it sees, and returns
what lies free at the end of its heap: with which batch sizes that happens is the chance of how the heap was laid out.
Where it does, every run pays for the same pages again: with MobileViT-XXS 1,600 faults a picture and a tenth of the
time, in one process of ten at two pictures a batch and in all of them at eight. Fixed thresholds end that.

Only glibc has these; elsewhere nothing is done. How many heaps there are is set by `service.launch`, for the JVM too.
"""

import ctypes
import sys

# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3

KEPT_BYTES = 128 * 2**20  # free at the end of the heap: what eight pictures take
# Larger pieces come from the system each by itself. This is the largest glibc takes; once the other is set, it would
# stay at 128 KiB.
MAPPED_BYTES = 32 * 2**20


def settle_heap() -> None:
    """Keep what the heap once needed, up to `KEPT_BYTES`."""
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    mallopt(_M_MMAP_THRESHOLD, MAPPED_BYTES)
    mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)
