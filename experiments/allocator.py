"""Keeping the memory that is given back, instead of asking the system anew.

XLA takes the scratch memory of a program anew at every call. glibc returns blocks of
many MiB to the system as soon as they are freed, and every page of the next one is
then a page fault: up to a third of a training step of some 50 ms.
"""

import ctypes
import os
import platform

# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8
_NEVER = 2**31 - 1
# Of the 64 MiB that a thread's own arena keeps. Training steps that need less take up
# to a fifth less time if each thread has one (1 row of 32 units), those that need more
# up to a quarter more (256 rows of 128 units).
_ARENA_BYTES = 48 * 2**20


def step_bytes(batch: int, steps: int, units: int, layers: int) -> int:
    """About how many bytes an LSTM's training step holds at once.

    Of every layer the outputs, gates and cell states of all steps; of one layer at a
    time its gates' gradients, what they are multiplied by, and the gradients of its
    outputs.
    """
    of_each_layer, of_one = 6, 7
    return 4 * batch * steps * units * (layers * of_each_layer + of_one)


def keep_freed_memory(bytes_at_once: int) -> bool:
    """Tells glibc so for this process; returns whether it was told.

    Another C library is left alone, and so are settings from outside
    (`MALLOC_…`, `GLIBC_TUNABLES`).

    Args:
        bytes_at_once: about how much the process's largest program holds. If it is
            much, all threads share one arena, as what goes beyond the 64 MiB of a
            thread's own is given back; if it is little, each has its own, and none
            waits for another.
    """
    set_outside = any(n.startswith(("MALLOC_", "GLIBC_TUNABLES")) for n in os.environ)
    if set_outside or platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    settings = {
        _M_MMAP_MAX: 0,  # No blocks of their own for large requests,
        _M_TRIM_THRESHOLD: _NEVER,  # and no giving back at the end.
    }
    if bytes_at_once > _ARENA_BYTES:
        settings[_M_ARENA_MAX] = 1
    return all(libc.mallopt(name, value) for name, value in settings.items())
