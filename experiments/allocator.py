"""Keeping freed memory, instead of asking the system for it anew.

XLA allocates the scratch memory of a computation anew at every call. glibc returns
blocks of many MiB to the system as soon as they are freed, and every page of the next
one is then a page fault (docs/design.md, "Training and memory").
"""

import ctypes
import os
import platform

# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8
_NEVER = 2**31 - 1
LARGE_BYTES = 24 * 2**20
"""The size from which keeping pays off.

glibc keeps blocks of up to 32 MiB by itself, once one has been freed. Below this size,
one arena for all threads, with its lock, costs more than it gains.
"""


GATES = {"lstm": 4, "gru": 3, "rnn": 1}
"""Of a step of each cell; a gate is a product of the inputs and one of the state."""


def step_bytes(batch: int, steps: int, units: int, layers: int) -> int:
    """About how many bytes an LSTM's training step holds at once.

    For every layer the outputs, gates and cell states of all steps; for one layer at a
    time its gates' gradients, what they are multiplied by, and the gradients of its
    outputs. With `remat` it is less.
    """
    arrays_per_layer, arrays_once = 6, 7
    return 4 * batch * steps * units * (layers * arrays_per_layer + arrays_once)


def keep_if_large(bytes_at_once: int) -> bool:
    """`keep_freed_memory()` if the process holds enough at once to gain by it."""
    return bytes_at_once > LARGE_BYTES and keep_freed_memory()


def can_keep() -> bool:
    """Whether `keep_freed_memory` will configure glibc.

    Other C libraries are left alone, and so are settings from the environment
    (`MALLOC_…`, `GLIBC_TUNABLES`).
    """
    set_outside = any(n.startswith(("MALLOC_", "GLIBC_TUNABLES")) for n in os.environ)
    return not set_outside and platform.libc_ver()[0] == "glibc"


def keep_freed_memory() -> bool:
    """Makes glibc keep freed memory in this process; returns whether it does."""
    if not can_keep():
        return False
    libc = ctypes.CDLL(None)
    settings = {
        _M_MMAP_MAX: 0,  # No mmap for large requests,
        _M_TRIM_THRESHOLD: _NEVER,  # no trimming of the heap's top,
        _M_ARENA_MAX: 1,  # and no per-thread arenas, which hold 64 MiB at most.
    }
    return all(libc.mallopt(name, value) for name, value in settings.items())
