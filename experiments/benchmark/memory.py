"""How much memory training takes; to be called in a process of its own (Linux)."""

import os

from experiments.benchmark.sizes import Sizes

_STEPS = 3
_RESET_PEAK = "5"  # See `man 5 proc`, clear_refs.


def can_measure() -> bool:
    """Whether this system reports a process's peak memory, and can reset it."""
    return os.access("/proc/self/clear_refs", os.W_OK)


def peak_bytes(contender, sizes: Sizes) -> int:
    """Peak of resident memory in three training steps.

    Relative to what the process has after a step of the smallest sizes, so the
    libraries do not count; nor does what compiling allocates and frees. On CPU that is
    all of it; an accelerator's own memory is not counted.
    """
    contender.training(Sizes(batch=1, steps=1, inputs=1, hidden=1, layers=1))()
    before = _resident("VmRSS")
    work = contender.training(sizes)
    with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write(_RESET_PEAK)
    for _ in range(_STEPS):
        work()
    return _resident("VmHWM") - before


def _resident(name: str) -> int:
    with open("/proc/self/status", encoding="ascii") as file:
        for line in file:
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status: expected a line {name}, found none")
