"""Timing several ways of doing the same work, in turn."""

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable, Mapping

from experiments import streams

Work = Callable[[], None]
"""Does one unit of work and returns when it is done."""

Calls = Callable[[int], float]
"""Does the work that many times, and returns the mean time of one in seconds."""

_SAMPLE_SECONDS = 0.1
# For 9 ms after its last call torch's threads wait for the next one, and keep a core.
_SETTLE_SECONDS = 0.05
_LEAST_ROUNDS = 5
# Work that takes longer is not affected by what ran before it.
_LONG_SECONDS = 0.5


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds that one unit of work took in each round."""

    samples: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    def over(self, other: "Timing") -> float:
        """The ratio to the other's time: the median of the rounds' own ratios.

        In each round both were timed, one soon after the other. A machine that is
        slower in some rounds moves the medians, and their ratio, more than that.
        """
        return statistics.median(self._ratios(other))

    def quartiles_over(self, other: "Timing") -> tuple[float, float]:
        """Half of the rounds' ratios lie between them."""
        first, _, third = statistics.quantiles(
            self._ratios(other), n=4, method="inclusive"
        )
        return first, third

    def _ratios(self, other: "Timing") -> list[float]:
        pairs = zip(self.samples, other.samples, strict=True)
        return [mine / others for mine, others in pairs]


def calls_of(work: Work) -> Calls:
    """`work` done in this process, by this process's clock."""
    return functools.partial(_seconds, work)


def calls_of_made(make: Callable[[], Work]) -> Calls:
    """The same for work that `make` builds on the first call."""
    made = functools.cache(make)
    return lambda count: _seconds(made(), count)


def in_turn(
    contenders: Mapping[str, Calls],
    seconds: float = 0.0,
    rounds: int = _LEAST_ROUNDS,
    units: Mapping[str, int] | None = None,
) -> tuple[dict[str, Timing], dict[str, str]]:
    """Times each contender once a round, so that all see the same machine.

    Each is called beforehand, where compiling and first allocations fall; a line on
    stderr tells of that call, lest nothing is known if the run is cut short. A sample
    is the mean of as many calls as take 0.1 s, after some that are not timed, in which
    the caches and thread pools of the one before give way (work of more than half a
    second goes without). Every round begins with another contender.

    Args:
        contenders: name to its calls.
        seconds: how long to go on with rounds.
        rounds: the least number of rounds.
        units: name to how many units of work a call does, by default 1.

    Returns:
        Name to the time of one unit; and name to the reason, for those whose first call
        fails.
    """
    calls, settle, failed = {}, {}, {}
    for name, work in contenders.items():
        try:
            start = time.perf_counter()
            once = work(1)
            ready = time.perf_counter() - start
            if once < _LONG_SECONDS:
                once = work(1)  # The first one may have compiled.
        except Exception as error:
            first_line = next(iter(str(error).splitlines()), "")
            failed[name] = f"{type(error).__name__}: {first_line}"
            streams.note(f"  {name}: {failed[name]}")
            continue
        streams.note(
            f"  {name}: {1000 * once:.3g} ms a call, ready after {ready:.1f} s"
        )
        settle[name] = (
            max(1, round(_SETTLE_SECONDS / once)) if once < _LONG_SECONDS else 0
        )
        calls[name] = max(1, round(_SAMPLE_SECONDS / once))
    samples: dict[str, list[float]] = {name: [] for name in calls}
    names = list(samples)
    end = time.perf_counter() + seconds
    done = 0
    while names and (done < rounds or time.perf_counter() < end):
        first = done % len(names)
        for name in names[first:] + names[:first]:
            if settle[name]:
                contenders[name](settle[name])
            samples[name].append(contenders[name](calls[name]))
        done += 1
    units = units or {}
    timings = {
        name: Timing(tuple(value / units.get(name, 1) for value in values))
        for name, values in samples.items()
    }
    return timings, failed


def _seconds(work: Work, calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        work()
    return (time.perf_counter() - start) / calls
