"""Running a stretch of the benchmark on one core only."""

import contextlib
import os
from collections.abc import Iterator


def can_pin() -> bool:
    """Whether this system lets a process choose its threads' cores (Linux)."""
    return hasattr(os, "sched_setaffinity") and os.path.isdir("/proc/self/task")


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    """Keeps every thread of this process on one core, and lets go afterwards.

    A thread pool of several threads then takes turns on it, for XLA and torch alike.
    """
    before = os.sched_getaffinity(0)
    _pin({max(before)})
    try:
        yield
    finally:
        _pin(before)


def _pin(cores: set[int]) -> None:
    for thread in os.listdir("/proc/self/task"):
        # A thread may have ended since the listing.
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(int(thread), cores)
