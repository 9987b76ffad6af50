"""Running a command: flags in, one clear line out when something is wrong."""

import contextlib
import errno
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import NoReturn

from absl import app, flags, logging
from tqdm import tqdm

from experiments import streams
from experiments.ending import end
from experiments.errors import RunError

USAGE_STATUS = 2
INTERRUPTED_STATUS = 130  # 128 + SIGINT, as shells report it.
BROKEN_PIPE_STATUS = 141  # 128 + SIGPIPE.
# A full disk or quota, a terminal that is gone, `ulimit -f`, and `1<file`.
_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG, errno.EBADF)


def run(main: Callable[[], None]) -> None:
    """Parses the flags, calls `main`, and ends the process."""
    program = _program()
    streams.print_anything()
    _end_on_interrupt(program)
    _tell_warnings_once(program)
    _require_current_folder(program)
    # A bar's own lock is a semaphore of the system's, which `end` would leave behind.
    tqdm.set_lock(threading.RLock())
    # Pictures are files. Jupyter gives the commands in its cells a backend of its own,
    # which matplotlib refuses where that is not installed.
    os.environ["MPLBACKEND"] = "agg"

    def parse(argv):
        try:
            with _printing(program):
                try:
                    rest = flags.FLAGS(argv)
                finally:
                    sys.stdout.flush()
        except SystemExit as error:
            # Of `--help` and the like, for which absl exits with 1.
            sys.exit(0 if error.code == 1 else error.code)
        except UnicodeDecodeError:
            _fail(program, "--flagfile: expected a file of UTF-8 text", USAGE_STATUS)
        except (flags.Error, ValueError) as error:  # The latter for `--noflag=value`.
            _fail(program, f"{_one_line(error)} (see --help)", USAGE_STATUS)
        if len(rest) > 1:
            message = f"unexpected argument {rest[1]!r} (see --help)"
            _fail(program, message, USAGE_STATUS)
        return rest

    def guarded(argv):
        del argv
        if not flags.FLAGS["verbosity"].present:
            # Orbax logs dozens of lines a checkpoint, and a traceback beside every
            # exception that it raises; the exception itself is reported here.
            logging.set_verbosity(logging.FATAL)
        try:
            with _printing(program):
                main()
                sys.stdout.flush()
        except RunError as error:
            _fail(program, _one_line(error), error.status)

    app.run(guarded, flags_parser=parse)


@contextlib.contextmanager
def _printing(program: str) -> Iterator[None]:
    """Ends the process where stdout can't be written to."""
    try:
        yield
    except BrokenPipeError:
        # The reader of a pipe has seen enough (`| head`).
        streams.drop(sys.stdout)
        sys.exit(BROKEN_PIPE_STATUS)
    except OSError as error:
        # For files, the commands themselves report what can't be written.
        if error.errno not in _UNWRITABLE or error.filename is not None:
            raise
        streams.drop(sys.stdout)
        _fail(program, f"can't write to stdout: {error.strerror}", RunError.status)


def _require_current_folder(program: str) -> None:
    """Paths, given or by default, are relative to it."""
    try:
        os.getcwd()
    except OSError as error:
        message = f"expected to be started in a folder that exists ({error.strerror})"
        _fail(program, message, RunError.status)


def _tell_warnings_once(program: str) -> None:
    """Prints each warning once, in one line, without the source line that raised it."""
    told = set()

    def show(message, *_, **__):
        if str(message) not in told:
            told.add(str(message))
            streams.note(f"{program}: note: {message}")

    warnings.showwarning = show


def _end_on_interrupt(program: str) -> None:
    """Ctrl-C ends the process at once, until a run with something to save handles it.

    Python's own handler raises wherever the program happens to be, which may be a JAX
    callback whose errors are dropped: the command would go on.
    """
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return  # Ignored by whoever started this in the background.

    def handle(number, frame):
        del number, frame
        _fail(program, "interrupted", INTERRUPTED_STATUS)

    signal.signal(signal.SIGINT, handle)


def _program() -> str:
    spec = sys.modules["__main__"].__spec__
    name = spec.name.removesuffix(".__main__").rpartition(".")[2] if spec else "?"
    return f"python -m experiments.{name}"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _fail(program: str, message: str, status: int) -> NoReturn:
    end(f"{program}: {message}", status)


def _is_command() -> bool:
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    return spec is not None and spec.name.startswith("experiments.")


# Already while the command imports what it needs, which takes seconds; and libraries
# open files.
if _is_command():
    streams.open_closed()
    _end_on_interrupt(_program())
