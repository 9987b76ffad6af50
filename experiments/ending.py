"""Ending the process with one line, whatever other threads do."""

import os
import sys
import threading
from typing import NoReturn

_ending = threading.Lock()


def end(message: str, status: int) -> NoReturn:
    """Prints `message` on stderr and ends the process; only the first call does."""
    if not _ending.acquire(blocking=False):
        threading.Event().wait()
    # Neither sys.stderr nor sys.exit: after a save that failed, Orbax's threads write
    # tracebacks to the former, and keep the process alive at the latter.
    print(message, file=sys.__stderr__, flush=True)
    sys.stdout.flush()
    os._exit(status)
