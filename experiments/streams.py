"""stdin, stdout and stderr, closed, full or without a reader as they may be."""

import contextlib
import io
import os
import sys
from typing import TextIO

_LAST_STREAM = 2  # stderr's descriptor.


def open_closed() -> None:
    """A stream that a parent closed (`2>&-`) is None in Python; libraries use it."""
    # Else the next file that is opened takes its descriptor, and what C++ prints.
    null = os.open(os.devnull, os.O_RDWR)
    while null <= _LAST_STREAM:
        null = os.open(os.devnull, os.O_RDWR)
    os.close(null)
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            opened = open(descriptor, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
            setattr(sys, name, opened)
            setattr(sys, f"__{name}__", opened)


def print_anything() -> None:
    """What the terminal's encoding lacks is printed as an escape sequence."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def drop(stream: TextIO) -> None:
    """Drops all that follows, and what it still buffers.

    Of that Python would complain at exit, with a status of its own.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    with contextlib.suppress(OSError):
        stream.flush()


def note(text: str) -> None:
    """Prints a line on stderr that nothing is lost for if it can't be printed.

    As where Ctrl-C ended the `tee` that stderr is a pipe to, or on a full disk.
    """
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        drop(sys.stderr)
