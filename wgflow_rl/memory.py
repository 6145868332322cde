"""What a process frees stays with it, so that the next step need not have the system map it, and zero it, again."""

from __future__ import annotations

import ctypes
import os

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
LARGEST = 1 << 30  # bytes of a piece that is kept; those of an update have a few million
MOST = (1 << 31) - 1  # bytes free at the end of the heap before any are given back


def keep_freed() -> bool:
    """Ask glibc's malloc to keep what is freed; whether it will.

    An update makes and frees hundreds of pieces of some megabytes. glibc gives such pieces back to the system, which
    maps them anew, page by page, at every step: an eighth of its time (docs/performance.md). This is asked for by
    commands, not by importing or calling anything, since it concerns the whole process. Other systems, and a process
    whose environment has a say (MALLOC_...), are left as they are.
    """
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, TypeError, AttributeError):  # no such library, or none with that function
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, LARGEST) and mallopt(M_TRIM_THRESHOLD, MOST))
