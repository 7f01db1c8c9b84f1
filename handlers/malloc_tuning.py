"""How this process gets memory from the system and gives it back: set once, before a module is loaded.

A module takes and returns tens of megabytes with every run. By default glibc adapts its thresholds, and returns the
free memory at the end of its heap to the system. Whether that happens at a batch size depends on the layout of the
heap, that is on chance. Where it happens, every run pays for the same pages again. With MobileViT-XXS that is 1,600
page faults a picture and a tenth of the time: in one process of ten at two pictures a batch, in all of them at eight.
Fixed thresholds prevent it.

Only glibc has these thresholds; elsewhere nothing is done. `service.engines.torchserve.config` sets the number of
heaps, for the JVM too.
"""

import ctypes
import sys

# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3

KEPT_BYTES = 128 * 2**20  # free memory kept at the end of the heap: what eight pictures take
# Each larger piece comes from the system by itself. This is the largest value that glibc takes. It has to be set: once
# the other threshold is set, this one would stay at 128 KiB.
MAPPED_BYTES = 32 * 2**20


def tune_malloc() -> None:
    """Keep the memory that the heap once needed, up to `KEPT_BYTES`."""
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    mallopt(_M_MMAP_THRESHOLD, MAPPED_BYTES)
    mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)
