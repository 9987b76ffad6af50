"""The one exception that means: the user can mend this."""

import contextlib
from collections.abc import Iterator


class RunError(Exception):
    """Ends a command with its message as one line on stderr and no traceback."""

    status = 1
    """The process's exit status."""


@contextlib.contextmanager
def naming(flag: str) -> Iterator[None]:
    """Around what `flag` asks for: a RunError in it begins with the flag's name."""
    try:
        yield
    except RunError as error:
        raise RunError(f"{flag}: {error}") from error
