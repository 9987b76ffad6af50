"""Several processes as one run: joining, agreeing, and noticing that one is gone.

With a single process everything here costs nothing, and returns that process's values.
"""

import contextlib
import ctypes
import os
import re
import secrets
import signal
import sys
import zlib
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

from experiments.ending import end
from experiments.errors import RunError

AUTO = "auto"
_COLLECTIVE_ERROR = re.compile("gloo|nccl|coordination service|barrier", re.IGNORECASE)
_LAST_PORT = 2**16 - 1
_JOIN_SECONDS = 60
# A process that is gone is noticed after this, where no collective notices at once.
_HEARTBEAT_SECONDS = 20


class ProcessLost(RunError):
    """The run can't go on without the others; the same command can."""

    status = os.EX_TEMPFAIL


def join(
    coordinator_address: str, num_processes: int | None, index: int | None
) -> None:
    """Makes this process one of a run's; to be called before any array is made.

    Args:
        coordinator_address: `host:port` of process 0, or `auto` for what JAX finds
            out from a cluster's environment (Slurm, Open MPI, Kubernetes, TPU pods).
        num_processes: how many there are; not with `auto`.
        index: which one this is, from 0; not with `auto`.

    From here on, an abort ends this process with one line and `ProcessLost.status`:
    JAX's threads abort when process 0 is gone, or others do not join within a minute.

    Raises:
        RunError: no cluster was detected, or process 0 was not found.
    """
    detects = coordinator_address == AUTO
    if not detects and not _is_address(coordinator_address):
        raise RunError(
            f"--coordinator_address: expected host:port of process 0, or {AUTO}, got "
            f"{coordinator_address!r}"
        )
    _silence_cpp()
    _report_abort()
    try:
        jax.distributed.initialize(
            None if detects else coordinator_address,
            None if detects else num_processes,
            None if detects else index,
            initialization_timeout=_JOIN_SECONDS,
            heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
        )
    except (RuntimeError, ValueError) as error:
        if detects:
            raise RunError(
                f"--coordinator_address: expected a cluster that JAX knows (Slurm, …) "
                f"with {AUTO}, got none ({error}); give host:port of process 0"
            ) from error
        raise RunError(
            f"--coordinator_address: {coordinator_address}: joining the other "
            f"processes failed: {error}"
        ) from error


def _is_address(text: str) -> bool:
    host, _, port = text.rpartition(":")
    return bool(host) and port.isdecimal() and 0 < int(port) <= _LAST_PORT


def _silence_cpp() -> None:
    """Leaves stderr to Python: when a process is gone, JAX's threads fill it."""
    sys.stderr.flush()
    ours = os.fdopen(os.dup(2), "w", buffering=1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    sys.stderr = sys.__stderr__ = ours  # type: ignore[misc]


def _report_abort() -> None:
    """Makes an abort in C++ say what it most likely is, instead of dumping a stack."""
    libc = ctypes.CDLL(None)
    libc.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
    libc.signal(signal.SIGABRT, ctypes.cast(_on_abort, ctypes.c_void_p))


# Not Python's `signal`: its handlers run in the main thread, which an abort of
# another thread does not wait for.
@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _on_abort(number: int) -> None:
    del number
    end(
        "python -m experiments.mnist: JAX has ended the run: process 0, or another "
        "one, is gone or never came; start all processes again to go on from the last "
        "checkpoint",
        ProcessLost.status,
    )


def is_first() -> bool:
    """Whether this process does what is done once: printing, and writing files."""
    return jax.process_index() == 0


def say(text: str) -> None:
    """Prints it once for all processes."""
    if is_first():
        print(text, flush=True)


@contextlib.contextmanager
def first_goes_ahead(name: str) -> Iterator[None]:
    """The others enter when the first process has left."""
    if not is_first():
        wait_for_all(name)
    yield
    if is_first():
        wait_for_all(name)


def wait_for_all(name: str) -> None:
    """Returns when all processes are here."""
    multihost_utils.sync_global_devices(name)


def require_same(what: str, value: object) -> None:
    """All processes must have been given the same.

    Raises:
        RunError: they were not.
    """
    if jax.process_count() == 1:
        return
    ours = np.uint32(zlib.crc32(repr(value).encode()))
    if len(set(multihost_utils.process_allgather(ours).tolist())) > 1:
        raise RunError(
            f"{what}: expected the same in all processes, got {value} in process "
            f"{jax.process_index()} and something else in others"
        )


def require_shared(folder: str) -> None:
    """All processes must see the same folder.

    Raises:
        RunError: one of them does not see what process 0 writes there.
    """
    if jax.process_count() == 1:
        return
    number = multihost_utils.broadcast_one_to_all(np.uint32(secrets.randbits(32)))
    path = os.path.join(folder, f".seen-by-all-{number}")
    if is_first():
        with open(path, "x", encoding="ascii"):
            pass
    wait_for_all("written")
    seen = multihost_utils.process_allgather(np.bool_(os.path.exists(path)))
    if is_first():
        os.remove(path)
    if not seen.all():
        raise RunError(
            f"--workdir: expected one folder that all processes see, got {folder} in "
            f"process {jax.process_index()}, and process {int(np.argmin(seen))} does "
            f"not see what process 0 writes there"
        )


def agree(steps: int, signal_number: int) -> tuple[int, int]:
    """The first process's number of steps, and any process's signal (0 is none)."""
    if jax.process_count() == 1:
        return steps, signal_number
    told = multihost_utils.process_allgather(np.array([steps, signal_number], np.int32))
    return int(told[0, 0]), int(told[:, 1].max())


def any_signal(own: int) -> int:
    """The number of a signal that any process was sent, or 0."""
    return agree(0, own)[1]


def fetch(array: jax.Array) -> np.ndarray:
    """All of an array, wherever its parts are."""
    if array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    return multihost_utils.process_allgather(array, tiled=True)


@contextlib.contextmanager
def noticing_loss() -> Iterator[None]:
    """Turns what a collective raises when a process is gone into one clear error."""
    try:
        yield
    except Exception as error:
        require_all_there(error)
        raise


def require_all_there(error: Exception) -> None:
    """To be called with what was caught.

    Raises:
        ProcessLost: `error` comes from a collective of a run of several processes.
    """
    # Some come through Orbax as other classes; what they say is C++'s.
    if jax.process_count() > 1 and _COLLECTIVE_ERROR.search(str(error)):
        raise ProcessLost(
            f"another process of the run is gone; start all processes again to go on "
            f"from the last checkpoint ({str(error).splitlines()[0]})"
        ) from error
