"""Being stopped from outside: the first signal asks, a second one stops at once."""

import contextlib
import os
import signal
from types import FrameType

from experiments.ending import exit_at_once
from experiments.errors import RunError

# The last one comes when the terminal is closed.
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(RunError):
    """A run that was asked to stop, and what it has saved."""

    def __init__(self, message: str, by: signal.Signals | None):
        """`by` is None where another process of the run was sent the signal."""
        name = by.name if by else "a signal to another process"
        super().__init__(f"stopped by {name}; {message}")
        self.status = _status(by or signal.SIGTERM)


class StopRequest:
    """While entered, Ctrl-C, SIGTERM and SIGHUP are noted; they don't end the run."""

    def __init__(self) -> None:
        self.by: signal.Signals | None = None
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> "StopRequest":
        for number in _SIGNALS:
            # Where it is ignored, whoever started this in the background wants it so.
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    @property
    def number(self) -> int:
        """The signal's number, or 0 if there was none."""
        return 0 if self.by is None else int(self.by)

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self.by is not None:
            _note_on_stderr(b"ended at once; what was saved before is intact\n")
            exit_at_once(_status(signal.Signals(number)))
        self.by = signal.Signals(number)
        _note_on_stderr(
            b"stopping after the steps under way; another signal ends it now\n"
        )


def _note_on_stderr(line: bytes) -> None:
    """Not by `print`, in the middle of which the signal may have come.

    Ctrl-C also ends the `tee` that stderr may be a pipe to; this is no reason to lose
    what the run is about to save.
    """
    with contextlib.suppress(OSError):
        os.write(2, line)


def _status(number: signal.Signals) -> int:
    return 128 + number  # As shells report it.
