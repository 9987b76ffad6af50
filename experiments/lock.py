"""Keeping a second run out of a workdir."""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from typing import IO

from experiments.errors import RunError

_FILE_NAME = ".lock"
_MOMENT_SECONDS = 0.2


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
        path = os.path.join(workdir, _FILE_NAME)
        file = open(path, "a+", encoding="ascii", opener=_open_no_link)  # noqa: SIM115
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
            locked = _lock(file)
            if locked:
                file.truncate(0)
                # Past the file's buffer, which closing would try to write again.
                os.write(file.fileno(), f"{os.getpid()}\n".encode())
        except OSError as error:
            raise RunError(
                f"--workdir: can't lock and write {file.name} ({error.strerror})"
            ) from error
        if not locked:
            file.seek(0)
            raise RunError(
                f"--workdir: {workdir} is in use by another run (process "
                f"{file.read().strip() or 'unknown'})"
            )
        yield


def _open_no_link(path: str, flags: int) -> int:
    """A link would have another file emptied."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def _lock(file: IO[str]) -> bool:
    """Whether it could be had; `is_held` of other processes has it for a moment."""
    end = time.monotonic() + _MOMENT_SECONDS
    while True:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        if time.monotonic() > end:
            return False
        time.sleep(0.01)


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
