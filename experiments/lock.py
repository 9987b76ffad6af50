"""Keeping a second run out of a workdir."""

import contextlib
import fcntl
import os
from collections.abc import Iterator

from experiments.errors import RunError

_FILE_NAME = ".lock"


@contextlib.contextmanager
def sole_use(workdir: str, locks: bool = True) -> Iterator[None]:
    """Creates the folder if need be, and locks out other runs.

    Of the processes of one run only the first `locks` it.

    The system holds the lock, not the file: it goes with the process, however that
    ends.

    Raises:
        RunError: another process holds it, or the folder can't be written.
    """
    try:
        os.makedirs(workdir, exist_ok=True)
        file = open(os.path.join(workdir, _FILE_NAME), "a+", encoding="ascii")  # noqa: SIM115
    except OSError as error:
        raise RunError(
            f"--workdir: expected a writable folder, got {workdir} ({error})"
        ) from error
    with file:
        # The file may be there, and writable, in a folder that is not.
        if not os.access(workdir, os.W_OK):
            raise RunError(f"--workdir: expected a writable folder, got {workdir}")
        if not locks:
            yield
            return
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise RunError(
                f"--workdir: {workdir} is in use by another run (process "
                f"{file.read().strip() or 'unknown'})"
            ) from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def is_held(workdir: str) -> bool:
    """Whether a run, of this process or another, has the folder to itself now."""
    try:
        with open(os.path.join(workdir, _FILE_NAME), encoding="ascii") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # No such file: no run was ever there.
        return False
    return False
