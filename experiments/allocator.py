"""Keeping the memory that is given back, instead of asking the system anew.

XLA takes the scratch memory of a program anew at every call. glibc returns blocks of
many MiB to the system as soon as they are freed, and every page of the next one is
then a page fault: up to a third of a training step of some 50 ms.
"""

import ctypes
import os
import platform

# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Tells glibc so for this process; returns whether it was told.

    Another C library is left alone, and so are settings from outside
    (`MALLOC_…`, `GLIBC_TUNABLES`).
    """
    set_outside = any(n.startswith(("MALLOC_", "GLIBC_TUNABLES")) for n in os.environ)
    if set_outside or platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    # No blocks of their own for large requests, and no giving back at the end.
    return bool(
        libc.mallopt(_M_MMAP_MAX, 0) and libc.mallopt(_M_TRIM_THRESHOLD, _NEVER)
    )
