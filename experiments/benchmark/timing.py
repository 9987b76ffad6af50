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
    is the mean of as many calls as take 0.1 s, after some that do not count, in which
    the caches and thread pools of the one before give way (work of more than half a
    second goes without) and which tell how many those are. Every round begins with
    another contender.

    Args:
        contenders: name to its calls.
        seconds: how long to go on with rounds.
        rounds: the least number of rounds.
        units: name to how many units of work a call does, by default 1.

    Returns:
        Name to the time of one unit; and name to the reason, for those of which a call
        fails.
    """
    settle, failed = {}, {}
    for name, work in contenders.items():
        try:
            start = time.perf_counter()
            once = work(1)
            ready = time.perf_counter() - start
            if once < _LONG_SECONDS:
                once = work(1)  # The first one may have compiled.
        except Exception as error:
            failed[name] = _told(name, error)
            continue
        streams.note(
            f"  {name}: {1000 * once:.3g} ms a call, ready after {ready:.1f} s"
        )
        settle[name] = _settling(once)
    samples: dict[str, list[float]] = {name: [] for name in settle}
    names = list(samples)
    end = time.perf_counter() + seconds
    done = 0
    while names and (done < rounds or time.perf_counter() < end):
        first = done % len(names)
        for name in names[first:] + names[:first]:
            try:
                once = contenders[name](settle[name] or 1)
                # The first calls took longer: others still compiled meanwhile.
                settle[name] = _settling(once)
                if settle[name]:
                    once = contenders[name](max(1, round(_SAMPLE_SECONDS / once)))
            except Exception as error:
                failed[name] = _told(name, error)
                del samples[name]
            else:
                samples[name].append(once)
        names = list(samples)
        done += 1
    units = units or {}
    timings = {
        name: Timing(tuple(value / units.get(name, 1) for value in values))
        for name, values in samples.items()
    }
    return timings, failed


def _told(name: str, error: Exception) -> str:
    """Why a contender is left out, which stderr is told, too."""
    first_line = next(iter(str(error).splitlines()), "")
    reason = f"{type(error).__name__}: {first_line}"
    streams.note(f"  {name}: {reason}")
    return reason


def _settling(once: float) -> int:
    """How many calls, each of which takes `once`, go before a sample; long ones: 0."""
    return max(1, round(_SETTLE_SECONDS / once)) if once < _LONG_SECONDS else 0


def _seconds(work: Work, calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        work()
    return (time.perf_counter() - start) / calls
