"""Running a piece of the benchmark in a process of its own."""

import contextlib
import multiprocessing
import os
from collections.abc import Callable
from typing import Any


def in_process(function: Callable[..., Any], *args: Any) -> Any:
    """What `function(*args)` returns in a new process; all are pickled on the way.

    Raises:
        RuntimeError: the process ended without an answer.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(function, args, sender))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        process.join()
        raise RuntimeError(
            f"{function.__name__}: its process ended with {process.exitcode}"
        ) from None
    finally:
        process.join()


def can_pin() -> bool:
    """Whether this system lets a process choose its cores (Linux)."""
    return hasattr(os, "sched_setaffinity")


def in_process_with_one_core(function: Callable[..., Any], *args: Any) -> Any:
    """`in_process`, where the new process may use one core only.

    From its start, so that every thread pool in it is made for one core.
    """
    with _this_thread_on_one_core():
        return in_process(function, *args)


@contextlib.contextmanager
def _this_thread_on_one_core():
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})  # A new process inherits it.
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _answer(function, args, sender):
    sender.send(function(*args))
    sender.close()
