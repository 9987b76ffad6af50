"""Running a piece of the benchmark in a process of its own."""

import contextlib
import functools
import multiprocessing
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import jax

from experiments.benchmark import compiling
from experiments.benchmark.timing import Calls, Work, calls_of


def in_process(function: Callable[..., Any], *args: Any) -> Any:
    """What `function(*args)` returns in a new process; all are pickled on the way.

    Raises:
        RuntimeError: the process ended without an answer.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(
        target=_answer, args=(function, args, sender), daemon=True
    )
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        process.join()
        raise RuntimeError(
            f"{function.__name__}: its process ended with exit code {process.exitcode}"
        ) from None
    finally:
        process.join()


def can_pin() -> bool:
    """Whether this system lets a process choose its cores (Linux, mostly)."""
    try:
        os.sched_setaffinity(0, os.sched_getaffinity(0))
    except (AttributeError, OSError):
        return False
    return True


@contextlib.contextmanager
def working(make: Callable[..., Work], *args: Any) -> Iterator[Calls]:
    """Work that a new process makes by `make(*args)`, does when asked, and times.

    The process has its own memory, threads and devices, so that nothing of the
    other contenders stands in its way. It starts at once, concurrently with others, but
    on a GPU compiles when they don't; the first call waits for it.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    turns = _turns().name if jax.default_backend() == "gpu" else None
    process = context.Process(
        target=_work_when_asked, args=(make, args, theirs, turns), daemon=True
    )
    process.start()
    theirs.close()

    def calls(count: int) -> float:
        try:
            ours.send(count)
            return ours.recv()
        except (EOFError, OSError):
            process.join()
            name = getattr(make, "__qualname__", repr(make))
            raise RuntimeError(
                f"{name}: its process ended with exit code {process.exitcode}"
            ) from None

    try:
        yield calls
    finally:
        ours.close()  # The process takes this for the end.
        process.join()


@contextlib.contextmanager
def on_one_core() -> Iterator[None]:
    """Processes started here may use one core only, as may this thread meanwhile.

    From their start, so that every thread pool in them is made for one core.
    """
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})  # A new process inherits it.
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _answer(function, args, sender):
    _leave_ctrl_c_to_the_parent()
    sender.send(function(*args))
    sender.close()


def _leave_ctrl_c_to_the_parent():
    """The parent ends its children, which are daemons, when it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@functools.cache
def _turns():
    """A file that whoever's turn it is has locked; it is there as long as this."""
    return tempfile.NamedTemporaryFile(prefix="flax_lstm-")


def _work_when_asked(make, args, connection, turns):
    _leave_ctrl_c_to_the_parent()
    compiling.take_turns(turns)
    calls = calls_of(make(*args))
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            connection.send(calls(connection.recv()))
