"""What becomes of memory that a step frees and the next one asks for again.

On CPUs torch and numpy take memory from the C library, and glibc gives large pieces back to the system as soon as they
are free. The system hands them out again page by page, each cleared and mapped anew: an update of DQN's network touches
some 2,000 to 3,500 such pages, which is a sixth of its time. A training asks for the same again in each step.
"""

from __future__ import annotations

import ctypes
import os

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""What mallopt calls them, in glibc's malloc.h."""
_NEVER = 2**31 - 1
_LARGEST_PIECES = (2**30, 2**25)
"""Bytes from which pieces may still be given back at once; some versions of glibc take no more than 32 MiB."""
_CHOSEN_BY_USER = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> None:
    """Keep what is freed for what comes next. Without effect where the C library is not glibc, or where its own
    environment variables say something else."""
    if any(name in os.environ for name in _CHOSEN_BY_USER):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    for size in _LARGEST_PIECES:
        if mallopt(_MMAP_THRESHOLD, size):
            break
    mallopt(_TRIM_THRESHOLD, _NEVER)
