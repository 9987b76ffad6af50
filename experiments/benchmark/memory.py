"""How much memory training steps take, each contender in a process of its own."""

import multiprocessing
import resource
import sys
from collections.abc import Callable

from experiments.benchmark.sizes import Sizes
from experiments.benchmark.timing import Work

_STEPS = 3


def peak_bytes(make: Callable[[Sizes], Work], sizes: Sizes) -> int:
    """By how much `make(sizes)` and three steps of it raise the process's peak.

    In a new process, over what importing the libraries takes. On CPU that is all
    of it; an accelerator's own memory is not counted.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measure, args=(make, sizes, sender))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        process.join()
        raise RuntimeError(
            f"measuring memory at {sizes}: the process ended with {process.exitcode}"
        ) from None
    finally:
        process.join()


def _measure(make, sizes, sender):
    # Both libraries' start is no part of the work.
    make(Sizes(batch=1, steps=1, inputs=1, hidden=1, layers=1))()
    before = _peak()
    work = make(sizes)
    for _ in range(_STEPS):
        work()
    sender.send(_peak() - before)
    sender.close()


def _peak() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
