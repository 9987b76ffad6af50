"""How a training step's cost changes with the number of devices.

With the fused implementation: the native loops use all cores on one device.
"""

from collections.abc import Iterator

import jax

from experiments.benchmark.ours import Ours
from experiments.benchmark.report import Comparison
from experiments.benchmark.sections import compare
from experiments.benchmark.sizes import NOTES
from experiments.benchmark.timing import calls_of

COUNTS = (1, 2, 4, 8)
_STRONG_ROWS = 200
_WEAK_ROWS = 50
_STEPS_PER_CALL = 10


def scaling(seconds: float) -> Iterator[Comparison]:
    """Strong: one batch over more devices. Weak: a fixed number of rows per device."""
    yield _compare(
        f"strong scaling, {_STRONG_ROWS} rows", lambda count: _STRONG_ROWS, seconds
    )
    yield _compare(
        f"weak scaling, {_WEAK_ROWS} rows a device",
        lambda count: _WEAK_ROWS * count,
        seconds,
    )


def _compare(section, rows, seconds) -> Comparison:
    counts = [count for count in COUNTS if count <= jax.local_device_count()]
    names = {count: f"{count} device{'s' if count > 1 else ''}" for count in counts}
    works, units = {}, {}
    for count, name in names.items():
        contender = Ours(
            "fused", True, steps_per_call=_STEPS_PER_CALL, num_devices=count
        )
        work = contender.training(NOTES._replace(batch=rows(count)))
        works[name] = calls_of(work)
        units[name] = _STEPS_PER_CALL
    ratios = tuple((names[count], names[1]) for count in counts[1:])
    size = f"T {NOTES.steps}, H {NOTES.hidden}, L {NOTES.layers}"
    return compare(section, size, works, seconds, ratios, units=units)
