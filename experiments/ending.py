"""Ending the process with one line, whatever other threads do."""

import contextlib
import os
import sys
import threading
from typing import NoReturn

unfinished: set[str] = set()
"""Paths of files that are being written, and of no use if the process ends."""

_ending = threading.RLock()
_begun = False


def end(message: str, status: int) -> NoReturn:
    """Prints `message`, if any, on stderr and ends the process; the first call does.

    Where it can't be printed, the process ends with the same status.
    """
    global _begun
    if not _ending.acquire(blocking=False):
        threading.Event().wait()  # Another thread ends the process.
    if _begun:  # By this thread: a signal came while it was printing.
        os._exit(status)
    _begun = True
    # Neither sys.stderr nor sys.exit: after a save that failed, Orbax's threads write
    # tracebacks to the former, and keep the process alive at the latter.
    line = f"{message}\n" if message else ""
    for stream, text in ((sys.__stderr__, line), (sys.stdout, "")):
        # RuntimeError: a signal came while the stream was being written to.
        with contextlib.suppress(OSError, RuntimeError):
            print(text, end="", file=stream, flush=True)
    exit_at_once(status)


def exit_at_once(status: int) -> NoReturn:
    """Ends the process without a word, and without what is `unfinished`."""
    for path in tuple(unfinished):
        with contextlib.suppress(OSError):
            os.remove(path)
    os._exit(status)
