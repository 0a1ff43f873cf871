"""Memory that is freed and taken again at every step stays with the process.

The C library gives it back to the system, which hands it out again as zeroed pages, one fault each:
a third of the time of writing a result.
"""

from __future__ import annotations

import ctypes
import os

__all__ = ["keep_freed_memory"]

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT = 512 * 2**20  # bytes that may lie unused at the end of a heap
_LARGE = 32 * 2**20  # bytes of a piece that is given back always; the most that glibc takes
_CHOSEN = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> None:
    """Let this process keep pieces of up to 32 MiB that are freed, for as long as it lives.

    Does nothing where another C library is in use, or the environment says how glibc's malloc is to
    behave.
    """
    if any(name in os.environ for name in _CHOSEN):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return
    mallopt(_M_MMAP_THRESHOLD, _LARGE)
    mallopt(_M_TRIM_THRESHOLD, _KEPT)
