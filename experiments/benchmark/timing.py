"""Timing several ways of doing the same work, in turn."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping

Work = Callable[[], None]
"""Does one unit of work and returns when it is done."""

_LEAST_SAMPLE_SECONDS = 0.01
_LEAST_ROUNDS = 5
# What a thread pool of the last one needs to stop spinning for more work.
_PAUSE_SECONDS = 0.01


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds for one unit of work: median and quartiles over the rounds."""

    median: float
    first_quartile: float
    third_quartile: float
    rounds: int


def in_turn(
    contenders: Mapping[str, Work], seconds: float, max_rounds: int = 100
) -> dict[str, Timing]:
    """Times each contender once a round, until `seconds` are over.

    Each is called twice beforehand, where compiling and first allocations fall. A
    sample is as many calls as take 10 ms. Every round begins with another
    contender, so that none always follows the same one. At least five rounds.
    """
    calls = {}
    for name, work in contenders.items():
        work()
        calls[name] = max(1, round(_LEAST_SAMPLE_SECONDS / _seconds(work, 1)))
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    names = list(contenders)
    end = time.perf_counter() + seconds
    done = 0
    while done < _LEAST_ROUNDS or (time.perf_counter() < end and done < max_rounds):
        first = done % len(names)
        for name in names[first:] + names[:first]:
            time.sleep(_PAUSE_SECONDS)
            samples[name].append(_seconds(contenders[name], calls[name]))
        done += 1
    return {name: _timing(values) for name, values in samples.items()}


def _seconds(work: Work, calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        work()
    return (time.perf_counter() - start) / calls


def _timing(samples: list[float]) -> Timing:
    first, median, third = statistics.quantiles(samples, n=4, method="inclusive")
    return Timing(median, first, third, len(samples))
