"""How many cores there are to spread work over."""

import math
import os
import pathlib

# Quota and period of the control group that a container sees as its own.
_CPU_MAX = pathlib.Path("/sys/fs/cgroup/cpu.max")


def usable_cores() -> int:
    """Number of cores that this process may use, or is given the time of."""
    if hasattr(os, "sched_getaffinity"):  # Not on macOS and Windows.
        allowed = len(os.sched_getaffinity(0))
    else:
        allowed = os.cpu_count() or 1
    return max(1, min(allowed, _quota(allowed)))


def _quota(without: int) -> int:
    """A container's limit, as by `docker run --cpus=2`, rounded up."""
    try:
        quota, period = map(int, _CPU_MAX.read_text().split())
        return math.ceil(quota / period)
    except (OSError, ValueError, ZeroDivisionError):  # No control group, or no limit.
        return without
